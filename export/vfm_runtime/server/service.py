"""What the routes share: the models, the threads that open files, and the course of every question."""

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from vfm_runtime.server.bodies import read_body
from vfm_runtime.server.budget import usable_cores
from vfm_runtime.server.errors import ApiError, ClientGoneError
from vfm_runtime.server.metrics import Metrics
from vfm_runtime.server.repository import Repository, Served
from vfm_runtime.server.settings import Settings
from vfm_runtime.tasks.base import Arrays

TIMEOUT_HEADER = "x-timeout-ms"
"""Milliseconds that the client gives the request; never more than the server's own limit counts."""

_MOST_THREADS = 4
_LOAD_ERRORS = (ValueError, RuntimeError, OSError, ImportError)
_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass
class Note:
    """What is known of one request, for its answer and its line in the log."""

    request_id: str
    started: float
    """By `time.monotonic`."""
    deadline: float = 0.0
    """By `time.monotonic`; set for questions only."""
    bytes_in: int = 0
    """Of the body."""
    model: str | None = None
    version: str | None = None


class Cost(NamedTuple):
    """Time that a question took in the model."""

    queue_ms: float
    compute_ms: float


@dataclass
class Service:
    """The running server, one in a process."""

    settings: Settings
    metrics: Metrics
    draining: bool = False
    failure: str | None = None
    """Why it did not start."""
    _repository: Repository | None = None
    _in_flight: int = 0
    _watch: asyncio.Task[None] | None = None
    _pool: ThreadPoolExecutor = field(init=False)
    _free: asyncio.Semaphore = field(init=False)

    def __post_init__(self) -> None:
        threads = min(_MOST_THREADS, self.settings.num_threads or usable_cores())
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="open")
        # What waits for a thread waits here, where it can leave at once, and its body with it.
        self._free = asyncio.Semaphore(threads)

    @property
    def repository(self) -> Repository:
        """The models.

        Raises:
            ApiError: They are not loaded yet.
        """
        if self._repository is None:
            raise ApiError(503, "The models are not loaded yet. Ask again soon.")
        return self._repository

    @property
    def is_ready(self) -> bool:
        """Whether questions are answered."""
        return self._repository is not None and not self.draining

    async def start(self) -> None:
        """Load the models, and watch their files.

        Raises:
            ValueError: A bundle cannot be loaded; `failure` then holds the text.
        """
        started = time.monotonic()
        try:
            self._repository = Repository(self.settings, self.metrics)
        except _LOAD_ERRORS as error:
            self.failure = str(error)
            raise
        if self.settings.reload_every > 0:
            self._watch = asyncio.create_task(self._repository.watch())
        self._hear_signals()
        _log.info("Ready: the models were loaded in %.2f s.", time.monotonic() - started)

    async def stop(self) -> None:
        """Answer what is waiting, then let the models go."""
        self.draining = True
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._repository is not None:
            await self._repository.close()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _hear_signals(self) -> None:
        """Refuse new questions from the moment of the signal on; the server itself notices later."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if callable(handler):
                signal.signal(number, self._draining_first(handler))

    def _draining_first(self, handler: Callable[[int, Any], Any]) -> Callable[[int, Any], None]:
        def handle(number: int, frame: Any) -> None:
            self.draining = True
            handler(number, frame)

        return handle

    async def in_thread(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run what takes long beside the event loop, a few at a time.

        Args:
            work: What to run; once begun it ends, even if nobody waits for it any more.
            *args: Of it.
            **kwargs: Of it.
        """
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        future = self._pool.submit(work, *args, **kwargs)
        future.add_done_callback(lambda _: self._release(loop))
        return await asyncio.wrap_future(future)

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        # Work that nobody waits for any more may outlive the loop.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self._free.release)

    @staticmethod
    async def in_turn(work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run what takes next to nothing where it is; otherwise as `in_thread`.

        Args:
            work: What to run.
            *args: Of it.
            **kwargs: Of it.
        """
        return work(*args, **kwargs)

    @contextmanager
    def _admitted(self) -> Iterator[None]:
        """Count the questions whose bodies are held in memory."""
        limit = self.settings.max_queue + self.settings.max_batch
        if self._in_flight >= limit:
            raise ApiError(
                429,
                f"{limit} requests are being answered already, the limit. Ask again later.",
                headers={"Retry-After": "1"},
            )
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    async def attend(
        self, request: Request, answer: Callable[[bytes, Note], Awaitable[Response]]
    ) -> Response:
        """Answer a question within its time, and no longer than its client waits.

        Args:
            request: The question.
            answer: Makes the answer from the body.

        Raises:
            ApiError: It cannot be taken, or its time is over.
            ClientGoneError: The client left.
        """
        note: Note = request.state.note
        if self.draining:
            raise ApiError(
                503,
                "The server is stopping. Ask another one.",
                "draining",
                headers={"Connection": "close"},
            )
        seconds = self._seconds(request)
        note.deadline = note.started + seconds
        with self._admitted():
            try:
                async with asyncio.timeout(note.deadline - time.monotonic()):
                    body = await read_body(request, self.settings)
                    note.bytes_in = len(body)
                    return await unless_gone(request, answer(body, note))
            except TimeoutError as error:
                raise ApiError(
                    504,
                    f"No answer within {seconds:g} s. Ask again later, or raise X-Timeout-Ms; the "
                    f"server's own limit is {self.settings.timeout:g} s.",
                ) from error

    def _seconds(self, request: Request) -> float:
        text = request.headers.get(TIMEOUT_HEADER)
        if text is None:
            return self.settings.timeout
        if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text) > 0):
            raise ApiError(
                400, f"X-Timeout-Ms is '{text[:40]}'. Give whole milliseconds from 1 up."
            )
        return min(self.settings.timeout, int(text) / 1000)

    async def ask(self, served: Served, inputs: Arrays, deadline: float) -> tuple[Arrays, Cost]:
        """Put rows to a model, a batch at a time, so that the crops of a long video fit the queue.

        Args:
            served: The model.
            inputs: By name, one row or more.
            deadline: By `time.monotonic`.
        """
        size = self.settings.max_batch
        num_rows = len(next(iter(inputs.values())))
        parts, queue_ms, compute_ms = [], 0.0, 0.0
        for at in range(0, num_rows, size):
            rows = {name: values[at : at + size] for name, values in inputs.items()}
            outputs, timing = await served.batcher.submit(rows, deadline)
            parts.append(outputs)
            queue_ms += timing.queue_ms
            compute_ms += timing.compute_ms
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return joined if len(parts) > 1 else parts[0], Cost(queue_ms, compute_ms)


def service_of(request: Request) -> Service:
    """The service that a request is for.

    Args:
        request: The request.
    """
    service: Service = request.app.state.service
    return service


async def unless_gone(request: Request, work: Awaitable[Response]) -> Response:
    """Wait for an answer, and give it up when the client leaves.

    Args:
        request: Its body is read already.
        work: Makes the answer.

    Raises:
        ClientGoneError: The client left.
    """
    answer = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientGoneError
    finally:
        answer.cancel()
        left.cancel()
        await asyncio.gather(answer, left, return_exceptions=True)


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass

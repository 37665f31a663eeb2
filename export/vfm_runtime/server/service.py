"""Service that the routes share: the models, the threads that open files, and deadlines and limits of requests."""

import asyncio
import logging
import re
import signal
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ParamSpec, TypeVar

from fastapi import Depends, Header
from pydantic import WithJsonSchema
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from vfm_runtime.cpu_quota import count_usable_cores
from vfm_runtime.server.batching import Timing, join_rows, slice_rows
from vfm_runtime.server.errors import ApiError
from vfm_runtime.server.memory import PixelBudget
from vfm_runtime.server.metrics import Metrics
from vfm_runtime.server.repository import Repository, ServedModel
from vfm_runtime.server.settings import Settings
from vfm_runtime.tasks.base import Arrays

_MAX_THREADS = 4
_LOAD_ERRORS = (ValueError, RuntimeError, OSError, ImportError)
_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass
class RequestContext:
    """What is known of one request, for its response, log and metrics; times are `time.monotonic()`."""

    request_id: str
    started: float
    deadline: float = 0.0
    """Set for requests that a model answers."""
    bytes_in: int = 0
    model: str | None = None
    version: str | None = None
    status: int = 0
    """Status that was sent; 0 before."""
    error_code: str | None = None


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
    _budget: PixelBudget = field(init=False)
    tile_budget: PixelBudget = field(init=False)
    """Of the tiles of large images, from when these are opened until the model has run."""

    def __post_init__(self) -> None:
        threads = min(_MAX_THREADS, self.settings.num_threads or count_usable_cores())
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="open")
        # Whoever waits for a thread waits here, where he can leave at once, and his body with him.
        self._free = asyncio.Semaphore(threads)
        self._budget = PixelBudget(self.settings.max_open_pixels)
        self.tile_budget = PixelBudget(self.settings.max_open_pixels)

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
        """Whether requests are answered."""
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
        self._watch = asyncio.create_task(self._repository.watch())
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._drain_on(number)
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

    def _drain_on(self, number: int) -> None:
        """Refuse new requests from the moment of the signal on; uvicorn itself notices later."""
        handler = signal.getsignal(number)

        def drain(number: int, frame: Any) -> None:
            self.draining = True
            if callable(handler):
                handler(number, frame)

        if callable(handler):
            signal.signal(number, drain)

    async def run_in_thread(
        self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Run what takes long beside the event loop, a few at a time; once begun it ends, even if nobody waits."""
        return await self._run_opening(0, partial(work, *args, **kwargs))

    async def open_in_thread(
        self, num_pixels: int, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs
    ) -> _T:
        """Run what opens an image like `run_in_thread`, while all that are open have few enough pixels together."""
        await self._budget.acquire(num_pixels)
        return await self._run_opening(num_pixels, partial(work, *args, **kwargs))

    async def _run_opening(self, num_pixels: int, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        future: Future[_T] | None = None

        def release() -> None:
            if future is not None:
                self._free.release()
            if num_pixels:
                self._budget.release(num_pixels)

        def release_soon(_: object) -> None:
            # Work that nobody waits for any more may outlive the loop.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(release)

        try:
            await self._free.acquire()
            future = self._pool.submit(work)
        except BaseException:  # also a cancelled request gives its pixels back
            release()
            raise
        future.add_done_callback(release_soon)
        return await asyncio.wrap_future(future)

    def select_model(self, request: Request, name: str | None, version: str | None) -> ServedModel:
        """Return the model that a request asks, and note it for the log and the metrics.

        Raises:
            UnknownModelError: There is no such model.
        """
        served = self.repository.find_model(name, version)
        context: RequestContext = request.state.context
        context.model, context.version = served.name, served.version
        return served

    async def handle(
        self,
        request: Request,
        read: Callable[[Request], Awaitable[_T]],
        answer: Callable[[_T], Awaitable[Response]],
    ) -> Response:
        """Answer a request within its time and the limit of requests, and no longer than its client waits.

        Args:
            request: Request to a route with the dependency `DEADLINE`.
            read: Reads the body, such as `read_upload` or `Request.body`.
            answer: Makes the response from what was read.

        Raises:
            ApiError: It cannot be taken, or its time is over.
            ClientDisconnect: The client left.
        """
        if self.draining:
            text = "The server is stopping. Ask another one."
            raise ApiError(503, text, "draining", headers={"Connection": "close"})
        limit = self.settings.max_queue + self.settings.max_batch  # bodies that are held in memory
        if self._in_flight >= limit:
            raise ApiError(
                429,
                f"{limit} requests are being answered already, the limit. Ask again later.",
                headers={"Retry-After": "1"},
            )
        context: RequestContext = request.state.context
        self._in_flight += 1
        try:
            async with asyncio.timeout(context.deadline - time.monotonic()):
                body = await read(request)
                return await cancel_on_disconnect(request, answer(body))
        except TimeoutError as error:
            raise ApiError(
                504,
                f"No answer within {context.deadline - context.started:g} s. Ask again later, or raise X-Timeout-Ms; "
                f"the server's own limit is {self.settings.timeout:g} s.",
            ) from error
        finally:
            self._in_flight -= 1

    async def run_model(
        self, served: ServedModel, inputs: Arrays, deadline: float, *, is_traffic: bool = True
    ) -> tuple[Arrays, Timing]:
        """Put rows to a model until a deadline, a batch at a time, so that the crops of a long video fit the queue.

        Args:
            served: Model that is to answer.
            inputs: Rows of what the model takes, by name.
            deadline: Time of `time.monotonic()` when the answer is of no use any more.
            is_traffic: Whether the drift monitor counts the images; not those that teach or are searched by.
        """
        size = self.settings.max_batch
        num_rows = len(next(iter(inputs.values())))
        parts, timings = [], []
        for start in range(0, num_rows, size):
            outputs, timing = await served.batcher.submit(
                slice_rows(inputs, start, size), deadline, is_traffic=is_traffic
            )
            parts.append(outputs)
            timings.append(timing)
        timing = Timing(sum(t.queue_ms for t in timings), sum(t.compute_ms for t in timings))
        return join_rows(parts), timing


def get_service(request: Request) -> Service:
    """Return the service that a request is for."""
    service: Service = request.app.state.service
    return service


async def cancel_on_disconnect(request: Request, work: Awaitable[Response]) -> Response:
    """Wait for a response to a request whose body is read, and cancel it when the client leaves.

    Raises:
        ClientDisconnect: The client left.
    """
    answer = asyncio.ensure_future(work)

    async def wait_for_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(wait_for_disconnect())
    try:
        await asyncio.wait({answer, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientDisconnect
    finally:
        answer.cancel()
        leaving.cancel()
        await asyncio.gather(answer, leaving, return_exceptions=True)


_MILLISECONDS = WithJsonSchema({"type": "integer", "minimum": 1, "maximum": 999_999_999})
_TIMEOUT = Header(
    alias="X-Timeout-Ms",
    description="Milliseconds that the answer may take; the server's own limit stays.",
)
_REQUEST_ID = Header(
    alias="X-Request-Id",
    description="Comes back in the answer and stands in the log, if it has 1 to 64 letters, digits, '_', '.' and '-'.",
)


async def _set_deadline(
    request: Request,
    timeout_ms: Annotated[Annotated[str | None, _MILLISECONDS], _TIMEOUT] = None,
    request_id: Annotated[str | None, _REQUEST_ID] = None,  # read by the middleware
) -> None:
    context: RequestContext = request.state.context
    seconds = get_service(request).settings.timeout
    if timeout_ms is not None:
        if not (re.fullmatch(r"[0-9]{1,9}", timeout_ms) and int(timeout_ms) > 0):
            text = f"X-Timeout-Ms is '{timeout_ms[:40]}'. Give whole milliseconds from 1 up."
            raise ApiError(400, text)
        seconds = min(seconds, int(timeout_ms) / 1000)
    context.deadline = context.started + seconds


DEADLINE = Depends(_set_deadline)
"""Stands among the dependencies of a route that goes through `Service.handle`."""

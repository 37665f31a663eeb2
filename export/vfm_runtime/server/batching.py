"""Requests that come one by one go through the model together."""

import asyncio
import concurrent.futures
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from vfm_runtime.errors import OptionError, VfmError
from vfm_runtime.server.pieces import (
    Piece,
    Request,
    check_outputs,
    count_rows,
    joined,
    post,
    rows_of,
)
from vfm_runtime.tasks.base import Arrays

# What one batch tells of the next: of the speed, and of how many ask at once.
_MEMORY = 0.8
_RETRY_S = (0.1, 60.0)

_Number = TypeVar("_Number", int, float)


class QueueFullError(VfmError, RuntimeError):
    """As much waits as may; the request was not taken.

    Attributes:
        retry_after: Seconds after which what waits now will be done, by the speed of late.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(VfmError, TimeoutError):
    """The time of a request was up before it was answered."""


class ClosedError(VfmError, RuntimeError):
    """The batcher takes no more requests, or was closed before this one's turn."""


class Timing(NamedTuple):
    """Where the time of a request went."""

    queue_ms: float
    """From `submit` until its first row ran."""

    compute_ms: float
    """In the model, with its neighbours."""

    batch: int
    """Rows of the largest batch that it was in."""


class Observer(Protocol):
    """Is told what a batcher does; called from several threads."""

    def queued(self, rows: int) -> None:
        """So many rows wait now."""

    def waited(self, seconds: float) -> None:
        """A request has come to its turn."""

    def ran(self, rows: int, seconds: float) -> None:
        """A batch went through the model."""


class Batcher:
    """Gathers the requests of an event loop into batches; one thread of its own runs them, first in, first out.

    A batch goes as soon as it is full. One that is not waits for more only where more are to be expected: where, of
    late, more requests were under way at once than wait now. So a client who asks on his own is answered at once.
    """

    def __init__(
        self,
        run: Callable[[Arrays], Arrays],
        *,
        max_batch: int = 8,
        max_wait_ms: float = 2.0,
        max_queue: int = 64,
        observer: Observer | None = None,
    ) -> None:
        """Take the model; the thread starts with the first request.

        Args:
            run: Answers for rows, by name, with as many rows.
            max_batch: Most rows of one run; a request with more is split.
            max_wait_ms: Longest that an idle model waits for a fuller batch.
            max_queue: Most rows that may wait, without those that run. A request that is larger on its own is taken
                while nothing else waits.
            observer: Is told what happens.

        Raises:
            ValueError: A limit is below what makes sense.
        """
        self._run = run
        self._max_batch = _at_least("max_batch", max_batch, 1)
        self._max_wait = _at_least("max_wait_ms", max_wait_ms, 0) / 1000
        self._max_queue = _at_least("max_queue", max_queue, 1)
        self._observer = observer
        # Guards all below; notified when a request has come, or the end.
        self._change = threading.Condition()
        self._queue: deque[Request] = deque()
        self._held: set[Request] = set()  # waiting, running, or on the way back
        self._waiting = 0  # rows
        self._running = 0  # rows
        self._crowd = 1.0  # requests under way at once, of late
        self._row_s: float | None = None  # seconds a row, of late
        self._free_since = 0.0
        self._closing = False
        self._thread: threading.Thread | None = None
        self._ended: concurrent.futures.Future[None] = concurrent.futures.Future()

    @property
    def waiting(self) -> int:
        """Rows that wait now."""
        return self._waiting

    async def submit(self, inputs: Arrays, deadline: float = math.inf) -> tuple[Arrays, Timing]:
        """Have rows run, and return their outputs.

        Cancelled, the request leaves the queue.

        Args:
            inputs: By name; of one row or more.
            deadline: When its time is up, by `time.monotonic()`.

        Raises:
            QueueFullError: Too many rows wait.
            DeadlineError: The deadline has passed. A request that still waited then costs no run.
            ClosedError: The batcher is closed.
            ValueError: The inputs have no rows, or not the same number.
        """
        loop = asyncio.get_running_loop()
        request = Request(inputs, count_rows(inputs), deadline, loop.create_future())
        if request.is_late():
            raise _late(request)
        self._enter(request)
        timer = None
        if deadline < math.inf:
            timer = loop.call_later(deadline - request.arrived, _expire, request)
        try:
            outcome = await request.future
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(request)
        if outcome is not None:
            raise outcome
        return _answer(request)

    async def close(self, drain: float = 0.0) -> None:
        """Take no more, answer what is held, and end the thread.

        Args:
            drain: Seconds that this may take; what is not answered by then gets a `ClosedError`.
        """
        with self._change:
            self._closing = True
            self._change.notify_all()
            if self._thread is None:
                return
        try:
            await asyncio.wait([asyncio.wrap_future(self._ended)], timeout=drain)
        finally:
            self._fail_rest()

    def _enter(self, request: Request) -> None:
        with self._change:
            if self._closing:
                raise ClosedError("The model is being closed. Send the request again.")
            if self._waiting and self._waiting + request.rows > self._max_queue:
                raise self._full(request.rows)
            if self._thread is None:
                # A daemon: a run that never ends must not keep a process from ending.
                self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
                self._thread.start()
            self._queue.append(request)
            self._held.add(request)
            self._crowd = max(self._crowd, len(self._held))
            self._count_waiting(request.rows)
            self._change.notify()

    def _full(self, rows: int) -> QueueFullError:
        retry_after = 1.0  # before anything has run
        if self._row_s is not None:
            least, most = _RETRY_S
            retry_after = min(most, max(least, (self._waiting + self._running) * self._row_s))
        return QueueFullError(
            f"The queue is full: {self._waiting} rows wait, {rows} more would pass the limit of "
            f"{self._max_queue}. Try again in {retry_after:.1f} s.",
            retry_after,
        )

    def _leave(self, request: Request) -> None:
        with self._change:
            self._held.discard(request)
            self._drop(request)

    def _drop(self, request: Request) -> None:
        request.over = True
        if not request.left:
            return  # all of it has run, so it has left the queue
        with contextlib.suppress(ValueError):
            self._queue.remove(request)
            self._count_waiting(-request.left)

    def _count_waiting(self, rows: int) -> None:
        self._waiting += rows
        if self._observer is not None:
            self._observer.queued(self._waiting)

    def _work(self) -> None:
        try:
            while self._step():
                pass
        finally:
            with self._change:
                self._closing = True
            self._fail_rest()
            self._ended.set_result(None)

    def _step(self) -> bool:
        pieces = self._gather()
        if not pieces:
            return False
        outcome = self._try(pieces)
        if isinstance(outcome, Exception) and len(pieces) > 1:
            self._run_alone(pieces)
        else:
            self._deliver(pieces, outcome)
        with self._change:
            self._running = 0
            self._free_since = time.monotonic()
        return True

    def _gather(self) -> list[Piece]:
        with self._change:
            while self._queue or not self._closing:
                pause = self._pause()
                if pause is None or pause > 0:
                    self._change.wait(pause)
                elif pieces := self._take():
                    return pieces
        return []

    def _pause(self) -> float | None:
        """Seconds to wait for more; None for as long as nothing comes."""
        if not self._queue:
            return None
        if self._closing or self._waiting >= self._max_batch or len(self._queue) >= self._crowd:
            return 0.0
        since = max(self._queue[0].arrived, self._free_since)
        return since + self._max_wait - time.monotonic()

    def _take(self) -> list[Piece]:
        self._crowd = max(len(self._held), self._crowd * _MEMORY)
        pieces: list[Piece] = []
        room = self._max_batch
        while self._queue and room:
            request = self._queue[0]
            if request.over or request.is_late():
                self._drop(request)
                post([request], _late(request))
                continue
            piece = Piece(request, request.taken, min(room, request.left))
            self._begin(piece)
            room -= piece.rows
            pieces.append(piece)
        self._running = self._max_batch - room
        return pieces

    def _begin(self, piece: Piece) -> None:
        request = piece.request
        request.taken += piece.rows
        if not request.left:
            self._queue.popleft()
        self._count_waiting(-piece.rows)
        if request.started is None:
            request.started = time.monotonic()
            if self._observer is not None:
                self._observer.waited(request.started - request.arrived)

    def _try(self, pieces: Sequence[Piece]) -> tuple[Arrays, float] | Exception:
        start = time.monotonic()
        rows = sum(piece.rows for piece in pieces)
        try:
            outputs = self._run(joined([piece.inputs for piece in pieces]))
            check_outputs(outputs, rows)
        except Exception as error:  # whatever it is, it is for those who asked, not for this thread
            return error
        seconds = time.monotonic() - start
        row_s = seconds / rows
        with self._change:
            last = row_s if self._row_s is None else self._row_s
            self._row_s = _MEMORY * last + (1 - _MEMORY) * row_s
        if self._observer is not None:
            self._observer.ran(rows, seconds)
        return outputs, seconds

    def _run_alone(self, pieces: Sequence[Piece]) -> None:
        # One of them broke the run; the others must not pay for it.
        for piece in pieces:
            if piece.request.over:
                continue
            if piece.request.is_late():
                self._fail(piece.request, _late(piece.request))
                continue
            self._deliver([piece], self._try([piece]))

    def _deliver(self, pieces: Sequence[Piece], outcome: tuple[Arrays, float] | Exception) -> None:
        if isinstance(outcome, Exception):
            for piece in pieces:
                self._fail(piece.request, outcome)
            return
        outputs, seconds = outcome
        batch = sum(piece.rows for piece in pieces)
        start, done = 0, []
        for piece in pieces:
            request = piece.request
            request.parts.append(rows_of(outputs, start, piece.rows))
            request.compute += seconds
            request.batch = max(request.batch, batch)
            start += piece.rows
            if piece.is_last:
                done.append(request)
        post(done, None)

    def _fail(self, request: Request, error: Exception) -> None:
        with self._change:
            self._drop(request)
        post([request], error)

    def _fail_rest(self) -> None:
        with self._change:
            rest = list(self._held)
            for request in rest:
                self._drop(request)
        # Those whose answer is on its way have been settled before this comes.
        post(rest, ClosedError("The model was closed before the request's turn. Send it again."))


def _answer(request: Request) -> tuple[Arrays, Timing]:
    started = request.started or request.arrived
    queue_ms = 1000 * (started - request.arrived)
    return joined(request.parts), Timing(queue_ms, 1000 * request.compute, request.batch)


def _late(request: Request) -> DeadlineError:
    where = "in the queue" if request.started is None else "with the model"
    waited = 1000 * (time.monotonic() - request.arrived)
    return DeadlineError(
        f"The time of the request was up after {waited:.0f} ms {where}. "
        "Allow it more time, or send less at once."
    )


def _expire(request: Request) -> None:
    request.settle(_late(request))


def _at_least(name: str, value: _Number, least: int) -> _Number:
    if not value >= least:
        raise OptionError(f"{name} is {value}. Give at least {least}.")
    return value

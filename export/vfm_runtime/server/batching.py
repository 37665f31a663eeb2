"""Dynamic batching: requests that come one by one go through the model together."""

import asyncio
import concurrent.futures
import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vfm_runtime.errors import DataError, OptionError, VfmError
from vfm_runtime.tasks.base import Arrays

if TYPE_CHECKING:
    from prometheus_client import Gauge, Histogram

# Weight of earlier batches in the running averages of speed and of how many ask at once.
_DECAY = 0.8
_MIN_RETRY_S, _MAX_RETRY_S = 0.1, 60.0


class QueueFullError(VfmError, RuntimeError):
    """As much waits as may; the request was not taken. In `retry_after` seconds what waits now will be done."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(VfmError, TimeoutError):
    """The time of a request was up before it was answered."""


class ClosedError(VfmError, RuntimeError):
    """The batcher takes no more requests, or was closed before this one's turn."""


class Timing(NamedTuple):
    """Time of a request: until its first row ran, and in the model together with its neighbours."""

    queue_ms: float
    compute_ms: float


class BatchMetrics(NamedTuple):
    """Metrics of Prometheus that a batcher keeps; set and observed from several threads."""

    queue_rows: "Gauge"
    queue_seconds: "Histogram"
    batch_rows: "Histogram"
    compute_seconds: "Histogram"


@dataclass(eq=False, repr=False)  # its arrays are too large to be compared or printed
class BatchRequest:
    """Rows that somebody waits for, on their way through the model in pieces that fit into batches."""

    inputs: Arrays
    rows: int
    deadline: float
    future: asyncio.Future[Exception | None]
    """Its result is the outcome: None where all rows have run, else what went wrong."""
    is_traffic: bool = True
    """Whether its outputs are observed."""
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    """When its first row ran."""
    taken: int = 0
    """Rows that have run, or are running."""
    over: bool = False
    """Whether nobody waits for it any more."""
    parts: list[Arrays] = field(default_factory=list)
    """Outputs of the rows that have run."""
    compute_s: float = 0.0

    @property
    def left(self) -> int:
        """Rows that still wait."""
        return self.rows - self.taken

    @property
    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self.deadline

    def finish(self, outcome: Exception | None) -> None:
        """End the waiting, on the event loop; only the first outcome counts."""
        # A result, never an exception of the future: one that nobody fetches is reported when it is collected.
        if not self.future.done():
            self.future.set_result(outcome)

    def make_deadline_error(self) -> DeadlineError:
        """Return the error of a request whose time is up."""
        where = "in the queue" if self.started is None else "with the model"
        waited = 1000 * (time.monotonic() - self.arrived)
        return DeadlineError(
            f"The time of the request was up after {waited:.0f} ms {where}. "
            "Allow it more time, or send less at once."
        )


class _Piece(NamedTuple):
    """Rows of a request that fit into one batch."""

    request: BatchRequest
    start: int
    rows: int

    @property
    def inputs(self) -> Arrays:
        return slice_rows(self.request.inputs, self.start, self.rows)


class Batcher:
    """Gathers the requests of an event loop into batches; one thread runs them, first in, first out.

    A batch goes as soon as it is full. One that is not waits for more only where more are to be expected: where, of
    late, more requests were under way at once than wait now. So a client who asks alone is answered at once.
    """

    def __init__(
        self,
        run: Callable[[Arrays], Arrays],
        *,
        max_batch: int = 8,
        max_wait_ms: float = 2.0,
        max_queue: int = 64,
        metrics: BatchMetrics | None = None,
        observe: Callable[[Arrays], None] | None = None,
    ) -> None:
        """Take the model; the thread starts with the first request.

        Args:
            run: Model that takes arrays by name and gives arrays with as many rows.
            max_batch: Most rows of one run; a request with more is split.
            max_wait_ms: Longest that an idle model waits for a fuller batch.
            max_queue: Most rows that may wait, without those that run; while none wait, a request may have more.
            metrics: Metrics that are kept of the queue and the batches.
            observe: Called by the thread with the outputs of those requests that are traffic, a row an image.

        Raises:
            ValueError: A limit is below what makes sense.
        """
        limits = (
            ("max_batch", max_batch, 1),
            ("max_wait_ms", max_wait_ms, 0),
            ("max_queue", max_queue, 1),
        )
        for name, value, least in limits:
            if not value >= least:
                raise OptionError(f"{name} is {value}. Give at least {least}.")
        self._run = run
        self._max_batch = max_batch
        self._max_wait = max_wait_ms / 1000
        self._max_queue = max_queue
        self._metrics = metrics
        self._observe = observe
        # Guards all below; notified when a request has come, or the end.
        self._change = threading.Condition()
        self._queue: deque[BatchRequest] = deque()
        self._held: set[BatchRequest] = set()  # waiting, running, or on the way back
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

    async def submit(
        self, inputs: Arrays, deadline: float = math.inf, *, is_traffic: bool = True
    ) -> tuple[Arrays, Timing]:
        """Have rows run until a deadline of `time.monotonic()`, and return their outputs; all are traffic but if said.

        Raises:
            QueueFullError: Too many rows wait.
            DeadlineError: The deadline has passed. A request that still waited then costs no run.
            ClosedError: The batcher is closed.
            ValueError: The inputs have no rows, or not the same number.
        """
        counts = {name: len(array) for name, array in inputs.items()}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            # With other numbers its rows would end up with a neighbour's.
            raise DataError(
                f"The inputs have these numbers of rows: {counts}. Give as many of each, at least 1."
            )
        future = asyncio.get_running_loop().create_future()
        request = BatchRequest(inputs, next(iter(counts.values())), deadline, future, is_traffic)
        if request.is_late:
            raise request.make_deadline_error()
        self._enter(request)
        try:
            async with asyncio.timeout(
                None if deadline == math.inf else deadline - request.arrived
            ):
                outcome = await future
        except TimeoutError:
            raise request.make_deadline_error() from None
        finally:
            with self._change:
                self._held.discard(request)
                self._drop(request)
        if outcome is not None:
            raise outcome
        queue_s = (request.started or request.arrived) - request.arrived
        return join_rows(request.parts), Timing(1000 * queue_s, 1000 * request.compute_s)

    async def close(self, drain: float = 0.0) -> None:
        """Take no more, answer what is held within `drain` seconds, the rest with a `ClosedError`; end the thread."""
        with self._change:
            self._closing = True
            self._change.notify_all()
            if self._thread is None:
                return
        try:
            await asyncio.wait([asyncio.wrap_future(self._ended)], timeout=drain)
        finally:
            self._fail_rest()

    def _enter(self, request: BatchRequest) -> None:
        with self._change:
            if self._closing:
                raise ClosedError("The model is being closed. Send the request again.")
            if self._waiting and self._waiting + request.rows > self._max_queue:
                retry_after = 1.0  # before anything has run
                if self._row_s is not None:
                    seconds = (self._waiting + self._running) * self._row_s
                    retry_after = min(_MAX_RETRY_S, max(_MIN_RETRY_S, seconds))
                raise QueueFullError(
                    f"The queue is full: {self._waiting} rows wait, {request.rows} more would pass the limit of "
                    f"{self._max_queue}. Try again in {retry_after:.1f} s.",
                    retry_after,
                )
            if self._thread is None:
                # A daemon: a run that never ends must not keep a process from ending.
                self._thread = threading.Thread(
                    target=self._run_batches, name="batcher", daemon=True
                )
                self._thread.start()
            self._queue.append(request)
            self._held.add(request)
            self._crowd = max(self._crowd, len(self._held))
            self._count_waiting(request.rows)
            self._change.notify()

    def _drop(self, request: BatchRequest) -> None:
        request.over = True
        if not request.left:
            return  # all of it has run, so it has left the queue
        with contextlib.suppress(ValueError):
            self._queue.remove(request)
            self._count_waiting(-request.left)

    def _count_waiting(self, rows: int) -> None:
        self._waiting += rows
        if self._metrics is not None:
            self._metrics.queue_rows.set(self._waiting)

    def _run_batches(self) -> None:
        try:
            while pieces := self._gather():
                outcome = self._try(pieces)
                if isinstance(outcome, Exception) and len(pieces) > 1:
                    # One of them broke the run, and the others must not pay for it.
                    for piece in pieces:
                        if not self._drop_late(piece.request):
                            self._deliver([piece], self._try([piece]))
                    del piece
                else:
                    self._deliver(pieces, outcome)
                del pieces, outcome  # held while the next batch is awaited, they would keep memory
                with self._change:
                    self._running = 0
                    self._free_since = time.monotonic()
        finally:
            with self._change:
                self._closing = True
            self._fail_rest()
            self._ended.set_result(None)

    def _gather(self) -> list[_Piece]:
        with self._change:
            while self._queue or not self._closing:
                pause = self._compute_pause()
                if pause is None or pause > 0:
                    self._change.wait(pause)
                elif pieces := self._take():
                    return pieces
        return []

    def _compute_pause(self) -> float | None:
        """Seconds to wait for more; None for as long as nothing comes."""
        if not self._queue:
            return None
        if self._closing or self._waiting >= self._max_batch or len(self._queue) >= self._crowd:
            return 0.0
        since = max(self._queue[0].arrived, self._free_since)
        return since + self._max_wait - time.monotonic()

    def _take(self) -> list[_Piece]:
        self._crowd = max(len(self._held), self._crowd * _DECAY)
        pieces: list[_Piece] = []
        room = self._max_batch
        while self._queue and room:
            request = self._queue[0]
            if self._drop_late(request):
                continue
            piece = _Piece(request, request.taken, min(room, request.left))
            request.taken += piece.rows
            if not request.left:
                self._queue.popleft()
            self._count_waiting(-piece.rows)
            if request.started is None:
                request.started = time.monotonic()
                if self._metrics is not None:
                    self._metrics.queue_seconds.observe(request.started - request.arrived)
            room -= piece.rows
            pieces.append(piece)
        self._running = self._max_batch - room
        return pieces

    def _drop_late(self, request: BatchRequest) -> bool:
        """Tell whether nobody waits for a request any more, or its time is up; then it is dropped."""
        if not (request.over or request.is_late):
            return False
        self._fail(request, request.make_deadline_error())
        return True

    def _try(self, pieces: Sequence[_Piece]) -> tuple[Arrays, float] | Exception:
        start = time.monotonic()
        rows = sum(piece.rows for piece in pieces)
        try:
            outputs = self._run(join_rows([piece.inputs for piece in pieces]))
            counts = {name: len(array) for name, array in outputs.items()}
            if any(count != rows for count in counts.values()):
                raise DataError(
                    f"The model was given {rows} rows and answered with {counts}. Export the bundle anew."
                )
            self._observe_traffic(pieces, outputs)
        except Exception as error:  # whatever it is, it is for those who asked, not for this thread
            return error
        seconds = time.monotonic() - start
        row_s = seconds / rows
        with self._change:
            last = row_s if self._row_s is None else self._row_s
            self._row_s = _DECAY * last + (1 - _DECAY) * row_s
        if self._metrics is not None:
            self._metrics.batch_rows.observe(rows)
            self._metrics.compute_seconds.observe(seconds)
        return outputs, seconds

    def _observe_traffic(self, pieces: Sequence[_Piece], outputs: Arrays) -> None:
        if self._observe is None:
            return
        counts = [piece.request.is_traffic for piece in pieces]
        if any(counts):
            rows = np.repeat(counts, [piece.rows for piece in pieces])
            self._observe(
                outputs if all(counts) else {name: array[rows] for name, array in outputs.items()}
            )

    def _deliver(self, pieces: Sequence[_Piece], outcome: tuple[Arrays, float] | Exception) -> None:
        if isinstance(outcome, Exception):
            for piece in pieces:
                self._fail(piece.request, outcome)
            return
        outputs, seconds = outcome
        start, done = 0, []
        for request, first, rows in pieces:
            request.parts.append(slice_rows(outputs, start, rows))
            request.compute_s += seconds
            start += rows
            if first + rows == request.rows:
                done.append(request)
        finish_all(done, None)

    def _fail(self, request: BatchRequest, error: Exception) -> None:
        with self._change:
            self._drop(request)
        finish_all([request], error)

    def _fail_rest(self) -> None:
        with self._change:
            rest = list(self._held)
            for request in rest:
                self._drop(request)
        # Requests whose answers are on their way have been settled before this comes.
        error = ClosedError("The model was closed before the request's turn. Send it again.")
        finish_all(rest, error)


def finish_all(requests: Iterable[BatchRequest], outcome: Exception | None) -> None:
    """End the waiting of requests with one outcome, from any thread; each event loop is woken once."""
    by_loop: dict[asyncio.AbstractEventLoop, list[BatchRequest]] = {}
    for request in requests:
        by_loop.setdefault(request.future.get_loop(), []).append(request)

    def finish_some(some: list[BatchRequest]) -> None:
        for request in some:
            request.finish(outcome)

    for loop, some in by_loop.items():
        # On a loop that is closed nobody waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(finish_some, some)


def slice_rows(arrays: Arrays, start: int, rows: int) -> Arrays:
    """Return `rows` rows of each array from row `start` on, not copied."""
    return {name: array[start : start + rows] for name, array in arrays.items()}


def join_rows(items: Sequence[Arrays]) -> Arrays:
    """Return the rows of all items, which have the same names; not copied where there is one item only."""
    if len(items) == 1:
        return items[0]
    return {name: np.concatenate([item[name] for item in items]) for name in items[0]}

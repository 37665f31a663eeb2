"""A request on its way through the model: in pieces that fit into batches."""

import asyncio
import contextlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from vfm_runtime.errors import DataError
from vfm_runtime.tasks.base import Arrays


@dataclass(eq=False, repr=False)  # its arrays are too large to be compared or printed
class Request:
    """Rows that somebody waits for."""

    inputs: Arrays
    """By name."""
    rows: int
    """Of each input."""
    deadline: float
    """When nobody waits any more, by `time.monotonic()`."""
    future: asyncio.Future[Exception | None]
    """Its result is the outcome: None where all rows have run, else what went wrong."""
    arrived: float = field(default_factory=time.monotonic)
    started: float | None = None
    """When its first row ran."""
    taken: int = 0
    """Rows that have run, or are running."""
    over: bool = False
    """Whether nobody waits for it any more."""
    parts: list[Arrays] = field(default_factory=list)
    """Outputs of the rows that have run."""
    compute: float = 0.0
    """Seconds of its batches."""
    batch: int = 0
    """Rows of the largest of them."""

    @property
    def left(self) -> int:
        """Rows that still wait."""
        return self.rows - self.taken

    def is_late(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() >= self.deadline

    def settle(self, outcome: Exception | None) -> None:
        """End the waiting; to be called on the event loop. Only the first outcome counts.

        Args:
            outcome: None where all rows have run, else what went wrong.
        """
        # As a result, never as an exception: one that nobody fetches is reported when collected.
        if not self.future.done():
            self.future.set_result(outcome)


class Piece(NamedTuple):
    """Rows of a request that fit into one batch."""

    request: Request
    start: int
    rows: int

    @property
    def inputs(self) -> Arrays:
        """Its rows of the inputs."""
        return rows_of(self.request.inputs, self.start, self.rows)

    @property
    def is_last(self) -> bool:
        """Whether the request ends with it."""
        return self.start + self.rows == self.request.rows


def post(requests: Iterable[Request], outcome: Exception | None) -> None:
    """End the waiting of requests, from any thread; their loops are woken once.

    Args:
        requests: The requests.
        outcome: None where all rows have run, else what went wrong.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[Request]] = {}
    for request in requests:
        by_loop.setdefault(request.future.get_loop(), []).append(request)
    for loop, some in by_loop.items():
        # A loop that is closed has nobody who waits.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, some, outcome)


def _settle(requests: list[Request], outcome: Exception | None) -> None:
    for request in requests:
        request.settle(outcome)


def rows_of(arrays: Arrays, start: int, rows: int) -> Arrays:
    """Return some rows of each array, not copied.

    Args:
        arrays: By name.
        start: The first row.
        rows: How many.
    """
    return {name: array[start : start + rows] for name, array in arrays.items()}


def joined(items: Sequence[Arrays]) -> Arrays:
    """Return the rows of all; not copied where there is one item only.

    Args:
        items: With the same names.
    """
    if len(items) == 1:
        return items[0]
    return {name: np.concatenate([item[name] for item in items]) for name in items[0]}


def count_rows(inputs: Arrays) -> int:
    """Return how many rows a request has.

    Args:
        inputs: By name.

    Raises:
        ValueError: None, or not the same number of each input: its rows would end up with a neighbour's.
    """
    counts = {name: len(array) for name, array in inputs.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise DataError(
            f"The inputs have these numbers of rows: {counts}. Give as many of each, at least 1."
        )
    return next(iter(counts.values()))


def check_outputs(outputs: Arrays, rows: int) -> None:
    """Refuse an answer that cannot be divided among those who asked.

    Args:
        outputs: By name.
        rows: What went into the model.

    Raises:
        ValueError: It has another number of rows.
    """
    counts = {name: len(array) for name, array in outputs.items()}
    if any(count != rows for count in counts.values()):
        raise DataError(
            f"The model was given {rows} rows and answered with {counts}. Export the bundle anew."
        )

"""What the benchmark scripts share: two sides timed in turns, one JSON line a case."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(
    ours: Callable[[], float], theirs: Callable[[], float], rounds: int
) -> tuple[float, float, float]:
    """Median figures of both sides, and the median of the rounds' quotients ours / theirs.

    The sides alternate, and so does which of them goes first; a first round is thrown away.
    """
    pairs = []
    for number in range(rounds + 1):
        if number % 2:
            pairs.append((ours(), theirs()))
        else:
            second, first = theirs(), ours()
            pairs.append((first, second))
    kept = pairs[1:]
    quotient = statistics.median(a / b for a, b in kept)
    return statistics.median(a for a, _ in kept), statistics.median(b for _, b in kept), quotient


def report(name: str, ours: float, theirs: float, unit: str, ratio: float) -> None:
    """Print a case; a ratio above 1 means that vfm is better."""
    row = {"name": name, "ours": ours, "theirs": theirs, "unit": unit, "ratio": ratio}
    print(
        json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}),
        flush=True,
    )

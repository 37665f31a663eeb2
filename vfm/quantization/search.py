"""Eight bits within a budget: as many nodes go back to 32 bits as the metric asks for, and no more."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm_runtime.tasks.base import Arrays

from vfm.quantization.graph import QuantizeError
from vfm.quantization.int8 import Int8, Method, Plan, make_plan, require_known, write_plan

Measure = Callable[[Path], float]
"""Gives the metric of an ONNX file on real data, 0 to 1, the higher the better."""

_MAX_BACK = 0.5

_log = logging.getLogger(__name__)


class BudgetError(QuantizeError):
    """8 bits cost more of the metric than was allowed."""


@dataclass(frozen=True)
class Budget:
    """What 8 bits cost."""

    int8: Int8
    """The file that was written."""
    before: float
    """The metric in 32 bits."""
    after: float
    """The metric of the file."""
    max_drop: float
    """What was allowed, in points: hundredths of the metric."""
    tried: tuple[tuple[int, float], ...]
    """How many nodes were back in 32 bits, and the metric then, in the order tried."""

    @property
    def drop(self) -> float:
        """What is lost, in points; below 0 where the file does better."""
        return _points(self.before, self.after)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `parity.json`."""
        return {
            **self.int8.to_dict(),
            "metric_before": self.before,
            "metric_after": self.after,
            "drop": self.drop,
            "max_drop": self.max_drop,
            "tried": [{"nodes_back": number, "metric": metric} for number, metric in self.tried],
        }

    def __str__(self) -> str:
        back = len(self.int8.kept)
        return (
            f"{len(self.int8.quantised)} nodes in 8 bits, {back} in 32: metric {self.before:.4f} to "
            f"{self.after:.4f}, {self.drop:.2f} of at most {self.max_drop:g} points lost"
        )


def within_budget(
    source: Path,
    target: Path,
    samples: Sequence[Arrays],
    measure: Measure,
    *,
    max_drop: float,
    method: Method = "auto",
    exclude: Collection[str] = (),
) -> Budget:
    """Write a model in 8 bits that loses no more of its metric than is allowed.

    Where it loses more, the nodes with the largest errors go back to 32 bits: 1, 2, 4 and so on, then as few as will
    do. More than half of them would leave little of the speed.

    Args:
        source: An ONNX file in 32 bits.
        target: The file to write; there is none after an error.
        samples: Real inputs, from which ranges and errors are taken.
        measure: Gives the metric of a file on real data that are not the samples.
        max_drop: What may be lost, in points: hundredths of the metric.
        method: As for `write_int8`.
        exclude: Names of nodes that stay in 32 bits in any case.

    Raises:
        BudgetError: It cannot be had.
        QuantizeError: The model cannot be brought to 8 bits at all.
    """
    if not max_drop >= 0:
        raise QuantizeError(
            f"max_drop is {max_drop}. Give the points that may be lost, 0 or more; 0.5 is usual."
        )
    plan = make_plan(source, samples, method=method)
    require_known(exclude, plan)
    search = _Search(plan, source, target, measure, max_drop, tuple(exclude))
    try:
        return search.run()
    except BaseException:  # also when interrupted: a file of an unfinished search is no result
        target.unlink(missing_ok=True)
        raise


class _Search:
    def __init__(
        self,
        plan: Plan,
        source: Path,
        target: Path,
        measure: Measure,
        max_drop: float,
        exclude: tuple[str, ...],
    ) -> None:
        self._plan, self._source, self._target = plan, source, target
        self._measure, self._max_drop = measure, max_drop
        self._excluded = dict.fromkeys(exclude, "excluded")
        errors = {name: e for name, e in plan.errors.items() if name not in exclude}
        self._worst = sorted(errors, key=lambda name: errors[name], reverse=True)
        self._tried: dict[int, float] = {}
        self._before = _finite(measure(source), source)

    def run(self) -> Budget:
        failed, passed = -1, 0
        while not self._passes(passed):
            failed = passed
            passed = self._next(passed)
        while passed - failed > 1:
            middle = (failed + passed) // 2
            if self._passes(middle):
                passed = middle
            else:
                failed = middle
        # The file on disk is that of the last try.
        int8 = self._write(passed)
        after = self._tried[passed]
        return Budget(int8, self._before, after, self._max_drop, tuple(self._tried.items()))

    def _next(self, number: int) -> int:
        most = int(len(self._worst) * _MAX_BACK)
        if number >= most:
            best = max(self._tried, key=lambda k: self._tried[k])
            lost = _points(self._before, self._tried[best])
            raise BudgetError(
                f"8 bits lose {lost:.2f} points of the metric ({self._before:.4f} to {self._tried[best]:.4f}) even "
                f"with {best} of {len(self._worst)} nodes back in 32 bits; at most {self._max_drop:g} may be lost. "
                "Allow more with --max_drop, name more validation images with --data, or leave --int8 out."
            )
        return min(max(1, 2 * number), most)

    def _passes(self, number: int) -> bool:
        self._write(number)
        self._tried[number] = after = _finite(self._measure(self._target), self._target)
        drop = _points(self._before, after)
        _log.info("%d nodes back in 32 bits: %.2f points lost.", number, drop)
        return is_within(drop, self._max_drop)

    def _write(self, number: int) -> Int8:
        back = {
            name: f"error {self._plan.errors[name]:.4f}, cost too much of the metric"
            for name in self._worst[:number]
        }
        return write_plan(self._plan, self._source, self._target, self._excluded | back)


def is_within(drop: float, max_drop: float) -> bool:
    """Whether a loss is within what is allowed; one that is just as large is.

    Args:
        drop: In points.
        max_drop: In points.
    """
    return drop <= max_drop + 1e-9


def _points(before: float, after: float) -> float:
    return 100 * (before - after)


def _finite(metric: float, path: Path) -> float:
    if not math.isfinite(metric):
        raise QuantizeError(
            f"The metric of {path} is {metric}. Give data with labels on which it can be computed."
        )
    return metric

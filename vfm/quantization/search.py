"""Int8 under an accuracy budget: as many nodes go back to 32 bits as the metric asks for, and no more."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
from vfm_runtime.tasks.base import Arrays

from vfm.quantization.graph import QuantizeError
from vfm.quantization.int8 import plan_int8

_MAX_BACK = 0.5

_log = logging.getLogger(__name__)


class BudgetError(QuantizeError):
    """8 bits cost more of the metric than was allowed."""


def quantize_within_budget(
    source: Path,
    target: Path,
    samples: Sequence[Arrays],
    measure: Callable[[Path], float],
    *,
    max_drop: float,
) -> dict[str, Any]:
    """Write a model in 8 bits that loses no more of its metric than is allowed.

    Where it loses more, the nodes with the largest errors go back to 32 bits: 1, 2, 4 and so on, then as few as will
    do. More than half of them would leave little of the speed.

    Args:
        source: An ONNX file in 32 bits.
        target: The file to write; there is none after an error.
        samples: Real inputs, batch by batch, from which ranges and errors are taken.
        measure: A function that gives the metric of an ONNX file on real data that are not the samples, 0 to 1, the
            higher the better.
        max_drop: What may be lost, in points: hundredths of the metric.

    Returns:
        What 8 bits cost, for `parity.json`: among others `kept`, why nodes stay in 32 bits, by their names; `drop`, in
        points; and `tried`, how many nodes were back in 32 bits, and the metric then.

    Raises:
        BudgetError: It cannot be had.
        QuantizeError: The model cannot be brought to 8 bits at all.
    """
    if not max_drop >= 0:
        raise QuantizeError(
            f"max_drop is {max_drop}. Give the points that may be lost, 0 or more; 0.5 is usual."
        )
    search = _Search(source, target, samples, measure, max_drop)
    try:
        return search.run()
    except BaseException:  # also when interrupted: a file of an unfinished search is no result
        target.unlink(missing_ok=True)
        raise


class _Search:
    def __init__(
        self,
        source: Path,
        target: Path,
        samples: Sequence[Arrays],
        measure: Callable[[Path], float],
        max_drop: float,
    ) -> None:
        self._source, self._target = source, target
        self._measure, self._max_drop = measure, max_drop
        self._plan = plan_int8(source, samples)
        errors = self._plan.errors
        self._worst = sorted(errors, key=lambda name: errors[name], reverse=True)
        self._tried: dict[int, float] = {}
        self._before = self._measure_finite(source)

    def run(self) -> dict[str, Any]:
        failed, passed = -1, 0
        while not self._try(passed):
            failed = passed
            passed = self._get_next(passed)
        while passed - failed > 1:
            middle = (failed + passed) // 2
            if self._try(middle):
                passed = middle
            else:
                failed = middle
        # The file on disk is that of the last try.
        self._write(passed)
        plan, after = self._plan, self._tried[passed]
        back = {
            name: f"error {plan.errors[name]:.4f}, cost too much of the metric"
            for name in self._worst[:passed]
        }
        return {
            "method": plan.method,
            "num_quantised": len(self._worst) - passed,
            "kept": plan.in_32_bits | back,
            "bytes": self._target.stat().st_size,
            "source_bytes": self._source.stat().st_size,
            "metric_before": self._before,
            "metric_after": after,
            "drop": 100 * (self._before - after),
            "max_drop": self._max_drop,
            "tried": [{"nodes_back": n, "metric": metric} for n, metric in self._tried.items()],
        }

    def _get_next(self, number: int) -> int:
        most = int(len(self._worst) * _MAX_BACK)
        if number >= most:
            best = max(self._tried, key=lambda k: self._tried[k])
            lost = 100 * (self._before - self._tried[best])
            raise BudgetError(
                f"8 bits lose {lost:.2f} points of the metric ({self._before:.4f} to {self._tried[best]:.4f}) even "
                f"with {best} of {len(self._worst)} nodes back in 32 bits; at most {self._max_drop:g} may be lost. "
                "Allow more with --max_drop, name more validation images with --data, or leave --int8 out."
            )
        return min(max(1, 2 * number), most)

    def _try(self, number: int) -> bool:
        self._write(number)
        self._tried[number] = after = self._measure_finite(self._target)
        drop = 100 * (self._before - after)
        _log.info("%d nodes back in 32 bits: %.2f points lost.", number, drop)
        return is_within(drop, self._max_drop)

    def _write(self, number: int) -> None:
        onnx.save(self._plan.build(self._worst[number:]), self._target)

    def _measure_finite(self, path: Path) -> float:
        metric = self._measure(path)
        if not math.isfinite(metric):
            raise QuantizeError(
                f"The metric of {path} is {metric}. Give data with labels on which it can be computed."
            )
        return metric


def is_within(drop: float, max_drop: float) -> bool:
    """Whether a loss is within what is allowed, both in points; one that is just as large is."""
    return drop <= max_drop + 1e-9

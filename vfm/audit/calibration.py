"""Calibration audit: reliability in bins of equal mass, calibration error by group, risk against coverage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vfm.audit.comparison import Bools, Floats
from vfm.audit.groups import list_groups
from vfm.metrics.calibration import compute_calibration_error, list_bins
from vfm.report import plot_learning_curves

_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
_NUM_POINTS = 100
_LEAST_GROUP = 100
_NUM_NULL = 200


def measure_calibration(
    confidence: Floats,
    right: Bools,
    columns: Mapping[str, Sequence[str]],
    *,
    fit: Callable[[Bools], float] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how far confidences lie from how often they are right, by group too, and what abstaining buys.

    A calibration error is never 0, however good the scores are: beside it stands what perfectly calibrated scores like
    these would have on as many images, the 95 % quantile.

    Args:
        confidence: Score of the predicted label, [N].
        right: Whether it is right, [N].
        columns: A value for each image by the name of a group column.
        fit: Returns the temperature that would suit the scores of some images best, bool [N]; None for no such figure.
        seed: Seed of the labels that perfect scores would have.
    """
    groups = []
    for name, member, is_intersection in list_groups(columns):
        if is_intersection or member.sum() < _LEAST_GROUP:
            continue
        row = {"group": name, **_measure_error(confidence[member], right[member], seed)}
        groups.append(row if fit is None else {**row, "temperature": fit(member)})
    order = np.argsort(-confidence, kind="stable")
    risk = np.cumsum(~right[order]) / np.arange(1, len(right) + 1)
    # Images of one confidence are answered together: which of them comes first says nothing.
    ends = np.searchsorted(-confidence[order], -confidence[order], side="right") - 1
    risk = risk[ends]
    rows = []
    for coverage in _COVERAGES:
        index = max(0, round(coverage * len(right)) - 1)
        rows.append(
            {
                "coverage": float((ends[index] + 1) / len(right)),
                "least_score": float(confidence[order][index]),
                "accuracy": float(1 - risk[index]),
            }
        )
    picks = np.unique(np.linspace(0, len(risk) - 1, _NUM_POINTS).astype(int))
    return {
        **_measure_error(confidence, right, seed),
        **({} if fit is None else {"temperature": fit(np.ones(len(right), bool))}),
        "mean_confidence": float(confidence.mean()),
        "bins": [each._asdict() for each in list_bins(confidence, right)],
        "groups": groups,
        "risk_coverage": rows,
        "area_under_risk_coverage": float(risk.mean()),
        "curve": [[float((i + 1) / len(risk)), float(risk[i])] for i in picks],
    }


def _measure_error(confidence: Floats, right: Bools, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    null = [
        compute_calibration_error(confidence, generator.random(len(confidence)) < confidence)
        for _ in range(_NUM_NULL)
    ]
    error = compute_calibration_error(confidence, right)
    limit = float(np.quantile(null, 0.95))
    gap = float(confidence.mean() - right.mean())
    return {
        "num_images": len(right),
        "ece": error,
        "ece_of_perfect_scores": limit,
        "overconfidence": gap,
        "is_calibrated": error <= limit,
    }


def draw_calibration(result: Mapping[str, Any]) -> bytes:
    """Return the reliability diagram and the curve of risk against coverage as PNG."""
    bins = [(each["score"], each["share"]) for each in result["bins"]]
    low = min(x for x, _ in bins)
    return plot_learning_curves(
        {
            "accuracy": {"model": bins, "perfect": [(low, low), (1.0, 1.0)]},
            "errors among the answered": {"risk": result["curve"]},
        },
        xlabel="confidence (left), share answered (right)",
    )

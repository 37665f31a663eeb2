"""Calibration audit: reliability in bins of equal mass, calibration error by group, risk against coverage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vfm.audit.comparison import Bools, Floats
from vfm.audit.groups import list_groups
from vfm.audit.kinds import ScoredAnswers
from vfm.metrics.calibration import compute_calibration_error, list_bins
from vfm.report import plot_learning_curves

_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
_NUM_POINTS = 100
_LEAST_GROUP = 100
_NUM_NULL = 200


def measure_calibration(
    answers: ScoredAnswers,
    columns: Mapping[str, Sequence[str]],
    *,
    fit: Callable[[Bools], float] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how far scores lie from how often answers are right, by group too.

    A calibration error is never 0, however good the scores are: beside it stands what perfectly calibrated scores like
    these would have on as many independent answers, the 95 % quantile.

    Args:
        answers: Answers with their scores, of N images in their order.
        columns: A value for each image by the name of a group column.
        fit: Returns the temperature that would suit the scores of some images best, bool [N]; None for no such figure,
            as where an image may have no answer.
        seed: Seed of the labels that perfect scores would have.
    """
    scores, right = answers.scores, answers.right
    groups = []
    for name, member, is_intersection in list_groups(columns):
        inside = member[answers.image]
        if is_intersection or inside.sum() < _LEAST_GROUP:
            continue
        row = {"group": name, **_measure_error(scores[inside], right[inside], seed)}
        groups.append(row if fit is None else {**row, "temperature": fit(member)})
    everyone = np.ones(answers.image[-1] + 1, bool)
    return {
        "answers": answers.name,
        "remedy": answers.remedy,
        **_measure_error(scores, right, seed),
        **({} if fit is None else {"temperature": fit(everyone)}),
        "mean_confidence": float(scores.mean()),
        "bins": [each._asdict() for each in list_bins(scores, right)],
        "groups": groups,
    }


def measure_abstention(confidence: Floats, right: Bools) -> dict[str, Any]:
    """Return what abstaining buys: how many of the most confident answers are right.

    Args:
        confidence: Score of the predicted label, [N].
        right: Whether it is right, [N].
    """
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
        "num_answers": len(right),
        "ece": error,
        "ece_of_perfect_scores": limit,
        "overconfidence": gap,
        "is_calibrated": error <= limit,
    }


def draw_calibration(result: Mapping[str, Any]) -> bytes:
    """Return the reliability diagram, and the curve of risk against coverage where there is one, as PNG."""
    bins = [(each["score"], each["share"]) for each in result["bins"]]
    perfect = [(x, x) for x in (min(bins)[0], max(bins)[0])]
    plots = {"share that is right": {"model": bins, "perfect": perfect}}
    if "curve" not in result:
        return plot_learning_curves(plots, xlabel="score")
    plots["errors among the answered"] = {"risk": result["curve"]}
    return plot_learning_curves(plots, xlabel="score (left), share answered (right)")

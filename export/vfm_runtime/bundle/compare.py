"""Whether two answers to one image are the same: of two machines, of two precisions, of torch and ONNX."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.bundle.predictor import Answer
from vfm_runtime.deepfake.verdict import Verdict
from vfm_runtime.tasks.classification import Prediction
from vfm_runtime.tasks.detection import Detections

MIN_SCORE = 0.05
"""Boxes of a lower score are not compared: they come and go with the last digit."""

MIN_IOU = 0.99
"""Least overlap of boxes that are the same."""

ROUGH_IOU = 0.9
"""The same where one of the answers is of fewer bits."""


class Agreement(NamedTuple):
    """Two answers, compared."""

    difference: float
    """The largest difference of a score, or of a place's heat; infinite where one is no number."""
    changed: bool
    """Whether the best label is another, a box has no partner, or other crops were judged."""
    expected: str
    """The first answer in a word or two."""
    found: str
    """The second."""


def agreement(expected: Answer, found: Answer, *, rough: bool = False) -> Agreement:
    """Compare two answers of one kind; of several heads the one that differs most counts.

    Why an answer is unsure is not compared: limits are scores and distances of real images, which then lie on either
    side of them by the last digit. The scores and distances themselves are.

    Args:
        expected: What should be answered.
        found: What is.
        rough: Whether one of them is of fewer bits: boxes may then differ more, and distances by any amount.
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        rows = {n: agreement(expected[n], found[n], rough=rough) for n in expected}
        name, worst = max(rows.items(), key=lambda row: (row[1].changed, row[1].difference))
        return worst._replace(expected=f"{name}: {worst.expected}", found=f"{name}: {worst.found}")
    if isinstance(expected, Detections) and isinstance(found, Detections):
        return _of_boxes(expected, found, rough)
    if isinstance(expected, Verdict) and isinstance(found, Verdict):
        return _of_verdicts(expected, found)
    assert isinstance(expected, Prediction)
    assert isinstance(found, Prediction)
    difference = float(np.abs(expected.scores - found.scores).max())
    difference = _worst(difference, _apart(expected, found, rough))
    return Agreement(difference, expected.label != found.label, expected.label, found.label)


def _apart(expected: Prediction | Detections, found: Prediction | Detections, rough: bool) -> float:
    """How far the distances from the training images differ, as a share of the larger; of 1 where both are smaller."""
    if expected.distance is None or found.distance is None:
        return 0.0 if expected.distance == found.distance else float("inf")
    larger = max(1.0, abs(expected.distance), abs(found.distance))
    share = abs(expected.distance - found.distance) / larger
    return 0.0 if rough and np.isfinite(share) else share


def _worst(*differences: float) -> float:
    # NaN compares as small; it is the largest difference there is.
    return _finite(float(np.max(differences)))


def _of_verdicts(expected: Verdict, found: Verdict) -> Agreement:
    """The score, and crop by crop its probability and its heatmap."""
    names = [_named(verdict) for verdict in (expected, found)]
    scores = (expected.score, found.score)
    shapes = [
        [f.heatmap is not None and f.heatmap.shape for f in v.frames] for v in (expected, found)
    ]
    changed = names[0] != names[1] or (None in scores and scores != (None, None))
    if shapes[0] != shapes[1]:
        names = [
            f"{n}, {len(v.frames)} crops" for n, v in zip(names, (expected, found), strict=True)
        ]
        return Agreement(0.0, True, *names)
    differences = [0.0]
    if expected.score is not None and found.score is not None:
        differences.append(abs(expected.score - found.score))
    for ours, theirs in zip(expected.frames, found.frames, strict=True):
        differences.append(abs(expected.score_of(ours) - found.score_of(theirs)))
        if ours.heatmap is not None and theirs.heatmap is not None:
            differences.append(float(np.abs(ours.heatmap - theirs.heatmap).max(initial=0)))
    return Agreement(_finite(float(np.max(differences))), changed, *names)


def _named(verdict: Verdict) -> str:
    return verdict.label if verdict.reason is None else f"{verdict.label} ({verdict.reason.value})"


def _of_boxes(expected: Detections, found: Detections, rough: bool) -> Agreement:
    """Each box of either answer is looked for in the other."""
    min_iou = ROUGH_IOU if rough else MIN_IOU
    there = _partners(expected, found, min_iou)
    back = _partners(found, expected, min_iou)
    difference = max([0.0, *there.differences, *back.differences])
    lost = there.num_lost + back.num_lost
    names = [f"{part.num_boxes} boxes" for part in (there, back)]
    if lost:
        names[1] += f", {lost} of either without a partner"
    return Agreement(_worst(difference, _apart(expected, found, rough)), lost > 0, *names)


class _Partners(NamedTuple):
    differences: list[float]
    num_lost: int
    num_boxes: int


def _partners(first: Detections, second: Detections, min_iou: float) -> _Partners:
    kept = np.flatnonzero(first.scores >= MIN_SCORE)
    same = first.class_ids[kept][:, None] == second.class_ids[None]
    a, b = first.boxes[kept], second.boxes
    # Two boxes without area at one place are the same.
    near = (overlap(a, b) >= min_iou) | (np.abs(a[:, None] - b[None]).max(-1) < 1e-3)
    apart = np.abs(first.scores[kept][:, None] - second.scores[None])
    # Of several boxes at one place, the one whose score is nearest.
    best = np.where(same & near, apart, np.inf).min(axis=1, initial=np.inf)
    return _Partners(best[np.isfinite(best)].tolist(), int(np.isinf(best).sum()), len(kept))


def overlap(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Intersection over union of every pair, [K, M].

    Args:
        first: [K, 4], left, top, right, bottom.
        second: [M, 4].
    """
    a, b = first[:, None].astype(np.float64), second[None].astype(np.float64)
    sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(min=0)
    shared = sides.prod(-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(-1) for boxes in (a, b)]
    union = areas[0] + areas[1] - shared
    result: NDArray[np.float64] = shared / union.clip(min=1e-9)
    return result


def _finite(difference: float) -> float:
    # NaN compares as small; it is the largest difference there is.
    return float("inf") if np.isnan(difference) else difference

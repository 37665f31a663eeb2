"""Null score: how well labels are told from what is not content (metadata, border, sharpness), beside chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from vfm.data.file_metadata import FEATURES, Metadata, read_header
from vfm.metrics.intervals import Interval, compute_interval
from vfm.metrics.ranking import Ranking, average_over_classes, rank_classes
from vfm.metrics.separation import LEAST, SHORTCUT_LIMIT, Value, score_held_out

MOST_IMAGES = 4000
"""Images that a null score is measured on, drawn evenly over the classes."""
MOST_CLASSES = 20
"""Commonest classes that are told apart; a model of plain values for hundreds of them would take minutes."""

_SIDES = ("top", "bottom", "left", "right")
NULL_FEATURES: dict[str, tuple[str, ...]] = {
    "metadata": FEATURES["size"] + FEATURES["format"] + FEATURES["compression"],
    "border": tuple(f"border_{side}_{c}" for side in _SIDES for c in ("red", "green", "blue")),
    "look": ("brightness", "contrast", "saturation", "sharpness"),
}
"""Names of the values, by what they belong to."""

_RESAMPLES = 300
_BORDER = 0.03  # of a side
_SHARPNESS_SIDE = 256


class NullScore(NamedTuple):
    """How well labels are told without content, with 95 % intervals; the scored images were not fitted on."""

    auroc: Interval
    """Area under the ROC curve, the mean over the labels; 0.5 is chance."""
    accuracy: Interval | None
    """Fraction of the images whose label is the best scored; None where several labels may apply."""
    majority: float | None
    """Accuracy of always saying the commonest label: chance."""
    num_images: int
    """Images that it was measured on."""

    @property
    def is_warning(self) -> bool:
        """Whether a model can learn this in place of the content."""
        return self.auroc.value > SHORTCUT_LIMIT and self.auroc.low > 0.5

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "auroc": self.auroc.to_dict(),
            "accuracy": None if self.accuracy is None else self.accuracy.to_dict(),
            "majority": self.majority,
            "num_images": self.num_images,
            "warning": self.is_warning,
        }


def read_null_values(content: bytes | None, pixels: NDArray[np.uint8]) -> Metadata:
    """Return what an image has beside its content: metadata of its file, colors of its border, look.

    Args:
        content: Bytes of the file; None of an image that was never one.
        pixels: The same image, uint8 [H, W, 3].

    Raises:
        ImageError: The header of the file cannot be read.
    """
    height, width = pixels.shape[:2]
    values: Metadata = {"width": float(width), "height": float(height)}
    if content is not None:
        values = read_header(content, len(content))
    rim = [max(1, round(_BORDER * side)) for side in (height, width)]
    parts = (pixels[: rim[0]], pixels[-rim[0] :], pixels[:, : rim[1]], pixels[:, -rim[1] :])
    means = np.concatenate([part.mean(axis=(0, 1)) for part in parts])
    values |= dict(zip(NULL_FEATURES["border"], means.tolist(), strict=True))
    scale = min(1.0, _SHARPNESS_SIDE / max(height, width))
    size = (max(1, round(scale * width)), max(1, round(scale * height)))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    gray = small.mean(axis=2)
    edges = cv2.Laplacian(gray, cv2.CV_64F)
    look = (gray.mean(), gray.std(), np.ptp(small.astype(int), axis=2).mean(), edges.var())
    values |= dict(zip(NULL_FEATURES["look"], map(float, look), strict=True))
    values["sharpness"] = float(np.log1p(look[3]))
    return values


def measure_null_scores(
    rows: Sequence[Mapping[str, Value]],
    target: NDArray[Any],
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, NullScore]:
    """Score labels by values that are not content: those of each part of `NULL_FEATURES`, and all of them.

    Cross-validated: no image is scored by a model that has seen it, or another image of its key.

    Args:
        rows: Values of N images by name, as `read_null_values` gives them.
        target: Classes, int [N]; or zeros and ones, [N, C], where several labels may apply.
        keys: Key of each image, such as a patient; images of one key stay together. By default all differ.
        seed: Seed of the draw of images, the folds and the intervals.

    Returns:
        Scores by name, `all` the last; without an entry for a part whose values are the same everywhere, and nothing
        where fewer than two labels have as many images, or keys, as are needed to say something.
    """
    groups = np.arange(len(rows))
    if keys is not None:
        groups = np.unique(keys, return_inverse=True)[1].astype(np.int64)
    positive = target > 0
    if target.ndim == 1:
        positive = target[:, None] == np.arange(int(target.max()) + 1)
    counts = np.array([len(np.unique(groups[column])) for column in positive.T])
    others = np.array([len(np.unique(groups[~column])) for column in positive.T])
    usable = np.flatnonzero((counts >= LEAST) & (others >= LEAST))
    usable = np.sort(usable[np.argsort(-counts[usable], kind="stable")][:MOST_CLASSES])
    if len(usable) < (1 if target.ndim == 2 else 2):
        return {}
    positive = positive[:, usable]
    chosen = np.arange(len(rows)) if target.ndim == 2 else np.flatnonzero(positive.any(axis=1))
    if len(chosen) > MOST_IMAGES:
        # The first drawn of each class, then the second of each, and so on.
        order = np.random.default_rng(seed).permutation(len(chosen))
        turns: Counter[int] = Counter()
        ranks = np.zeros(len(chosen), np.int64)
        for i, label in zip(order, positive[chosen[order]].argmax(axis=1).tolist(), strict=True):
            ranks[i] = turns[label]
            turns[label] += 1
        chosen = np.sort(chosen[np.argsort(ranks, kind="stable")][:MOST_IMAGES])
    positive, groups = positive[chosen], groups[chosen]
    scores = {}
    for name, features in [*NULL_FEATURES.items(), ("all", sum(NULL_FEATURES.values(), ()))]:
        table = {feature: [rows[i].get(feature) for i in chosen.tolist()] for feature in features}
        table = {feature: values for feature, values in table.items() if len(set(values)) > 1}
        if table:
            scores[name] = _score_table(table, positive, groups, seed, single=target.ndim == 1)
    return scores


def _score_table(
    table: Mapping[str, Sequence[Value]],
    positive: NDArray[np.bool_],
    groups: NDArray[np.int64],
    seed: int,
    *,
    single: bool,
) -> NullScore:
    if single:
        outputs = score_held_out(table, positive.argmax(axis=1), groups, seed)
        scores = np.stack([-outputs, outputs], axis=1) if outputs.ndim == 1 else outputs
    else:
        columns = [score_held_out(table, column, groups, seed) for column in positive.T]
        scores = np.stack(columns, axis=1)
    numbers = np.unique(groups, return_inverse=True)[1]
    ones = np.ones(numbers.max() + 1, np.int64)
    average = average_over_classes(Ranking.auroc, rank_classes(scores, positive))
    value = float(average(np.ones((1, len(groups)), np.int64))[0])

    def compute_auroc(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        # A draw that lost a side says nothing: it counts as the data itself.
        return np.nan_to_num(average(counts[:, numbers]), nan=value)

    auroc = compute_interval(compute_auroc, ones, num_resamples=_RESAMPLES, seed=seed)
    if not single:
        return NullScore(auroc, None, None, len(groups))
    is_right = positive[np.arange(len(groups)), scores.argmax(axis=1)]

    def compute_accuracy(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        drawn = counts[:, numbers]
        accuracy: NDArray[np.float64] = (drawn @ is_right) / np.maximum(drawn.sum(axis=1), 1)
        return accuracy

    accuracy = compute_interval(compute_accuracy, ones, num_resamples=_RESAMPLES, seed=seed)
    return NullScore(auroc, accuracy, float(positive.mean(axis=0).max()), len(groups))

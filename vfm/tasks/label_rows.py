"""Rows of `predictions.csv` for labels: plain, or by the rules of each image's group, as a bundle applies them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray
from vfm_runtime.tasks.base import TaskType
from vfm_runtime.tasks.classification import LabelPrediction
from vfm_runtime.tasks.confidence import soften_scores

SEPARATOR = "|"
"""Between the labels of one image in `predictions.csv`."""


def list_label_rows(
    names: Sequence[str], scores: NDArray[Any], labels: Sequence[str], *, multilabel: bool = False
) -> list[tuple[str, ...]]:
    """Return for each of N images its name, its labels and their plain scores.

    Args:
        names: Names of N images, in their order.
        scores: Probability of each label for each image, [N, C].
        labels: Names of the C labels.
        multilabel: Whether several labels may apply: those of a score of 0.5 or more.
    """
    rows: list[tuple[str, ...]] = []
    for name, row in zip(names, scores, strict=True):
        answer = LabelPrediction.from_scores(row, labels, multilabel=multilabel)
        pairs = answer.applying() if multilabel else answer.top(1)
        rows.append((name, *_join_pairs(pairs), ""))
    return rows


def _join_pairs(pairs: Sequence[tuple[str, float]]) -> tuple[str, str]:
    label = SEPARATOR.join(label for label, _ in pairs)
    return label, SEPARATOR.join(f"{score:.6f}" for _, score in pairs)


class GroupedRows:
    """Predictions by group: which label, its calibrated score, the group, and whether the rule is its own."""

    columns = ("group", "group_rule")
    """What rows have beside the label and its score."""

    def __init__(self, task_type: TaskType, groups: Mapping[str, str | None]) -> None:
        """Check the groups.

        Args:
            task_type: Task on the side of production, with rules by group.
            groups: Group of each image by its name; None where none is known, for which the general rule holds.

        Raises:
            OptionError: The rules know no such group.
        """
        self._groups = groups
        self._task_type = task_type
        self._by_group = {group: task_type.for_group(group) for group in set(groups.values())}

    def list_rows(self, names: Sequence[str], scores: NDArray[Any]) -> Iterator[tuple[str, ...]]:
        """Yield a row for each of N images.

        Args:
            names: Names of the images.
            scores: Probabilities before the calibration, [N, C].
        """
        general = self._task_type
        temperature = general.confidence.temperature
        softened = soften_scores(scores, temperature, multilabel=general.multilabel)
        for name, row in zip(names, softened, strict=True):
            task = self._by_group[self._groups[name]]
            (prediction,) = task.predictions({"scores": row[None]})
            values: Any = prediction
            pairs = values.applying() if general.multilabel else [(values.label, values.score)]
            choice = values.group
            yield name, *_join_pairs(pairs), choice.value or "", choice.rule, ""

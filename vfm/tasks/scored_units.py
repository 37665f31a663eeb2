"""Scored units: what a detector says of labelled images or videos, for an audit that does not know its task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.media.image import Pixels

from vfm.data.corruptions import Corruption
from vfm.data.records import Record


@dataclass(frozen=True, kw_only=True)
class ScoredUnits:
    """Scores of N images or videos, each of them positive or not. F images, or frames, that were scored."""

    name: str
    """What they are, in the plural: images, or videos."""
    source: str
    """What they are of, in words."""
    records: Sequence[Record]
    """[F], the images that were scored."""
    positions: NDArray[np.int64]
    """[F], index of the unit of each image."""
    image_scores: NDArray[np.float64]
    """[F], probability of the positive label of each image alone."""
    scores: NDArray[np.float64]
    """[N], probability of the positive label."""
    positive: NDArray[np.bool_]
    """[N], whether it is the true one."""
    threshold: float
    """Probability above which the positive label is given, by the general rule."""
    group_thresholds: NDArray[np.float64] | None = None
    """[N], the same by the rule of each unit's group; None where the general rule holds for all."""
    clusters: Sequence[str]
    """[N], what belongs together, such as videos of one person."""
    cluster_name: str
    """What the clusters are, in the plural, such as people."""
    table: Path | None
    """Table with a row for each image; None where there is none."""
    skipped: dict[str, str]
    """The reason by the name of each image that could not be read."""
    notes: Sequence[str]
    """What the reader must know."""
    seconds: float
    """Time from the first file to the last score."""
    model_seconds: float
    """Part of it that the model itself took."""


class AuditedUnits(ABC):
    """Labelled images or videos that a detector can score, as they are and corrupted.

    Attributes:
        predictor: The detector, of a checkpoint or of a bundle.
        records: The images that are scored.
        corruptions: What they can be corrupted by, by kind.
        about_corruptions: How that is done, for the reader.
    """

    predictor: Predictor
    records: Sequence[Record]
    corruptions: Mapping[str, Corruption]
    about_corruptions: str

    @abstractmethod
    def score(
        self, corruption: Corruption | None = None, level: float = 0.0, *, number: int | None = None
    ) -> ScoredUnits:
        """Score the units.

        Args:
            corruption: What degrades the images first; None to leave them as they are.
            level: One of its levels.
            number: Most units that are scored, spread evenly; None for all.
        """

    @abstractmethod
    def open(
        self, record: Record, corruption: Corruption | None = None, level: float = 0.0
    ) -> Pixels:
        """Return an image as the model sees it, uint8 [H, W, 3].

        Raises:
            ImageError: It cannot be read.
        """

    @abstractmethod
    def score_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the probability of the positive label, [N], of images as the model sees them, uint8 [N, H, W, 3]."""

    @abstractmethod
    def compute_heatmap(self, pixels: Pixels) -> NDArray[np.float32]:
        """Return what the detector itself says of each place, [h, w], of an image as it sees it, uint8 [H, W, 3]."""


_functions: dict[str, Callable[..., AuditedUnits]] = {}


def register_units(task: str, function: Callable[..., AuditedUnits]) -> None:
    """Have audits open the images of a task, by the name that bundles have for it, by a function of its own.

    Args:
        task: Name of the task.
        function: Takes an opened checkpoint or bundle, the data, and options of `vfm audit`.
    """
    _functions[task] = function


def find_units(task: str) -> Callable[..., AuditedUnits] | None:
    """Return the function that was registered for a task; None where there is none."""
    return _functions.get(task)

"""Scored units: what a detector says of labelled images or videos, for an audit that does not know its task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vfm.data.dataset import Record


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
    scores: NDArray[np.float64]
    """[N], probability of the positive label."""
    positive: NDArray[np.bool_]
    """[N], whether it is the true one."""
    threshold: float
    """Probability above which the positive label is given."""
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

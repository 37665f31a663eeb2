"""Collect a whole split's predictions over batches and ranks, and write the figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.report import plots

RESULTS_FILE = "results.json"


class Collector:
    """Scores and labels of a split, gathered over ranks, each sample once."""

    def __init__(self) -> None:
        self._batches: list[tuple[NDArray[Any], ...]] = []

    def add(self, scores: Tensor, target: Tensor, index: Tensor) -> None:
        """Keep a batch.

        Args:
            scores: float [N, C].
            target: int [N].
            index: int [N], position of each sample in its split.
        """
        rows = (scores.float(), target, index)
        self._batches.append(tuple(t.detach().cpu().numpy() for t in rows))

    def gather(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores [N, C] and labels [N] of all ranks in the order of the split; then starts anew.

        Samples that a distributed sampler repeated to fill up a rank are dropped.
        """
        parts = self._batches
        self._batches = []
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(ranks, parts)
            parts = [batch for rank in ranks for batch in rank]
        if not parts:
            return np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
        scores, target, index = (np.concatenate(column) for column in zip(*parts, strict=True))
        _, first = np.unique(index, return_index=True)
        return scores[first], target[first]


def write_results(folder: Path, split: str, results: dict[str, Any], labels: Sequence[str]) -> Path:
    """Add a split's results to `results.json`, and draw its confusion matrix beside it.

    Args:
        folder: Where the checkpoint lies.
        split: `val` or `test`; results of the other stay.
        results: As given by `vfm.metrics.classification_results`, with what the task adds.
        labels: Label names.

    Returns:
        The path of `results.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RESULTS_FILE
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(kept | {split: results}, indent=2) + "\n", encoding="utf-8")
    matrix = np.asarray(results["confusion_matrix"])
    picture = plots.confusion_matrix(matrix, list(labels))
    (folder / f"confusion_matrix_{split}.png").write_bytes(picture)
    return path

"""Collect a whole split's answers over batches and ranks, and write the figures."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vfm.data import ImageData
from vfm.metrics import (
    accuracy,
    classification_results,
    confusion_matrix,
    macro_f1,
    mean_average_precision,
    multilabel_results,
)
from vfm.metrics.multilabel import f1_scores
from vfm.tasks.classification.mistakes import Mistake, find_mistakes
from vfm.tasks.classification.page import write_pages
from vfm.tasks.groups import group_results

RESULTS_FILE = "results.json"


class Answers(NamedTuple):
    """What a model said of a split, in the order of the split, each image once."""

    scores: NDArray[np.float32]
    """[N, C], probabilities."""
    target: NDArray[Any]
    """int64 [N], true classes; or float32 [N, C] of zeros and ones where several labels may apply."""
    position: NDArray[np.int64]
    """[N], place of each image in its split."""
    loss: NDArray[np.float32]
    """[N]."""


class Collector:
    """Answers of a split, gathered over ranks."""

    def __init__(self) -> None:
        self._batches: list[tuple[NDArray[Any], ...]] = []

    def add(self, scores: Tensor, target: Tensor, index: Tensor, loss: Tensor) -> None:
        """Keep a batch.

        Args:
            scores: float [N, C].
            target: int [N], or float [N, C].
            index: int [N], position of each image in its split.
            loss: float [N].
        """
        rows = (scores.float(), target, index, loss.float())
        self._batches.append(tuple(t.detach().cpu().numpy() for t in rows))

    def gather(self) -> Answers:
        """The answers of all ranks; then starts anew.

        Images that a distributed sampler repeated to fill up a rank are dropped.
        """
        parts = self._batches
        self._batches = []
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(ranks, parts)
            parts = [batch for rank in ranks for batch in rank]
        if not parts:
            none = np.zeros(0, np.float32)
            return Answers(np.zeros((0, 0), np.float32), none, np.zeros(0, np.int64), none)
        scores, target, index, loss = (np.concatenate(c) for c in zip(*parts, strict=True))
        index, first = np.unique(index, return_index=True)
        return Answers(scores[first], target[first], index, loss[first])


def metrics_of(answers: Answers, multilabel: bool) -> dict[str, float]:
    """The few figures that every validation logs."""
    if multilabel:
        return {
            "mAP": mean_average_precision(answers.scores, answers.target),
            "macro_f1": f1_scores(answers.scores, answers.target)["macro_f1"],
        }
    matrix = confusion_matrix(answers.target, answers.scores.argmax(1), answers.scores.shape[1])
    return {"accuracy": float(accuracy(matrix)), "macro_f1": float(macro_f1(matrix))}


def write_results(
    folder: Path,
    split: str,
    answers: Answers,
    labels: Sequence[str],
    data: ImageData,
    more: dict[str, Any],
) -> Path:
    """Add a split's results to `results.json`, and write its page, pictures and list of mistakes beside it.

    Args:
        folder: Where the checkpoint lies.
        split: `val` or `test`; results of the other stay.
        answers: Of the whole split.
        labels: Label names of the model.
        data: Where the images are.
        more: What goes into the JSON besides the metrics.

    Returns:
        The path of `results.json`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compute = multilabel_results if data.multilabel else classification_results
    results = compute(answers.scores, answers.target, labels) | more
    records = data.records[split]
    results["groups"] = group_results(
        answers.scores,
        answers.target,
        [records[i].groups for i in answers.position],
        data.group_columns,
    )
    mistakes = find_mistakes(
        answers.scores, answers.target, [records[i] for i in answers.position], labels
    )
    path = folder / RESULTS_FILE
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(kept | {split: results}, indent=2) + "\n", encoding="utf-8")
    _write_mistakes(folder / f"mistakes_{split}.csv", mistakes)
    write_pages(folder, split, results, answers.scores, answers.target, labels, mistakes)
    return path


def _write_mistakes(path: Path, mistakes: Sequence[Mistake]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "true", "answer", "score"))
        writer.writerows((m.record.name, m.truth, m.answer, f"{m.score:.6f}") for m in mistakes)

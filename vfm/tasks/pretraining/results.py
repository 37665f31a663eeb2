"""Results of a split of a pretraining: loss, kNN, effective rank and uniformity, alarms in plain words, page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.embedding import OUTPUT

from vfm.data import ImageData
from vfm.data.records import Record, list_labels
from vfm.heads_on_features.neighbors import score_neighbors
from vfm.metrics import compute_accuracy, compute_interval, compute_mean_average_precision
from vfm.metrics.embeddings import compute_effective_rank, compute_uniformity
from vfm.tasks.results import ResultsPage, SplitPredictions, describe_metric, save_results

_MOST_LABELED = 10_000
"""Labelled images that kNN looks at, spread evenly."""
_COLLAPSED = -0.02
"""Uniformity above which all images have nearly the same vector."""
_LEAST_RANK = 0.02
"""Effective rank, as a fraction of the highest possible, below which most of a vector says nothing."""
_FALL = 0.05
"""How far kNN may fall below its best before it is said, beyond three standard errors of the difference."""


class EmbeddingQuality(NamedTuple):
    """What embeddings are worth by themselves, and by their labels."""

    metrics: dict[str, float]
    """`rankme`, `uniformity`, and with labels `knn`: accuracy, or mean average precision of several labels."""
    chosen: NDArray[np.int64]
    """Positions of the M labelled images that kNN looked at, [M]."""
    right: NDArray[np.bool_]
    """Whether kNN was right, [M]; nothing of several labels an image."""


def measure_embeddings(
    vectors: NDArray[np.float32], records: Sequence[Record], num_classes: int
) -> EmbeddingQuality:
    """Measure embeddings of a split.

    kNN leaves one out: each labelled image is voted on by the 20 most similar others of the same split, weighted as
    Wu et al. (2018) do, so that no other data has to be embedded.

    Args:
        vectors: Embeddings of the images of a split, [N, D].
        records: Image of each, with its labels if any.
        num_classes: Number of classes that labels are of; 0 without labels.
    """
    metrics = {"rankme": compute_effective_rank(vectors)}
    if len(vectors) > 1:
        metrics["uniformity"] = compute_uniformity(vectors)
    labeled = np.array([i for i, record in enumerate(records) if list_labels(record)], np.int64)
    if len(labeled) > _MOST_LABELED:
        labeled = labeled[np.linspace(0, len(labeled) - 1, _MOST_LABELED).round().astype(int)]
    truth = np.zeros((len(labeled), num_classes), np.float32)
    for row, position in enumerate(labeled):
        truth[row, list(list_labels(records[position]))] = 1
    right = np.zeros(0, bool)
    if len(labeled) > 2 and (truth.any(axis=0)).sum() > 1:
        units = vectors[labeled]
        votes = score_neighbors(units, units, truth, leave_one_out=True)
        if any(isinstance(records[i].label, tuple) for i in labeled):
            metrics["knn"] = compute_mean_average_precision(votes, truth)
        else:
            right = votes.argmax(axis=1) == truth.argmax(axis=1)
            metrics["knn"] = float(right.mean())
    return EmbeddingQuality(metrics, labeled, right)


def list_alarms(
    metrics: Mapping[str, float], width: int, best_knn: float, num_labeled: int
) -> dict[str, str]:
    """Return what looks wrong, in plain words, by a name for each.

    Args:
        metrics: Metrics of a split, of `measure_embeddings`.
        width: Width of the embeddings.
        best_knn: Highest kNN of earlier validations.
        num_labeled: Number of images that kNN is of.
    """
    alarms = {}
    uniformity, rank, knn = (metrics.get(name) for name in ("uniformity", "rankme", "knn"))
    remedy = (
        "Features have collapsed: lower --model.optim.lr, warm up longer (--model.optim.warmup_ratio 0.2), take larger "
        "batches (--data.batch_size), or another loss."
    )
    if uniformity is not None and uniformity > _COLLAPSED:
        alarms["collapse"] = (
            f"All images get nearly the same vector (uniformity {uniformity:.3f}; 0 is one direction for all, trained "
            f"models have -1 to -4). {remedy}"
        )
    elif rank is not None and rank < _LEAST_RANK * width:
        alarms["low rank"] = (
            f"The vectors use {rank:.1f} of their {width} dimensions (RankMe), less than {_LEAST_RANK:.0%}. {remedy}"
        )
    error = 3 * (2 * best_knn * (1 - best_knn) / max(num_labeled, 1)) ** 0.5
    if knn is not None and knn < best_knn - _FALL - error:
        alarms["falling kNN"] = (
            f"kNN has fallen to {knn:.3f} from {best_knn:.3f}, though the loss goes on: what is learned now does not "
            "tell your classes apart. Stop here (best.ckpt, or an earlier last.ckpt), or lower --model.optim.lr."
        )
    return alarms


def write_pretraining_results(
    folder: Path,
    split: str,
    predictions: SplitPredictions,
    data: ImageData,
    more: dict[str, Any],
    facts: Mapping[str, tuple[str, str]] = MappingProxyType({}),
) -> None:
    """Add a split's results to `results.json`, and write their page beside it.

    Args:
        folder: Folder of the checkpoint.
        split: Name of the split.
        predictions: `embedding`, [N, D], and `loss`, [N].
        data: Data that the split is of.
        more: What goes into the JSON too, `alarms` and `checkpoint` among it.
        facts: Metrics among `more` that the page shows first: the title and a note of each.
    """
    records = [data.records[split][i] for i in predictions.position]
    losses = predictions.stack("loss")
    quality = measure_embeddings(predictions.stack(OUTPUT), records, len(data.labels))
    results: dict[str, Any] = {
        "num_samples": len(records),
        "num_labeled": len(quality.chosen),
        "loss": float(losses.mean()),
        **quality.metrics,
    }
    right: dict[int, bool] = {}
    if len(quality.right):
        right = dict(zip(quality.chosen.tolist(), quality.right.tolist(), strict=True))
        num_right = int(quality.right.sum())
        counts = np.array([[num_right, len(right) - num_right], [0, 0]])
        results["knn"] = compute_interval(compute_accuracy, counts).to_dict()
    members: dict[str, dict[str, list[int]]] = {"class": {}, **{c: {} for c in data.group_columns}}
    for position, record in enumerate(records):
        for label in list_labels(record):
            members["class"].setdefault(data.labels[label], []).append(position)
        for column, value in zip(data.group_columns, record.groups, strict=True):
            members[column].setdefault(value, []).append(position)
    results["groups"] = {
        column: [
            {
                column: name,
                "images": len(positions),
                "loss": float(losses[positions].mean()),
                "knn": float(np.mean(judged)) if (judged := [right[i] for i in positions if i in right]) else None,
            }
            for name, positions in sorted(of_column.items())
        ]
        for column, of_column in members.items()
        if of_column
    }  # fmt: skip
    results |= more
    save_results(folder, split, results)
    checkpoint = results["checkpoint"] or "no checkpoint"
    page = ResultsPage(folder, split, f"{results['num_samples']} images; {checkpoint}")
    notes = {
        **facts,
        "knn": ("kNN", "20 nearest others of this split vote"),
        "rankme": ("Effective rank", "RankMe; higher is richer"),
        "uniformity": ("Uniformity", "0 is a collapse, -4 even"),
        "loss": ("Loss", "per image"),
    }
    page.add_facts(
        {
            name: describe_metric(results[k], note)
            for k, (name, note) in notes.items()
            if k in results
        }
    )
    for alarm in more.get("alarms", ()):
        page.add_text(f"Alarm: {alarm}.")
    for column, rows in results["groups"].items():
        page.add_heading(f"By {column}")
        worst = max(rows, key=lambda row: row["loss"])
        page.add_text(f"Highest loss: {worst[column]}, {worst['loss']:.4f}.")
        page.add_table(rows)
    page.finish(results)

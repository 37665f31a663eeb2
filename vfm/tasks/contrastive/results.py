"""Results of a split of images with texts: zero-shot accuracy, recall both ways, and quality of vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.embedding import OUTPUT
from vfm_runtime.text import TEXT_OUTPUT

from vfm.data import ImageData
from vfm.data.records import Record, list_labels
from vfm.losses.contrastive import TEXT_ID
from vfm.metrics import compute_accuracy, compute_interval
from vfm.metrics.retrieval import Recall, measure_retrieval
from vfm.tasks.pretraining.results import write_pretraining_results
from vfm.tasks.results import SplitPredictions


class JudgedPairs(NamedTuple):
    """What images and texts say of each other."""

    answer: NDArray[np.int64]
    """Most similar label of each of the M images with a label, [M]."""
    truth: NDArray[np.int64]
    """True label of each, [M]; none without labels, or with fewer than two."""
    recalls: dict[str, Recall]
    """Recall by direction, over the images with a caption; none with fewer than two of these."""


def judge_pairs(
    predictions: SplitPredictions, records: Sequence[Record], classes: NDArray[np.float32] | None
) -> JudgedPairs:
    """Compare the vectors of images with those of labels, and of their own texts.

    Args:
        predictions: `embedding`, `text_embedding`, `text_id` and `captioned` of N images.
        records: Image of each, with its label if any.
        classes: Vectors of the labels, float32 [C, D]; None where there are none to choose among.
    """
    images = predictions.stack(OUTPUT)
    none = np.zeros(0, np.int64)
    answer, truth = none, none
    if classes is not None:
        labeled = [i for i, record in enumerate(records) if list_labels(record)]
        truth = np.array([list_labels(records[i])[0] for i in labeled], np.int64)
        answer = (images[labeled] @ classes.T).argmax(axis=1)
    captioned = predictions.stack("captioned").astype(bool)
    recalls = {}
    if captioned.sum() > 1:
        texts, numbers = predictions.stack(TEXT_OUTPUT), predictions.stack(TEXT_ID)
        recalls = measure_retrieval(images[captioned], texts[captioned], numbers[captioned])
    return JudgedPairs(answer, truth, recalls)


def write_contrastive_results(
    folder: Path,
    split: str,
    predictions: SplitPredictions,
    data: ImageData,
    classes: NDArray[np.float32] | None,
    more: dict[str, Any],
) -> None:
    """Add a split's results to `results.json`, and write their page beside it.

    Args:
        folder: Folder of the checkpoint.
        split: Name of the split.
        predictions: What `judge_pairs` takes, with the `loss` of each image, [N].
        data: Data that the split is of.
        classes: Vectors of the labels, float32 [C, D]; None where there are none to choose among.
        more: What goes into the JSON too.
    """
    records = [data.records[split][i] for i in predictions.position]
    judged = judge_pairs(predictions, records, classes)
    facts: dict[str, tuple[str, str]] = {}
    if len(judged.truth):
        right = judged.answer == judged.truth
        num_right = int(right.sum())
        counts = np.array([[num_right, len(right) - num_right], [0, 0]])
        more["accuracy"] = compute_interval(compute_accuracy, counts).to_dict()
        more["accuracy_by_class"] = {
            name: float(right[judged.truth == label].mean())
            for label, name in enumerate(data.labels)
            if (judged.truth == label).any()
        }
        facts["accuracy"] = ("Zero-shot accuracy", f"labels as words, {len(data.labels)} of them")
    for direction, recall in judged.recalls.items():
        more[direction] = recall.to_dict()
        for k, value in recall.at.items():
            more[f"{direction}_recall_at_{k}"] = value
            facts[f"{direction}_recall_at_{k}"] = (
                f"{direction.replace('_', ' ').capitalize()} R@{k}",
                f"{recall.num_queries} queries, {recall.num_candidates} candidates",
            )
    write_pretraining_results(folder, split, predictions, data, more, facts)

"""Out-of-fold results: every image as the model of the fold that did not see it predicts it."""

from __future__ import annotations

import logging
from collections import ChainMap
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vfm.data import ImageData
from vfm.data.records import Record, list_labels
from vfm.data.tables import write_rows
from vfm.tasks.base import BaseTask
from vfm.tasks.label_rows import SEPARATOR
from vfm.tasks.results import OUT_OF_FOLD, SplitPredictions, read_results, save_results

log = logging.getLogger(__name__)


class FoldPredictions(NamedTuple):
    """What the model of a fold says of the images that it did not see."""

    records: Sequence[Record]
    """The images that were held out."""
    predictions: SplitPredictions
    skipped: dict[str, str]
    """The reason by the name of each image that could not be read."""


def write_out_of_fold(
    task: BaseTask,
    data: ImageData,
    folder: Path,
    folds: Sequence[FoldPredictions],
    facts: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Write metrics, page and `out_of_fold.csv` of the images of all folds to a folder, and return the metrics.

    Args:
        task: A task that has learned the labels, attached to a trainer with the data.
        data: The data module of the trainer, which has the images of all folds while this runs.
        folder: Folder of the files.
        folds: Predictions of each fold.
        facts: More to say of each fold, ready for JSON.
    """
    skipped = dict(ChainMap(*(fold.skipped for fold in folds)))
    data.records[OUT_OF_FOLD] = [record for fold in folds for record in fold.records]
    starts = [0, *accumulate(len(fold.records) for fold in folds)]
    parts = [
        fold.predictions._replace(position=fold.predictions.position + start)
        for fold, start in zip(folds, starts[:-1], strict=True)
    ]
    try:
        task._match_labels()
        more = {
            "checkpoint": str(folder / "fold_*" / "checkpoints"),
            "num_skipped": len(skipped),
            "skipped": skipped,
            "folds": [
                {
                    **fact,
                    "num_samples": len(part.position),
                    **task.compute_metrics(OUT_OF_FOLD, part),
                }
                for fact, part in zip(facts, parts, strict=True)
            ],
        }
        joined = SplitPredictions(
            np.concatenate([part.position for part in parts]),
            {name: [row for p in parts for row in p.rows[name]] for name in parts[0].rows},
            {name: sum(part.sums[name] for part in parts) for name in parts[0].sums},
        )
        task.write_results(folder, OUT_OF_FOLD, joined, more)
    finally:
        del data.records[OUT_OF_FOLD]
    try:
        _write_table(task, data, folder / f"{OUT_OF_FOLD}.csv", folds)
    except KeyError as error:
        log.warning(
            "There is no %s.csv: %s.list_predictions() needs %s, which its evaluate() does not return.",
            *(OUT_OF_FOLD, type(task).__name__, error),
        )
    results: dict[str, Any] = read_results(folder)[OUT_OF_FOLD]
    # The card of an export reads what lies beside the checkpoint.
    save_results(folder / "checkpoints", OUT_OF_FOLD, results)
    return results


def _write_table(
    task: BaseTask, data: ImageData, path: Path, folds: Sequence[FoldPredictions]
) -> None:
    """Write the rows of `predictions.csv` with the fold, and with the true labels where these are of whole images."""
    columns = [name for name in task.prediction_columns if name != "error"]
    has_truth = all(record.objects is None for fold in folds for record in fold.records)
    rows = []
    for number, (records, predictions, _) in enumerate(folds):
        truth = {
            record.name: SEPARATOR.join(data.labels[i] for i in list_labels(record))
            for record in records
        }
        held_out = [records[i] for i in predictions.position]
        for batch, answers in task.batch_rows(held_out, predictions.rows):
            for row in task.list_predictions(batch, answers):
                cells = dict(zip(task.prediction_columns, row, strict=True))
                more = {"true": truth[row[0]]} if has_truth else {}
                rows.append(cells | more | {"fold": str(number)})
    columns += ["true"] * has_truth + ["fold"]
    write_rows(path, columns, sorted(rows, key=lambda cells: cells["path"]))

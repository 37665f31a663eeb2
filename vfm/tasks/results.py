"""Results of a split: predictions collected over batches and ranks, results.json, and the page beside it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from vfm_runtime.media.bit_depth import ValueRange
from vfm_runtime.media.image import ImageError, open_image

from vfm.data.records import Record, read_source
from vfm.report import Page, draw_contact_sheet
from vfm.training.ranks import gather_ranks

RESULTS_FILE = "results.json"
"""Beside a checkpoint: metrics by split."""
OUT_OF_FOLD = "out_of_fold"
"""Name in it of training images that were each predicted by a model of other folds."""
SCORES_FILE = f"{OUT_OF_FOLD}.npz"
"""Beside a checkpoint whose head was solved: the scores of these images."""


class SplitPredictions(NamedTuple):
    """What a model says of a split, in the order of the split, each image once. N images."""

    position: NDArray[np.int64]
    """[N], index of each image in its split."""
    rows: dict[str, list[NDArray[Any]]]
    """For each name the values of the N images."""
    sums: dict[str, float]
    """Values that batches give as one number, such as a loss, summed over the batches of all ranks."""

    def stack(self, name: str) -> NDArray[Any]:
        """Return the values of a name as one array [N, ...]."""
        return np.stack(self.rows[name])


class Collector:
    """Predictions of a split, collected batch by batch and gathered over ranks."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._rows: dict[int, dict[str, NDArray[Any]]] = {}
        self._sums: defaultdict[str, float] = defaultdict(float)

    def add(self, index: Tensor, values: Mapping[str, Tensor]) -> None:
        """Keep a batch.

        Args:
            index: int64 [N], position of each image in its split.
            values: By name a tensor [N, ...], whose rows are kept for the images; or a scalar, which is summed.
        """
        arrays = {}
        for name, value in values.items():
            value = value.detach()
            arrays[name] = (value.float() if value.is_floating_point() else value).cpu().numpy()
        for name, array in arrays.items():
            if array.ndim == 0:
                self._sums[name] += float(array)
        rows = {name: array for name, array in arrays.items() if array.ndim}
        for row, position in enumerate(index.tolist()):
            self._rows[position] = {name: array[row] for name, array in rows.items()}

    def gather(self) -> SplitPredictions | None:
        """Return the predictions of all ranks, None where there are none; then start anew.

        An image that a distributed sampler repeated to fill up a rank has one row, but counts twice in the sums.
        """
        ranks = gather_ranks((self._rows, self._sums))
        self._clear()
        rows = {position: row for part, _ in ranks for position, row in part.items()}
        if not rows:
            return None
        order = sorted(rows)
        sums: defaultdict[str, float] = defaultdict(float)
        for _, part in ranks:
            for name, value in part.items():
                sums[name] += value
        return SplitPredictions(
            np.array(order, np.int64),
            {name: [rows[position][name] for position in order] for name in rows[order[0]]},
            sums,
        )


def read_results(folder: Path) -> dict[str, Any]:
    """Return the metrics by split of the `results.json` in a folder; nothing where there is none."""
    path = folder / RESULTS_FILE
    results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return results


def save_results(folder: Path, split: str, results: Mapping[str, Any]) -> None:
    """Write the metrics of a split into the `results.json` of a folder, where those of other splits stay."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(read_results(folder) | {split: results}, indent=2)
    (folder / RESULTS_FILE).write_text(text + "\n", encoding="utf-8")


class ResultsPage(Page):
    """`report_<split>.html` and the PNG files of its pictures."""

    def __init__(self, folder: Path, split: str, subtitle: str) -> None:
        super().__init__(f"Results on {split}", subtitle)
        self._folder, self._split = folder, split

    def show(self, name: str, picture: bytes, caption: str) -> None:
        """Add a picture, and write it to `<name>_<split>.png`."""
        (self._folder / f"{name}_{self._split}.png").write_bytes(picture)
        self.add_figure(picture, caption)

    def finish(self, results: Mapping[str, Any]) -> None:
        """List the folds and the files that could not be read, and write the page."""
        if folds := results.get("folds"):
            self.add_heading("By fold")
            self.add_table([{k: v for k, v in row.items() if k != "checkpoint"} for row in folds])
        if results.get("num_skipped"):
            self.add_heading("Files that could not be read")
            rows = [{"file": name, "reason": why} for name, why in results["skipped"].items()]
            self.add_table(rows)
        self.write(self._folder / f"report_{self._split}.html")


def describe_metric(metric: Any, note: str = "") -> tuple[str, str]:
    """Return a metric's value and a note as texts.

    Args:
        metric: A number, None, or a mapping with `value` and the bounds `low` and `high` of its 95 % interval.
        note: What the note says besides the interval.
    """
    if not isinstance(metric, Mapping):
        metric = {"value": metric, "low": None}
    if metric["value"] is None:
        return "not defined", note
    low = metric["low"]
    interval = "" if low is None else f"95 % interval {low:.4f} to {metric['high']:.4f}"
    return f"{metric['value']:.4f}", "; ".join(text for text in (interval, note) if text)


def open_record(record: Record, value_range: ValueRange | None = None) -> NDArray[np.uint8]:
    """Return the pixels of a record's image, uint8 [h, w, 3], as the model sees values of more than 8 bits."""
    return open_image(read_source(record), value_range=value_range)


def make_sheet(
    pictures: Iterable[tuple[Callable[[], NDArray[np.uint8]], str]], count: int, **layout: Any
) -> bytes | None:
    """Return a contact sheet as PNG, None where no picture can be opened.

    Args:
        pictures: For each picture what opens it, and its caption; one that cannot be opened any more is left out.
        count: Most pictures that are shown.
        **layout: `columns` and `cell` of `contact_sheet`.
    """
    images: list[NDArray[np.uint8]] = []
    captions: list[str] = []
    for open_picture, caption in pictures:
        if len(images) == count:
            break
        try:
            images.append(open_picture())
        except ImageError:
            continue  # it was read once already, and has gone or changed since
        captions.append(caption)
    return draw_contact_sheet(images, captions, **layout) if images else None

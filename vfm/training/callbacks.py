"""Callbacks of every task: best checkpoint, images/s, list of unreadable files, predictions.csv."""

from __future__ import annotations

import csv
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from vfm_runtime.errors import VfmError

from vfm.training.adapter_file import AdapterWriter
from vfm.training.budget import CostMeter
from vfm.training.choosing import Patience
from vfm.training.ema import WeightEMA
from vfm.training.oom import MemoryAdvice
from vfm.training.ranks import gather_ranks
from vfm.training.saving import Preemption, build_checkpoints, is_default_checkpoint
from vfm.training.watchdog import StallWatch

MAX_UNREADABLE = 0.01
"""Largest fraction of a split's files that training goes on without."""

_SHOWN = 5


class UnreadableFilesError(VfmError, ValueError):
    """Too many files of the training data cannot be read."""


def get_output_dir(trainer: Trainer) -> Path:
    """Return the folder of this run: the logger's, or else the Trainer's root. Every rank must ask: it is broadcast."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def list_callbacks(
    trainer: Trainer, task: Any, *, patience: int | None, ema: float | None
) -> list[Callback]:
    """Return what every run gets; a callback of the same kind that the user set up takes the place of ours.

    The task has `skipped`, `monitor` and `monitor_mode`; `patience` counts validations without a better result.
    """
    added: list[Callback] = [Throughput(), task.skipped, PredictionWriter(), MemoryAdvice()]
    if type(trainer.progress_bar_callback) is TQDMProgressBar:
        added.append(ProgressBar())
    judged = trainer.limit_val_batches or not task.monitor.startswith("val/")
    monitor = task.monitor if judged else None
    if trainer.state.fn == TrainerFn.FITTING:
        added += [StallWatch(), AdapterWriter(), CostMeter()]
        if ema is not None:
            added.append(WeightEMA(ema))
        if patience is not None and monitor is not None:
            added.append(Patience(monitor, task.monitor_mode, patience))
        added.append(Preemption())  # last: it saves what those before it have counted
    present = {type(c) for c in trainer.callbacks}  # type: ignore[attr-defined]
    added = [c for c in added if type(c) not in present]
    saving = trainer.checkpoint_callbacks
    if saving and all(is_default_checkpoint(c) for c in saving):
        added += build_checkpoints(monitor, task.monitor_mode)
    return added


class ProgressBar(TQDMProgressBar):
    """Lightning's bar with whole images a second, and without the number of the run."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Return what stands behind the bar."""
        shown = dict(super().get_metrics(trainer, pl_module))
        shown.pop("v_num", None)
        if "images/s" in shown:
            shown["images/s"] = f"{shown['images/s']:,.0f}"
        return shown


class Throughput(Callback):
    """Shows and logs `images/s` of training, over all ranks, without the first batch of each epoch."""

    def __init__(self, seconds: float = 1.0) -> None:
        """Set the least time between two measurements."""
        self.seconds = seconds
        self._since: float | None = None
        self._images = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the pause since the last epoch."""
        self._since = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch."""
        now = time.perf_counter()
        if self._since is None:
            self._since, self._images = now, 0
            return
        self._images += len(batch["image"])
        if now - self._since >= self.seconds or trainer.is_last_batch:
            rate = self._images * trainer.world_size / (now - self._since)
            pl_module.log("images/s", rate, prog_bar=True, on_step=True, on_epoch=False)
            self._since, self._images = now, 0


class SkippedFiles(Callback):
    """Counts and lists the files that could not be read; ends training when there are too many.

    Attributes:
        files: For each split, the reason by file name.
    """

    def __init__(self) -> None:
        self.files: dict[str, dict[str, str]] = defaultdict(dict)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the batch's skipped files, and stop when they are more than 1 % of the split."""
        if batch["skipped"]:
            self.files["train"].update(batch["skipped"])
            self._require_readable(trainer, "train")

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Note the batch's skipped files."""
        self.files["val"].update(batch["skipped"])

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Note the batch's skipped files."""
        self.files["test"].update(batch["skipped"])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the ranks' lists, and write them."""
        for split in ("train", "val"):
            self.gather(trainer, split)
        for split in ("train", "val"):
            self._require_readable(trainer, split)

    def gather(self, trainer: Trainer, split: str) -> None:
        """Join the ranks' lists of a split, and write them to `skipped_<split>.csv`."""
        for files in gather_ranks(self.files[split]):
            self.files[split].update(files)
        if not self.files[split]:
            return
        path = get_output_dir(trainer) / f"skipped_{split}.csv"
        if trainer.is_global_zero:
            _write_rows(path, ("file", "reason"), sorted(self.files[split].items()))
            rank_zero_warn(
                f"{len(self.files[split])} files of '{split}' could not be read and were left out; see {path}."
            )

    def _require_readable(self, trainer: Trainer, split: str) -> None:
        files = self.files[split]
        if not files:
            return
        total = trainer.datamodule.count_files(split)  # type: ignore[attr-defined]
        if len(files) <= MAX_UNREADABLE * total:
            return
        listed = "\n".join(f"  {name}: {reason}" for name, reason in list(files.items())[:_SHOWN])
        raise UnreadableFilesError(
            f"{len(files)} of {total} files of '{split}' cannot be read, more than {MAX_UNREADABLE:.0%}:\n{listed}\n"
            "Mend or remove these files, then train again (--ckpt_path last.ckpt goes on from the last epoch)."
        )


class PredictionWriter(Callback):
    """Writes `predictions.csv`: the task's rows, and the reason for each file that could not be read."""

    def __init__(self) -> None:
        self._rows: list[tuple[str, ...]] = []
        self._tiles: dict[
            int, dict[str, Any]
        ] = {}  # predictions for parts of images, by their index

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start anew."""
        self._rows = []
        self._tiles = {}

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keep the batch's predictions."""
        task: Any = pl_module
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if outputs and data.tiling_in_use is not None:
            arrays = {name: values.cpu().numpy() for name, values in outputs.items()}
            for row, index in enumerate(batch["index"].tolist()):
                self._tiles[index] = {name: values[row] for name, values in arrays.items()}
        elif outputs:
            self._rows += task.list_predictions(batch, outputs)
        nothing = [""] * (len(task.prediction_columns) - 2)
        self._rows += [(name, *nothing, reason) for name, reason in batch["skipped"]]

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        rows = [row for rank in gather_ranks(self._rows) for row in rank]
        tiles = {index: row for rank in gather_ranks(self._tiles) for index, row in rank.items()}
        rows += _list_joined(trainer, pl_module, dict(sorted(tiles.items())))
        path = get_output_dir(trainer) / "predictions.csv"
        if trainer.is_global_zero:
            # A distributed sampler repeats images to fill up a rank, so an image may have its rows twice.
            columns: Any = pl_module.prediction_columns
            _write_rows(path, columns, sorted(set(rows)))
            rank_zero_info(f"Predictions of {len({row[0] for row in rows})} images: {path}")


def _list_joined(
    trainer: Trainer, task: Any, tiles: dict[int, dict[str, Any]]
) -> list[tuple[str, ...]]:
    """List the predictions for images whose parts were predicted one by one, in order."""
    if not tiles:
        return []
    records = [trainer.datamodule.records["predict"][index] for index in tiles]  # type: ignore[attr-defined]
    parts = [*tiles.values()]
    values = {name: [part[name] for part in parts] for name in parts[0]}
    batches = task.batch_rows(records, values)
    return [row for batch, answers in batches for row in task.list_predictions(batch, answers)]


def _write_rows(path: Path, header: tuple[str, ...], rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)

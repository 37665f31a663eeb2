"""What every task does that is validated and tested on a whole split at once."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from vfm.tasks.base import BaseTask
from vfm.tasks.labels import match_labels
from vfm.training import callbacks
from vfm.types import Batch


class EvaluatedTask(BaseTask):
    """Collects the answers of a split over batches and ranks, logs its figures, and writes them where asked for."""

    _columns: Tensor | None = None
    """For each label of the data its place among the model's."""

    @abstractmethod
    def evaluate(self, batch: Batch) -> None:
        """Keep the answers and losses of a batch that is not empty."""

    @abstractmethod
    def gather(self) -> Any:
        """The answers of all ranks, None where there are none; then starts anew."""

    @abstractmethod
    def figures(self, split: str, answers: Any) -> dict[str, float]:
        """The few figures that every validation logs, `loss` among them.

        Args:
            split: `val` or `test`.
            answers: Of `gather`.
        """

    @abstractmethod
    def write(self, folder: Path, split: str, answers: Any, more: dict[str, Any]) -> Path:
        """Write all figures of a split and their page; gives the path of `results.json`.

        Args:
            folder: Where the checkpoint lies.
            split: `val` or `test`.
            answers: Of `gather`.
            more: What goes into the JSON besides the figures.
        """

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the answers and losses of a batch."""
        if len(batch["image"]):
            self.evaluate(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the answers and losses of a batch."""
        if len(batch["image"]):
            self.evaluate(batch)

    def on_validation_epoch_start(self) -> None:
        """Match the data's labels to the model's."""
        self._match_labels()

    def on_test_epoch_start(self) -> None:
        """Match the data's labels to the model's."""
        self._match_labels()

    def on_validation_epoch_end(self) -> None:
        """Log the figures of the whole split."""
        self._finish("val", write=self.trainer.state.fn == TrainerFn.VALIDATING)

    def on_test_epoch_end(self) -> None:
        """Log the figures of the whole split, and write them."""
        self._finish("test", write=True)

    @property
    def columns(self) -> Tensor:
        """For each label of the data its place among the model's, int64 [C]."""
        assert self._columns is not None
        return self._columns

    def _match_labels(self) -> None:
        self.require_trained()
        columns = match_labels(self._datamodule(), self.labels, self.multilabel)
        self._columns = torch.tensor(columns, device=self.device)

    def _finish(self, split: str, *, write: bool) -> None:
        answers = self.gather()
        if self.trainer.sanity_checking or answers is None:
            return
        # The same on every rank, since each has gathered the whole split.
        for name, value in self.figures(split, answers).items():
            self.log(f"{split}/{name}", value, prog_bar=name != "loss", rank_zero_only=False)
        if write:
            self.skipped.gather(self.trainer, split)
            folder = callbacks.output_dir(self.trainer)
            if self.trainer.is_global_zero:
                self._write(split, answers, folder)

    def _write(self, split: str, answers: Any, folder: Path) -> None:
        skipped = self.skipped.files[split]
        checkpoint = self.trainer.ckpt_path or self.source
        more = {
            "checkpoint": str(checkpoint) if checkpoint else None,
            "num_skipped": len(skipped),
            "skipped": dict(skipped),
        }
        folder = Path(checkpoint).parent if checkpoint else folder
        rank_zero_info(f"Results: {self.write(folder, split, answers, more)}")

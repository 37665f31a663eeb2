"""One label an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F

from vfm.metrics import accuracy, classification_results, confusion_matrix, macro_f1
from vfm.models.heads import ClassificationHead, LinearHead
from vfm.preprocess import Fit
from vfm.tasks import callbacks
from vfm.tasks.base import BaseTask
from vfm.tasks.optim import Optim
from vfm.tasks.results import Collector, write_results
from vfm.types import Batch, Raw


class LabelError(ValueError):
    """The data has labels that the model was not trained for."""


class ClassificationTask(BaseTask):
    """Fine-tunes a backbone and a head to one label an image.

    Logs `train/loss`, `val/loss`, `val/accuracy`, `val/macro_f1`. Validating or testing a checkpoint writes
    `results.json` and a confusion matrix beside it.
    """

    monitor = "val/accuracy"
    monitor_mode = "max"

    def __init__(
        self,
        backbone: str,
        head: ClassificationHead | None = None,
        *,
        pretrained: bool = True,
        weights: Path | None = None,
        image_size: int | None = None,
        fit: Fit | None = None,
        drop_path: float = 0.0,
        backbone_args: dict[str, Any] | None = None,
        optim: Optim = Optim(),
        label_smoothing: float = 0.0,
    ) -> None:
        """Build the backbone; the head's layers follow when the labels are known.

        Args:
            backbone: A name of timm, with or without a tag of weights.
            head: Any ClassificationHead, also your own; a LinearHead by default.
            pretrained: Fetch the weights that timm names for the backbone.
            weights: A local file of backbone weights, in place of timm's.
            image_size: Side of the square input in pixels; the backbone's own by default.
            fit: How other aspect ratios are met: crop, squash or letterbox; the backbone's own way by default.
            drop_path: Rate of stochastic depth in the backbone.
            backbone_args: More arguments for timm's create_model, such as embed_dim or depth.
            optim: Optimiser and schedule.
            label_smoothing: Share of the target spread over all labels, 0..1.
        """
        super().__init__(
            backbone,
            head if head is not None else LinearHead(),
            pretrained=pretrained,
            weights=weights,
            image_size=image_size,
            fit=fit,
            drop_path=drop_path,
            backbone_args=backbone_args,
            optim=optim,
        )
        self.label_smoothing = label_smoothing
        self._collector = Collector()
        self._order: Tensor | None = None

    def loss(self, raw: Raw, target: Tensor) -> Tensor:
        """Cross-entropy, summed over the batch."""
        return F.cross_entropy(
            raw["logits"].float(), target, label_smoothing=self.label_smoothing, reduction="sum"
        )

    def on_validation_epoch_start(self) -> None:
        """Match the data's labels to the model's."""
        self._match_labels()

    def on_test_epoch_start(self) -> None:
        """Match the data's labels to the model's."""
        self._match_labels()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the scores of a batch, and log its loss."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the scores of a batch, and log its loss."""
        self._evaluate(batch, "test")

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole split."""
        self._finish("val", write=self.trainer.state.fn == TrainerFn.VALIDATING)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole split, and write them."""
        self._finish("test", write=True)

    def _match_labels(self) -> None:
        self.require_trained()
        labels = self._datamodule().labels
        unknown = [name for name in labels if name not in self.labels]
        if unknown:
            raise LabelError(
                f"The data has {len(unknown)} labels that the model was not trained for: {unknown[:5]}. "
                f"The model knows {len(self.labels)}: {list(self.labels[:10])}. "
                "Leave these folders out, or train with them."
            )
        order = [self.labels.index(name) for name in labels]
        self._order = torch.tensor(order, device=self.device)

    def _evaluate(self, batch: Batch, split: str) -> None:
        num_images = len(batch["image"])
        if num_images == 0 or self._order is None:
            return
        target = self._order[batch["label"]]
        raw = self(batch["image"])
        loss = self.loss(raw, target) / num_images
        self.log(f"{split}/loss", loss, batch_size=num_images, on_epoch=True, sync_dist=True)
        self._collector.add(self.head.decode(raw)["scores"], target, batch["index"])

    def _finish(self, split: str, *, write: bool) -> None:
        scores, target = self._collector.gather()
        if self.trainer.sanity_checking or len(target) == 0:
            return
        matrix = confusion_matrix(target, scores.argmax(1), len(self.labels))
        values = {"accuracy": float(accuracy(matrix)), "macro_f1": float(macro_f1(matrix))}
        for name, value in values.items():
            # The same on every rank, since each has gathered the whole split.
            self.log(f"{split}/{name}", value, prog_bar=True, rank_zero_only=False)
        if write and self.trainer.is_global_zero:
            self._write(split, scores, target)

    def _write(self, split: str, scores: np.ndarray, target: np.ndarray) -> None:
        results = classification_results(scores, target, self.labels)
        skipped = self.skipped.files[split]
        checkpoint = self.trainer.ckpt_path or self.source
        results |= {
            "checkpoint": str(checkpoint) if checkpoint else None,
            "num_skipped": len(skipped),
            "skipped": dict(skipped),
        }
        folder = Path(checkpoint).parent if checkpoint else callbacks.output_dir(self.trainer)
        path = write_results(folder, split, results, self.labels)
        rank_zero_info(f"Results: {path}")

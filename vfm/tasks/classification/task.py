"""One label an image, or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from vfm.data import ImageData
from vfm.data.detection.base import BoxData
from vfm.data.mixing import Mixing
from vfm.losses import BinaryCrossEntropy, CrossEntropy, Loss
from vfm.losses.classification import one_hot
from vfm.models.heads import ClassificationHead, LinearHead
from vfm.preprocess import Fit
from vfm.tasks.base import BaseTask
from vfm.tasks.classification.results import Answers, Collector, metrics_of, write_results
from vfm.tasks.labels import ClassWeights, LabelError, class_weights_of
from vfm.tasks.options import TaskOptions
from vfm.types import Batch, Raw


class ClassificationTask(BaseTask):
    """Adapts a backbone and a head to label images.

    Logs `train/loss`, `val/loss`, `val/accuracy` and `val/macro_f1`, or with `multilabel` `val/mAP` and
    `val/macro_f1`. Validating or testing a checkpoint writes `results.json` and a report beside it.
    """

    monitor = "val/accuracy"
    monitor_mode = "max"

    def __init__(
        self,
        backbone: str,
        head: ClassificationHead | None = None,
        *,
        image_size: int | None = None,
        fit: Fit | None = None,
        probe_first: bool = False,
        cache_features: bool = True,
        multilabel: bool = False,
        loss: Loss | None = None,
        class_weights: ClassWeights = None,
        mixing: Mixing = Mixing(),
        **options: Unpack[TaskOptions],
    ) -> None:
        """Build the backbone; the head's layers follow when the labels are known.

        Args:
            backbone: A name of timm, with or without a tag of weights.
            head: Any ClassificationHead, also your own; a LinearHead by default.
            image_size: Side of the square input in pixels; the backbone's own by default.
            fit: How other aspect ratios are met: crop, squash or letterbox; the backbone's own way by default.
            probe_first: Solve the head on the untouched features before the backbone learns (LP-FT; Kumar et al.,
                2022), and take a tenth of the usual learning rate.
            cache_features: Keep the features of a frozen backbone on disk, so that epochs after the first cost next to
                nothing; needs --data.augment none and no mixing.
            multilabel: Whether several labels, or none, may apply to an image; their scores are then independent.
            loss: CrossEntropy by default, with multilabel BinaryCrossEntropy; or any other Loss.
            class_weights: How much each class counts in training: `balanced` makes rare ones count as much as
                common ones; or a number by class name, 1 for classes that are not named.
            mixing: Mixup and CutMix of training batches.
            **options: As for every task.
        """
        super().__init__(
            backbone,
            head if head is not None else LinearHead(),
            image_size=image_size,
            fit=fit,
            probe_first=probe_first,
            cache_features=cache_features and not (mixing.mixup or mixing.cutmix),
            **options,
        )
        self.kind = "multilabel" if multilabel else "classification"
        cast(ClassificationHead, self.head).multilabel = multilabel
        if multilabel:
            self.monitor = "val/mAP"
        self.criterion = loss or (BinaryCrossEntropy() if multilabel else CrossEntropy())
        self.criterion.multilabel = multilabel
        self.mixing = mixing
        self._class_weights = class_weights
        self._weights: Tensor | None = None
        self._collector = Collector()

    def loss(self, raw: Raw, target: Tensor) -> Tensor:
        """The loss, summed over the batch; classes are weighted in training alone."""
        return self._losses(raw, target).sum()

    def _losses(self, raw: Raw, target: Tensor) -> Tensor:
        """The loss of each image, [N]."""
        weights = self._weights if self.training else None
        losses: Tensor = self.criterion(raw["logits"].float(), target, weights)
        return losses

    def take_labels(self, data: ImageData) -> None:
        """Make the head's layers, and weigh the classes."""
        if isinstance(data, BoxData):
            raise TypeError(
                f"{type(self).__name__} labels whole images, but {type(data).__name__} has boxes. "
                "Give --model DetectionTask, or data with labels of images."
            )
        if data.multilabel != self.multilabel:
            kind = "several labels" if data.multilabel else "one label"
            raise LabelError(
                f"The data has {kind} an image, the task has multilabel {self.multilabel}. "
                f"Set --model.multilabel {str(data.multilabel).lower()}, or give other data."
            )
        super().take_labels(data)
        self._weights = class_weights_of(self._class_weights, data)

    def on_fit_start(self) -> None:
        """Bring the class weights to where the model is, before anything learns."""
        if self._weights is not None:
            self._weights = self._weights.to(self.device)
        super().on_fit_start()

    def mix(self, images: Tensor, target: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Blend the batch's images and labels, as `mixing` says."""
        if not (self.mixing.mixup or self.mixing.cutmix):
            return images, target
        key = (self._datamodule().seed, self.current_epoch, batch_idx, self.global_rank)
        return self.mixing(images, one_hot(target, len(self.labels)), key)

    def evaluate(self, batch: Batch) -> None:
        """Keep the scores and losses of a batch."""
        target = self._target(batch["label"])
        raw = self.raw(batch)
        scores = self.head.decode(raw)["scores"]
        self._collector.add(scores, target, batch["index"], self._losses(raw, target))

    def gather(self) -> Answers | None:
        """The answers of all ranks."""
        answers = self._collector.gather()
        return answers if len(answers.target) else None

    def figures(self, split: str, answers: Answers) -> dict[str, float]:
        """Loss, accuracy or mean average precision, macro F1."""
        return {"loss": float(answers.loss.mean()), **metrics_of(answers, self.multilabel)}

    def write(self, folder: Path, split: str, answers: Answers, more: dict[str, Any]) -> Path:
        """Write all figures of a split, its page, pictures and list of mistakes."""
        return write_results(folder, split, answers, self.labels, self._datamodule(), more)

    def _target(self, label: Tensor) -> Tensor:
        """The data's labels in the order of the model's."""
        if not self.multilabel:
            return self.columns[label]
        target = torch.empty_like(label)
        target[:, self.columns] = label
        return target

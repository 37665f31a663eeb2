"""DetectionTask: finds objects, their boxes and classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
from torch import Tensor
from torch.nn import functional as F
from vfm_runtime.errors import MismatchError, OptionError

from vfm.data import ImageData
from vfm.data.auto import open_boxes
from vfm.data.dataset import Record, list_labels
from vfm.data.detection.base import BoxData
from vfm.losses import DenseLoss, DetectionLoss, Loss
from vfm.metrics.detection import DetectedBoxes, TrueBoxes
from vfm.models.backbone import ImageSize
from vfm.models.heads import DenseHead, DetectionHead, DetrHead
from vfm.spec import Spec
from vfm.tasks.base import BaseTask
from vfm.tasks.detection.results import compute_box_metrics, join_boxes, write_box_results
from vfm.tasks.detection.validation import BoxValidation
from vfm.tasks.labeled_images import LabeledImages, OpenedImages
from vfm.tasks.options import TASK_DEFAULTS, TaskOptions
from vfm.tasks.results import SplitPredictions
from vfm.training.optim import Optim
from vfm.types import Batch, Objects, Target, require_target

_OPTIM = Optim(
    lr=5e-4, weight_decay=1e-4, max_grad_norm=0.1, backbone_factor=0.2, freeze_ratio=0.02, ema=0.998
)
_LEAST_SCORE = 0.01


class DetectionTask(BaseTask):
    """Adapts a backbone and a head to find objects.

    Logs `train/loss`, `val/loss`, `val/AP` and `val/AP50` of COCO. Validating or testing a checkpoint writes
    `results.json` and a report with pictures beside it.
    """

    kind = "detection"
    monitor = "val/AP"
    monitor_mode = "max"
    card_metrics = dict.fromkeys(("AP", "AP50"), "num_samples")
    option_defaults: ClassVar[TaskOptions] = {**TASK_DEFAULTS, "optim": _OPTIM, "min_steps": 0}
    prediction_columns = ("path", "xmin", "ymin", "xmax", "ymax", "label", "score", "error")

    def __init__(
        self,
        backbone: str,
        head: DetrHead | DenseHead | DetectionHead | None = None,
        *,
        image_size: ImageSize | None = None,
        fit: Literal["squash", "letterbox"] = "squash",
        loss: DetectionLoss | DenseLoss | Loss | None = None,
        multi_scale: float = 0.0,
        **options: Unpack[TaskOptions],
    ) -> None:
        """Build the backbone; the head's layers follow when the labels are known.

        Args:
            backbone: A name of timm, with or without a tag of weights.
            head: Any DetectionHead, also your own; a DetrHead of size nano by default.
            image_size: Side of the square input in pixels, or height and width; multiples of the backbone's stride.
            fit: How other aspect ratios are met: squash or letterbox.
            loss: DetectionLoss by default, which weighs classes, boxes and overlaps, and DenseLoss for a DenseHead; or
                any other Loss of the head's outputs.
            multi_scale: Train on inputs up to this fraction smaller and larger than `image_size`, such as 0.3; the
                backbone must take several sizes (--model.backbone_args.dynamic_img_size true for a ViT).
            **options: Options of every task.

        Raises:
            ValueError: The size does not fit the backbone's stride, or an argument lies outside its range.
        """
        super().__init__(backbone, head or DetrHead(), image_size=image_size, fit=fit, **options)
        if fit not in ("squash", "letterbox"):
            raise OptionError(
                f"fit is '{fit}', which would cut objects away. Choices: squash, letterbox (--model.fit)."
            )
        if not 0 <= multi_scale < 1:
            raise OptionError(f"multi_scale is {multi_scale}. Give a share from 0 to below 1.")
        self._stride = stride = max(self.backbone.info.map_strides)
        height, width = self.preprocess.size
        if height % stride or width % stride:
            near = [max(1, round(n / stride)) * stride for n in (height, width)]
            raise OptionError(
                f"The input of {height} x {width} pixels is no multiple of the backbone's stride of {stride}. "
                f"Give --model.image_size {near[0] if near[0] == near[1] else near}."
            )
        dense = isinstance(self.head, DenseHead)
        self.criterion = loss or (DenseLoss() if dense else DetectionLoss())
        self._multi_scale = multi_scale

    def augment_batch(
        self, images: Tensor, target: Target, batch_idx: int
    ) -> tuple[Tensor, Target]:
        """Scale the images to the size that is this batch's turn: a function of seed, epoch and batch."""
        if not self._multi_scale:
            return images, target
        draw = np.random.default_rng([self._require_data().seed, self.current_epoch, batch_idx])
        factor = 1 + self._multi_scale * (2 * draw.random() - 1)
        size = [max(1, round(n * factor / self._stride)) * self._stride for n in images.shape[2:]]
        return F.interpolate(images, size=size, mode="bilinear", antialias=True), target

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Return `boxes` [N, K, 4], `labels` and `scores` [N, K], and the `loss` of all objects."""
        objects = require_target(batch, Objects, self)
        target = objects._replace(labels=self.columns[objects.labels])
        raw = self.compute_raw(batch)
        boxes = self.head.decode(raw, batch["geometry"])
        return {**boxes, "loss": self.compute_loss(raw, {**batch, "target": target})}

    def compute_metrics(self, split: str, predictions: SplitPredictions) -> dict[str, float]:
        """Return loss by object, AP and AP50."""
        _, truth, detections = self._join_boxes(split, predictions)
        num_objects = max(sum(len(true.labels) for true in truth), 1)
        metrics = compute_box_metrics(truth, detections, len(self.labels))
        return {"loss": predictions.sums["loss"] / num_objects, **metrics}

    def count_judged(self, data: ImageData) -> int:
        """Return the number of boxes in the val split."""
        return sum(len(list_labels(record)) for record in data.records.get("val", []))

    def write_results(
        self, folder: Path, split: str, predictions: SplitPredictions, more: dict[str, Any]
    ) -> None:
        """Write all metrics of a split, its page and pictures."""
        pairs = self._join_boxes(split, predictions)
        write_box_results(folder, split, *pairs, self.labels, more)

    def _join_boxes(
        self, split: str, predictions: SplitPredictions
    ) -> tuple[list[Record], list[TrueBoxes], list[DetectedBoxes]]:
        records = [self._require_data().records[split][i] for i in predictions.position]
        return records, *join_boxes(records, predictions.rows, self.columns.tolist())

    def list_predictions(self, batch: Batch, answers: dict[str, Tensor]) -> list[tuple[str, ...]]:
        """Return a row for each box of a score of 0.01 or more, in pixels of the original image."""
        rows: list[tuple[str, ...]] = []
        parts = (answers[name].cpu().tolist() for name in ("boxes", "labels", "scores"))
        for name, *detections in zip(batch["name"], *parts, strict=True):
            for box, label, score in zip(*detections, strict=True):
                if score >= _LEAST_SCORE:
                    corners = [f"{value:.2f}" for value in box]
                    rows.append((name, *corners, self.labels[label], f"{score:.6f}", ""))
        return rows

    def open_data(self, path: Path, training: Spec) -> LabeledImages:
        """Read images with boxes in any layout, with the tiles of the training's."""
        return LabeledImages.select_evaluation(open_boxes(path, training=training), path)

    def open_validation(self, images: OpenedImages) -> BoxValidation:
        """Return images that are judged by COCO's average precision."""
        return BoxValidation(self.labels, images)

    def _require_data(self) -> ImageData:
        data = super()._require_data()
        if not isinstance(data, BoxData):
            raise MismatchError(
                f"DetectionTask learns from boxes, but {type(data).__name__} has none. "
                "Give --data DetectionData with --data.root."
            )
        return data

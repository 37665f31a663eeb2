"""DetectionTask: finds objects, their boxes and classes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Unpack

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from vfm_runtime.errors import MismatchError, OptionError
from vfm_runtime.tasks.base import TaskType
from vfm_runtime.tasks.detection import BOX_EMBEDDINGS
from vfm_runtime.tasks.embedding import EmbeddingSpec
from vfm_runtime.tasks.tiling import Tiling

from vfm.data import DetectionData, ImageData
from vfm.data.auto import open_boxes, take_options
from vfm.data.detection.base import BoxData
from vfm.data.detection.tiles import group_tiles
from vfm.data.records import Record, list_labels
from vfm.losses import DenseLoss, DetectionLoss, Loss
from vfm.models.backbone import ImageSize
from vfm.models.heads import DenseHead, DetectionHead, DetrHead
from vfm.models.heads.head_weights import choose_start, load_head_weights
from vfm.models.tensors import compute_checksum
from vfm.preprocess import Preprocess
from vfm.spec import Spec
from vfm.tasks.base import BaseTask
from vfm.tasks.calibration import Calibration
from vfm.tasks.detection.results import (
    compute_box_metrics,
    join_boxes,
    limit_boxes,
    merge_detections,
    warn_of_crowds,
    warn_of_queries,
    write_box_results,
)
from vfm.tasks.detection.validation import BoxValidation
from vfm.tasks.labeled_images import LabeledImages, OpenedImages
from vfm.tasks.options import TASK_DEFAULTS, TaskOptions
from vfm.tasks.results import SplitPredictions
from vfm.training.fingerprint import compute_fingerprint
from vfm.training.optim import Optim
from vfm.types import Batch, Objects, StepKey, Target, require_target

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
    pipeline_tag = "object-detection"
    head: DetectionHead
    monitor = "val/AP"
    monitor_mode = "max"
    enough_steps = 1000
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
        lp_ft: bool = False,
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
            lp_ft: Solve the class layer of a DenseHead on points in the training boxes before the first step.
            **options: Options of every task.

        Raises:
            ValueError: The size does not fit the backbone's stride, or an argument lies outside its range.
        """
        super().__init__(
            backbone, head or DetrHead(), image_size=image_size, fit=fit, lp_ft=lp_ft, **options
        )
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

    def augment_batch(self, images: Tensor, target: Target, key: StepKey) -> tuple[Tensor, Target]:
        """Scale the images to the size that is this batch's turn: a function of seed, epoch and batch."""
        if not self._multi_scale:
            return images, target
        draw = np.random.default_rng(key[:3])
        factor = 1 + self._multi_scale * (2 * draw.random() - 1)
        size = [max(1, round(n * factor / self._stride)) * self._stride for n in images.shape[2:]]
        return F.interpolate(images, size=size, mode="bilinear", antialias=True), target

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Return `boxes` [N, K, 4], `labels` and `scores` [N, K], and the `loss` of all objects."""
        objects = require_target(batch, Objects, self)
        target = objects._replace(labels=self.columns[objects.labels])
        raw = self.compute_raw(batch)
        boxes = self.head.decode(raw, batch["geometry"])
        boxes.pop(BOX_EMBEDDINGS, None)  # large, and of no use to metrics
        return {**boxes, "loss": self.compute_loss(raw, {**batch, "target": target})}

    def compute_metrics(self, split: str, predictions: SplitPredictions) -> dict[str, float]:
        """Return loss by object, AP and AP50."""
        records = self._list_records(split, predictions)
        _, truth, detections = join_boxes(records, predictions.rows, self.columns.tolist())
        num_objects = max(sum(len(list_labels(record)) for record in records), 1)
        limit = limit_boxes(records)
        metrics = compute_box_metrics(truth, detections, len(self.labels), limit)
        return {"loss": predictions.sums["loss"] / num_objects, **metrics}

    def count_judged(self, data: ImageData) -> int:
        """Return the number of boxes in the val split."""
        return sum(len(list_labels(photo)) for photo, _ in group_tiles(data.records.get("val", [])))

    def write_results(
        self, folder: Path, split: str, predictions: SplitPredictions, more: dict[str, Any]
    ) -> None:
        """Write all metrics of a split, its page and pictures."""
        records = self._list_records(split, predictions)
        photos, truth, detections = join_boxes(records, predictions.rows, self.columns.tolist())
        limit = limit_boxes(records)
        warn_of_queries(records, self.head.max_objects)
        warn_of_crowds(records)
        write_box_results(
            folder,
            split,
            photos,
            truth,
            detections,
            self.labels,
            more,
            limit,
            self.preprocess.value_range,
        )

    def _list_records(self, split: str, predictions: SplitPredictions) -> list[Record]:
        return [self._require_data().records[split][i] for i in predictions.position]

    def setup(self, stage: str) -> None:
        """Warn, before a training, where images show more objects than can be found."""
        super().setup(stage)
        if stage == "fit":
            records = self._require_data().records
            warn_of_queries([*records["train"], *records.get("val", [])], self.head.max_objects)
            warn_of_crowds(records.get("val", []))

    def take_labels(self, data: ImageData) -> None:
        """Make the head's layers, unless it has them, and start them from those of a head that learned before."""
        is_new = not self.labels
        super().take_labels(data)
        if is_new and isinstance(self.head, DenseHead):
            is_pretrained = self.backbone.report is not None
            path, text = choose_start(self.head, self.backbone.name, is_pretrained=is_pretrained)
            if path is not None:
                text = load_head_weights(self.head, path)
            if text:
                rank_zero_info(text)

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

    def batch_rows(
        self, records: Sequence[Record], rows: Mapping[str, Sequence[NDArray[Any]]]
    ) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        """Yield one image at a time; the boxes of tiles are merged."""
        for photo, indices in group_tiles(records):
            boxes = merge_detections([records[i] for i in indices], rows, indices)
            names = ("boxes", "labels", "scores")
            answers = {k: torch.from_numpy(v)[None] for k, v in zip(names, boxes, strict=True)}
            yield {"name": [photo.name]}, answers

    def open_data(self, path: Path, training: Spec) -> LabeledImages:
        """Read images with boxes in any layout, with the model's tiles."""
        data = open_boxes(path, training=training)
        data.preprocess = self.preprocess
        return LabeledImages.select_evaluation(data, path)

    def complete_rules(self, rules: dict[str, Any] | None) -> dict[str, Any] | None:
        """Add the ids that the COCO file of the training has for the labels, where they are not 1, 2, 3 and so on."""
        splits = (self._data or {}).get("splits") or {}
        ids = splits.get("category_ids") or {}
        if not set(self.labels) <= set(ids):
            return rules
        return (rules or {}) | {"category_ids": [ids[label] for label in self.labels]}

    def bind_type(self) -> TaskType:
        """Return the task on the side of production, with the model's tiles."""
        task_type = super().bind_type()
        task_type.tiling = self.preprocess.tiles
        return task_type

    def read_preprocess(self, entry: Mapping[str, Any]) -> Preprocess:
        """Return the preprocessing of a checkpoint; earlier versions kept its tiles with the data alone."""
        preprocess = super().read_preprocess(entry)
        options = take_options(
            (entry["data"] or {}).get("spec"), DetectionData, ("tile", "tile_overlap")
        )
        if preprocess.tiles is None and (side := options.get("tile")) is not None:
            preprocess = preprocess.add_tiles(Tiling(side, options.get("tile_overlap", 0.2)))
        return preprocess

    @property
    def unshared_reason(self) -> str | None:  # type: ignore[override]
        """Why the model needs a backbone of its own."""
        return None if self.preprocess.tiles is None else "cuts images into tiles"

    @property
    def serving_warning(self) -> str | None:  # type: ignore[override]
        """Tell whoever serves the bare graphs that they take tiles."""
        if self.preprocess.tiles is None:
            return None
        return (
            "takes one tile at a time: cut images, and merge the boxes of their tiles, as 'tiles' in vfm.json of the "
            "bundle says. `vfm serve` and vfm-runtime do it by themselves."
        )

    def describe_rules(
        self, rules: Mapping[str, Any] | None, calibration: Calibration | None
    ) -> list[str]:
        """Return the lines of the card on tiles, and on when the model is sure."""
        rules = {name: value for name, value in (rules or {}).items() if name != "category_ids"}
        lines = super().describe_rules(rules or None, calibration)
        if (tiles := self.preprocess.tiles) is None:
            return lines
        text = (
            f"Images larger than {1.5 * tiles.side:g} pixels are cut into tiles of {tiles.side}, which overlap by at "
            f"least {tiles.overlap:g} of their side, and their boxes are merged. At most {tiles.max_tiles:,} tiles."
        )
        return ["## Tiles", "", text, "", *lines]

    def describe_box_embedding(self) -> EmbeddingSpec | None:
        """Return what a dense head's embeddings of boxes are made of, with the fingerprint of model and head."""
        if not self.head.embeds_boxes:
            return None
        fingerprint = compute_fingerprint(self.backbone, self.preprocess)
        text = fingerprint + compute_checksum(self.head.state_dict())
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:32]
        return EmbeddingSpec(BOX_EMBEDDINGS, "boxes", True, fingerprint)

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

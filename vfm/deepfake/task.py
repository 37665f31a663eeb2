"""Deepfake detection task: real or fake images, and the videos that they are frames of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Unpack, cast

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import ArrayLike
from torch import Tensor
from torch.nn import functional as F
from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.deepfake.evidence import sigmoid
from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.errors import MismatchError

from vfm.data import ImageData
from vfm.deepfake import calibrate, export
from vfm.deepfake.crop_check import require_same_crop
from vfm.deepfake.data.base import DeepfakeImages
from vfm.deepfake.data.record import FAKE
from vfm.deepfake.head import DeepfakeHead
from vfm.deepfake.loss import DeepfakeLoss
from vfm.deepfake.metrics import compute_auc, select_method
from vfm.deepfake.operating_point import OPERATING_POINT, OperatingPoint
from vfm.deepfake.results import join_records, write_deepfake_results
from vfm.deepfake.target import DeepfakeTarget
from vfm.deepfake.validation import DeepfakeValidation
from vfm.losses import Loss
from vfm.models.backbone import ImageSize
from vfm.preprocess import Fit
from vfm.spec import Spec
from vfm.tasks.base import BaseTask
from vfm.tasks.calibration import (
    Calibration,
    CalibrationOptions,
    CalibrationResult,
)
from vfm.tasks.group_fit import GroupFit
from vfm.tasks.labeled_images import LabeledImages, OpenedImages, ValidationError
from vfm.tasks.options import TASK_DEFAULTS, TaskOptions
from vfm.tasks.results import SplitPredictions
from vfm.tasks.validation import Run
from vfm.training.checkpoint import KEY, CheckpointError
from vfm.training.optim import Optim
from vfm.types import Batch, Raw, require_target

_OPTIM = Optim(lr=3e-4, weight_decay=0.0)
_INVERTED = 0.4
"""Video AUC below which a model is not merely weak."""


class DeepfakeTask(BaseTask):
    """Adapts a backbone to tell forged images from real ones, and to show where they were forged.

    By default the norm layers alone learn, on the direction of the pooled feature (GenD; Yermakov et al., 2025).

    Logs `train/loss` and its parts, `val/loss`, `val/video_auc`, `val/macro_auc` (the mean over methods) and
    `val/frame_auc`. Validating or testing a checkpoint writes `results.json` and a report beside it.

    Attributes:
        crop: How the images of its training were cut out, which is part of the model; None before training.
        methods: Names of the methods of the fakes that it was trained on.
    """

    kind = "deepfake"
    option_defaults: ClassVar[TaskOptions] = {**TASK_DEFAULTS, "adapt": "ln", "optim": _OPTIM}
    monitor = "val/video_auc"
    monitor_mode = "max"
    graph_divides_logits = False  # the pipeline does, after it has averaged over a video
    unshared_reason = export.UNSHARED
    reference_refusal = export.NO_REFERENCE
    calibration_options = calibrate.OPTIONS
    card_metrics: Mapping[str, str] = MappingProxyType(
        {"video_auc": "num_videos", "macro_auc": "num_videos", "frame_auc": "num_samples"}
    )
    serving_comment = export.SERVING_COMMENT
    serving_warning = export.SERVING_WARNING

    def __init__(
        self,
        backbone: str,
        head: DeepfakeHead | None = None,
        *,
        image_size: ImageSize | None = None,
        fit: Fit = "squash",
        loss: DeepfakeLoss | Loss | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        """Build the backbone; the head's layers follow when the labels are known.

        Args:
            backbone: A name of timm, with or without a tag of weights.
            head: DeepfakeHead by default, or one with other arguments.
            image_size: Side of the square input in pixels, or height and width; the backbone's own by default.
            fit: How other aspect ratios than the input's are met: crop, squash or letterbox. Crops are squares; squash
                shows all of them, where a backbone's own way may cut their edges off.
            loss: DeepfakeLoss by default, which weighs its parts; or any other Loss of the head's outputs.
            **options: Options that every task has.
        """
        super().__init__(
            backbone,
            head if head is not None else DeepfakeHead(),
            image_size=image_size,
            fit=fit,
            **options,
        )
        self.criterion = loss or DeepfakeLoss()
        self.crop: CropSpec | None = None
        self.methods: tuple[str, ...] = ()

    @property
    def judges_all_faces(self) -> bool:
        """Whether all faces of a frame are shown, so that the most fake one stands for it."""
        return self.crop is not None and self.crop.policy == "all"

    @property
    def decision(self) -> Decision:
        """Temperature and thresholds of the `operating_point.json` beside the checkpoint, or those of no calibration.

        Raises:
            CheckpointError: The file is damaged.
        """
        return self._read_point().decision

    def define_group_rules(self) -> GroupFit | None:
        """Thresholds by group of the same file; None where it has none.

        Raises:
            CheckpointError: The file is damaged.
        """
        return self._read_point().groups

    def _read_point(self) -> OperatingPoint:
        path = self.source.parent / OPERATING_POINT if self.source is not None else None
        if path is None or not path.is_file():
            return OperatingPoint(Decision())
        try:
            return OperatingPoint.read(path)
        except ValueError as error:
            raise CheckpointError(
                f"{path} is no operating point: {error}. Write it anew (vfm calibrate {self.source} DATA), or remove "
                "it."
            ) from error

    def define_rules(self) -> dict[str, Any]:
        """How crops are made and how verdicts are reached, as plain values.

        Raises:
            CheckpointError: It has not been trained, or its operating point is damaged.
        """
        self.require_trained()
        assert self.crop is not None  # known with the labels
        return {"crop": self.crop.to_dict(), "decision": self.decision.to_dict()}

    def setup(self, stage: str) -> None:
        """Take labels, crop specification and the names of the methods from the data.

        Raises:
            CheckpointError: The data was cut out in another way than the model's training data.
        """
        super().setup(stage)
        data = self._require_data()
        if self.crop is not None:
            require_same_crop(data.crop, self.crop)
        if stage == "fit":
            self.crop = data.crop
            deepfakes = {r.item.method for r in data.list_records("train") if r.item.label == FAKE}
            self.methods = tuple(sorted(deepfakes))

    def on_train_outputs(self, raw: Raw) -> None:
        """Take the features of the batch into the head's memory bank."""
        cast(DeepfakeHead, self.head).update_memory_bank(raw["feature"])

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Return `logits` and `distances` [N], and the cross-entropy: the part of the loss that an image has alone."""
        raw = self.compute_raw(batch)
        answers = self.head.decode(raw)
        target = require_target(batch, DeepfakeTarget, self)
        loss = F.binary_cross_entropy_with_logits(
            raw["logits"].float(), target.label.float(), reduction="sum"
        )
        return {"logits": answers["logits"], "distances": answers["distances"], "loss": loss}

    def compute_metrics(self, split: str, predictions: SplitPredictions) -> dict[str, float]:
        """Loss by image, and the area under the ROC curve: of videos, averaged over methods, of single images.

        An area is NaN where all images seen are real, or all fake.
        """
        records = self._require_data().records[split]
        scored = join_records(predictions, records, by_frame=self.judges_all_faces)
        videos = scored.videos
        methods = {key[:2] for key, fake in zip(videos.keys, videos.fake, strict=True) if fake}
        chosen = [select_method(videos, *name) for name in sorted(methods)]
        by_method = [_compute_area(videos.logits[rows], videos.fake[rows]) for rows in chosen]
        areas = {
            "video_auc": _compute_area(videos.logits, videos.fake),
            "macro_auc": float(np.mean(by_method or [math.nan])),
            "frame_auc": _compute_area(scored.logits, scored.labels),
        }
        num_fakes, num_reals = int(videos.fake.sum()), int((~videos.fake).sum())
        # Far below chance is what a few videos do not explain: twice the error of the Mann-Whitney statistic of equals.
        error = math.sqrt((num_fakes + num_reals + 1) / max(12 * num_fakes * num_reals, 1))
        if areas["video_auc"] < min(_INVERTED, 0.5 - 2 * error):
            rank_zero_warn(
                f"The video AUC on {split} is {areas['video_auc']:.3f}, far below chance: real videos look more fake "
                "than fake ones. Labels of this data or of the training data may be inverted (fake is 1); look at a "
                "few images of each."
            )
        return {"loss": predictions.sums["loss"] / len(predictions.position), **areas}

    def count_judged(self, data: ImageData) -> int:
        """Return the number of videos in the val split."""
        return len({record.groups[:3] for record in data.records.get("val", [])})  # see GROUPS

    def write_results(
        self, folder: Path, split: str, predictions: SplitPredictions, more: dict[str, Any]
    ) -> None:
        """Write all metrics of a split and their page."""
        data = self._require_data()
        write_deepfake_results(
            folder,
            split,
            predictions,
            data.records[split],
            more,
            by_frame=self.judges_all_faces,
            data_root=getattr(data, "root", None),
            trained_on=self.methods,
            value_range=self.preprocess.value_range,
        )

    def list_predictions(self, batch: Batch, answers: dict[str, Tensor]) -> list[tuple[str, ...]]:
        """A row for each image: its label by the operating point, and the probability that it is fake."""
        rules = self.decision
        rows: list[tuple[str, ...]] = []
        for name, logit in zip(batch["name"], answers["logits"].tolist(), strict=True):
            value = logit / rules.temperature
            label = self.labels[int(value > rules.limit)]
            rows.append((name, label, f"{sigmoid(value):.6f}", ""))
        return rows

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the crop specification and the names of the methods."""
        super().on_save_checkpoint(checkpoint)
        crop = None if self.crop is None else self.crop.to_dict()
        checkpoint[KEY] |= {"crop": crop, "methods": list(self.methods)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the crop specification, and check that the data has the same."""
        super().on_load_checkpoint(checkpoint)
        stored = checkpoint[KEY]["crop"]
        self.crop = None if stored is None else CropSpec.from_dict(stored)
        if self.crop is not None and getattr(self._trainer, "datamodule", None) is not None:
            require_same_crop(self._require_data().crop, self.crop)
        if not self.methods:
            self.methods = tuple(checkpoint[KEY]["methods"])

    def open_data(self, path: Path, training: Spec) -> LabeledImages:
        """Read real and fake images, or a manifest of them."""
        data, _ = export.open_deepfakes(path, self.crop)
        data.labels = self.labels
        return LabeledImages.select_splits(data, ["val"])

    def check_data(self, data: ImageData) -> None:
        """Refuse images that do not say which are forged, or that were cut out otherwise than the model's."""
        if not isinstance(data, DeepfakeImages):
            raise ValidationError(
                f"The model tells real from fake, but {type(data).__name__} does not say which images are forged. Name "
                "a folder as for DeepfakeData, or a manifest: --data FOLDER."
            )
        if self.crop is not None:
            require_same_crop(data.crop, self.crop)

    def open_validation(self, images: OpenedImages) -> DeepfakeValidation:
        """AUC of images, or of frames where all faces count."""
        return DeepfakeValidation(self.labels, images, by_frame=self.judges_all_faces)

    def choose_splits(self, options: CalibrationOptions) -> tuple[str, ...]:
        """Those of `--split`."""
        return calibrate.choose_splits(options)

    def open_calibration_data(
        self, path: Path, training: Spec, options: CalibrationOptions
    ) -> LabeledImages:
        """Read real and fake images, or a manifest of them, of the splits that are asked for."""
        return calibrate.open_calibration_videos(path, options)

    def calibrate(
        self, source: LabeledImages, run: Run, options: CalibrationOptions
    ) -> CalibrationResult:
        """Fit an operating point on whole videos."""
        self.require_trained()
        assert self.crop is not None  # known with the labels
        assert self.source is not None  # it is a checkpoint that is calibrated
        source.data.preprocess = self.preprocess
        return calibrate.calibrate_videos(source, run, self.crop, self.source.parent, options)

    def describe_rules(
        self, rules: Mapping[str, Any] | None, calibration: Calibration | None
    ) -> list[str]:
        """How the model cuts faces out and decides, and what its answers are not."""
        if rules is None:
            return []
        groups = self.define_group_rules()
        lines = [] if groups is None else groups.list_lines()
        return export.describe_verdict_rules(rules, lines)

    def _require_data(self) -> DeepfakeImages:
        data = super()._require_data()
        if not isinstance(data, DeepfakeImages):
            raise MismatchError(
                f"DeepfakeTask learns from real and fake images, but {type(data).__name__} does not say which videos "
                "and people they show, nor how they were cut out. Give --data DeepfakeData with --data.root."
            )
        return data


def _compute_area(logits: ArrayLike, fake: ArrayLike) -> float:
    area = compute_auc(logits, fake)
    return math.nan if area is None else area

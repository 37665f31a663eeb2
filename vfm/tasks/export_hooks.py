"""Export hooks: what calibration, OOD, parity, golden images, card and Triton ask of a task in place of its type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from vfm_runtime.tasks.base import Arrays, TaskType
from vfm_runtime.tasks.confidence import ConfidenceRules
from vfm_runtime.tasks.embedding import EmbeddingSpec
from vfm_runtime.tasks.registry import find_task_type

from vfm.data import ImageData
from vfm.models.heads import Head
from vfm.models.text import TowerModel
from vfm.preprocess import Preprocess
from vfm.spec import Spec
from vfm.tasks.calibration import (
    Calibration,
    CalibrationOptions,
    CalibrationResult,
    list_confidence,
)
from vfm.tasks.group_fit import GroupFit
from vfm.tasks.labeled_images import LabeledImages, OpenedImages, ValidationError, open_images
from vfm.tasks.validation import Run, Validation


class ExportHooks:
    """The part of a task that exports and predictors ask; a task overrides what is otherwise for it."""

    kind: str = "classification"
    """What the model does, as the contract of a bundle names it."""
    pipeline_tag: str = "image-classification"
    """What the Hugging Face hub calls it (huggingface.co/tasks)."""
    head: Head
    preprocess: Preprocess

    graph_divides_logits: bool = True
    """Whether the exported graph divides logits by the temperature of the contract's rules."""
    unshared_reason: str | None = None
    """Why the model needs a backbone of its own, as a clause after its name; None where heads can share one."""
    reference_refusal: str | None = None
    """Why no distances from the training images are fitted at export; None where they can be."""
    calibration_options: Sequence[str] = ("batch_size",)
    """Names of the options of `vfm calibrate` that the task takes."""
    card_metrics: Mapping[str, str] = MappingProxyType({})
    """Metrics of `results.json` that the card lists, each with the entry that counts what it is of."""
    serving_comment: str = (
        "# One image a request: uint8 RGB, of any size.\n"
        "# What the answers mean, and when one is unsure, is said in vfm.json of the bundle.\n"
    )
    """Says in Triton's configuration what a client sends and what is left to it."""
    serving_warning: str | None = None
    """What whoever serves the bare graphs must know."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the scores; empty before training."""
        return self.head.labels

    @property
    def text_model(self) -> TowerModel | None:
        """The text tower of a task that reads words; None of others."""
        return None

    @property
    def multilabel(self) -> bool:
        """Whether several labels, or none, may apply to an image."""
        return self.kind == "multilabel"

    def bind_type(self) -> TaskType:
        """Return the task on the side of production, with this task's labels and rules, those by group too."""
        task_type = find_task_type(self.kind)(self.labels, self.complete_rules(self.define_rules()))
        if (groups := self.define_group_rules()) is not None:
            task_type.set_group_rules(groups.rules)
        return task_type

    def open_data(self, path: Path, training: Spec) -> LabeledImages:
        """Open labelled images that have nothing to do with the training: the val split where they state one, else all.

        Args:
            path: A folder or a table, in any layout that the task learns from.
            training: Spec of the data of the training, whose columns and tiles are taken over; empty where unknown.

        Raises:
            ValidationError: The task reads no such data.
            OSError: The data cannot be read.
        """
        self._refuse("open_data")

    def check_data(self, data: ImageData) -> None:
        """Refuse a data module, which has read its records, whose images the model cannot answer for."""

    def open_validation(self, images: OpenedImages) -> Validation:
        """Return images with their truth, and the metric that counts for the task.

        Raises:
            LabelError: Their labels are not those of the model.
        """
        self._refuse("open_validation")

    def open_out_of_fold(self, arrays: Arrays) -> Validation:
        """Return what calibrates a model that has learned from all images, from the `SCORES_FILE` of its run."""
        self._refuse("open_out_of_fold")

    def choose_splits(self, options: CalibrationOptions) -> Sequence[str]:
        """Return the splits of the training's data that `vfm calibrate` takes where no other data is named."""
        return ("val",)

    def open_calibration_data(
        self, path: Path, training: Spec, options: CalibrationOptions
    ) -> LabeledImages:
        """Open labelled images for `vfm calibrate`; by default, and with the same errors, those of `open_data`."""
        return self.open_data(path, training)

    def calibrate(
        self, source: LabeledImages, run: Run, options: CalibrationOptions
    ) -> CalibrationResult:
        """Fit what `vfm calibrate` writes beside the checkpoint; by default what `Validation.fit_confidence` fits.

        Raises:
            CalibrationError: Nothing can be fitted on these images.
        """
        opened = open_images(source, self.preprocess, needs_geometry=self.head.needs_geometry)
        images = self.open_validation(opened)
        outputs = images.collect_outputs(run, options.batch_size)
        fitted = images.fit_calibration(outputs, options, opened.source)
        lines = list_confidence(fitted.rules, fitted)
        return CalibrationResult(opened.source, fitted.to_dict(), lines)

    def describe_box_embedding(self) -> EmbeddingSpec | None:
        """Return what the embeddings of found boxes are made of; None of a task whose head gives none."""
        return None

    def define_rules(self) -> dict[str, Any] | None:
        """Return the rules that the task itself puts into the contract; None where its calibration has them."""
        return None

    def define_group_rules(self) -> GroupFit | None:
        """Return the rules by group that the task itself states; None where its calibration has them, or none."""
        return None

    def complete_rules(self, rules: dict[str, Any] | None) -> dict[str, Any] | None:
        """Add to the rules of the contract what no calibration says."""
        return rules

    def describe_rules(
        self, rules: Mapping[str, Any] | None, calibration: Calibration | None
    ) -> list[str]:
        """Return the lines of the card that say when the model is sure, by the rules of its contract."""
        if rules is None:
            return []
        lines = list_confidence(ConfidenceRules.from_dict(rules), calibration)
        return ["## When it is sure", "", *(f"- {line}" for line in lines), ""]

    def _refuse(self, method: str) -> NoReturn:
        raise ValidationError(
            f"{type(self).__name__} has no method '{method}', so nothing can be fitted or measured on labelled images. "
            "Write one, or leave out --int8, --fp16, --calibrate and --reference."
        )

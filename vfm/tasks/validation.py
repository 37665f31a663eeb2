"""Validation for calibration and export: real images with their truth, and a headline metric for what answers them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.confidence import ConfidenceRules

from vfm.data.group_columns import check_groups, read_columns
from vfm.tasks.calibration import Calibration, CalibrationError, CalibrationOptions
from vfm.tasks.group_fit import GroupFit
from vfm.tasks.labeled_images import LabeledImages, OpenedImages
from vfm.tasks.labels import match_labels

Run = Callable[[Arrays], Arrays]
"""Gives predictions for what `preprocess.onnx` makes of images, as `model.onnx` does."""


class Validation(ABC):
    """Images that the model has not learned from, with their truth. N images, C labels.

    Attributes:
        labels: Names of the model's labels.
        multilabel: Whether several labels, or none, may apply to an image.
        images: The images, opened.
        columns: For each label of the data its index among the model's.
    """

    metric: str
    """Name of the headline metric."""

    def __init__(
        self, labels: Sequence[str], images: OpenedImages, *, multilabel: bool = False
    ) -> None:
        """Match the labels of the data to the model's.

        Raises:
            LabelError: The data has labels that the model does not know, or says nothing of some.
        """
        self.labels = tuple(labels)
        self.multilabel = multilabel
        self.images = images
        self.columns = match_labels(images.source.data, self.labels, multilabel)

    @property
    def num_images(self) -> int:
        """N."""
        return len(self.images.inputs["pixels"])

    @property
    def paths(self) -> list[Path]:
        """The files of the images, each once; none of images that are no files of their own."""
        sources = (record.source for record in self.images.source.records)
        return [Path(path) for path in dict.fromkeys(s for s in sources if isinstance(s, str))]

    @property
    @abstractmethod
    def truth(self) -> Any:
        """What is true of each image."""

    @abstractmethod
    def measure(self, outputs: Arrays) -> float:
        """Return the headline metric, 0 to 1.

        Args:
            outputs: Outputs of a model for all images, such as those of `collect_outputs`.

        Raises:
            ValidationError: It is not defined for these images.
        """

    def fit_confidence(self, outputs: Arrays, *, min_precision: float | None = None) -> Calibration:
        """Fit a temperature, and thresholds for each label, to what a model of temperature 1 gives for all images.

        Args:
            outputs: Outputs of a model for all images, as `collect_outputs` gives them.
            min_precision: Fraction of sure answers that shall be right.

        Raises:
            CalibrationError: There are too few images, or the model has no such thresholds.
        """
        raise CalibrationError(
            f"{type(self).__name__} has no method 'fit_confidence', so nothing can be fitted on labelled images. Write "
            "one, or leave out --calibrate."
        )

    def fit_calibration(
        self, outputs: Arrays, options: CalibrationOptions, source: LabeledImages
    ) -> Calibration:
        """Fit what `fit_confidence` does, and rules by group where a column of groups is named.

        Args:
            outputs: Outputs of a model of temperature 1 for all images.
            options: Options of `vfm calibrate` that say what to hold to.
            source: Records of these images, by which their groups are read.

        Raises:
            CalibrationError: Nothing can be fitted, or an option goes with another.
            DataError: The column of groups is missing, constant, or names images.
        """
        fitted = self.fit_confidence(outputs, min_precision=options.min_precision)
        if options.group_column is None:
            options.refuse_ungrouped()
            return fitted
        data = source.data
        columns = read_columns(
            source.records,
            [options.group_column],
            options.table or getattr(data, "table", None),
            "--group_column",
            source=type(data).__name__,
            path_column=getattr(data, "path_column", "path"),
        )
        check_groups(columns, "--group_column")
        groups = columns[options.group_column]
        return replace(fitted, groups=self.fit_groups(outputs, fitted.rules, groups, options))

    def fit_groups(
        self,
        outputs: Arrays,
        rules: ConfidenceRules,
        groups: Sequence[str],
        options: CalibrationOptions,
    ) -> GroupFit:
        """Fit rules by group; arguments are those of `fit_calibration`, with the group of each image.

        Raises:
            CalibrationError: Nothing can be fitted.
        """
        raise CalibrationError(
            f"--group_column is '{options.group_column}', but {type(self).__name__} has no rules by group. Leave it "
            "out."
        )

    def collect_outputs(self, run: Run, batch_size: int = 32) -> Arrays:
        """Return what a model gives for all images, batch by batch, joined."""
        parts = [run(batch) for batch in self.images.iterate_batches(batch_size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

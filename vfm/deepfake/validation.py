"""Validation of models that tell real from fake: the AUC of single images or frames."""

from __future__ import annotations

from functools import cached_property
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.tasks.base import Arrays

from vfm.deepfake.data.dataset import require_deepfakes
from vfm.deepfake.export import NO_CALIBRATION
from vfm.deepfake.metrics import compute_auc
from vfm.deepfake.results import select_most_fake
from vfm.tasks.calibration import CalibrationError
from vfm.tasks.labeled_images import OpenedImages, ValidationError
from vfm.tasks.validation import Validation


class DeepfakeValidation(Validation):
    """Real and fake images: the `frame_auc`, as every validation in training logs it."""

    metric = "frame_auc"

    def __init__(self, labels: tuple[str, ...], images: OpenedImages, *, by_frame: bool) -> None:
        """Remember whether the most fake face of a frame counts for it."""
        super().__init__(labels, images)
        self._by_frame = by_frame

    @cached_property
    def truth(self) -> NDArray[np.int64]:
        """1 for fake, 0 for real, int64 [N]."""
        return np.array([record.label for record in self.images.source.records], np.int64)

    def fit_confidence(self, outputs: Arrays, *, min_precision: float | None = None) -> NoReturn:
        """Refuse: an operating point is fitted on videos, by a command of its own."""
        raise CalibrationError(NO_CALIBRATION)

    def measure(self, outputs: Arrays) -> float:
        """Area under the ROC curve of single images, or of frames where all faces count."""
        logits, fake = outputs["logits"], self.truth == 1
        if self._by_frame:
            records = require_deepfakes(self.images.source.records)
            rows = select_most_fake(logits, [record.item for record in records])
            logits, fake = logits[rows], fake[rows]
        area = compute_auc(logits, fake)
        if area is None:
            only = "fake" if self.truth.any() else "real"
            raise ValidationError(
                f"All {self.num_images} images are {only}, so there is no AUC. Give real and fake ones with --data."
            )
        return area

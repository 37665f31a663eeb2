"""Validation of models that find objects: COCO's average precision."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from vfm_runtime.tasks.base import Arrays

from vfm.metrics.detection import Found, Truth
from vfm.tasks.detection.results import BoxAnswers, figures_of
from vfm.tasks.labelled_images import ValidationError
from vfm.tasks.validation import Validation


class BoxValidation(Validation):
    """Images with boxes for a model that finds objects: COCO's `AP`."""

    metric = "AP"

    @cached_property
    def truth(self) -> list[Truth]:
        """The true boxes of each image."""
        nothing = [
            Found(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
        ]
        return self._answers(nothing * self.num_images).compared(*self._compared)[0]

    def found(self, outputs: Arrays) -> list[Found]:
        """The boxes that were found in each image.

        Args:
            outputs: `boxes` [N, K, 4], `labels` and `scores` [N, K].
        """
        rows = zip(outputs["boxes"], outputs["labels"], outputs["scores"], strict=True)
        return self._answers([Found(*row) for row in rows]).compared(*self._compared)[1]

    def figure(self, outputs: Arrays) -> float:
        """Average precision over IoU thresholds and labels that occur."""
        if not sum((~true.ignored).sum() for true in self.truth):
            raise ValidationError(
                f"There is not one box in the {self.num_images} images, so there is no AP. Give others with --data."
            )
        return figures_of(self.truth, self.found(outputs), len(self.labels))["AP"]

    @property
    def _compared(self) -> tuple[Sequence[Any], Sequence[int]]:
        return self.images.source.records, self.columns

    def _answers(self, found: list[Found]) -> BoxAnswers:
        return BoxAnswers(found, np.arange(self.num_images), 0.0)

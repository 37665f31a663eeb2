"""What an export is validated on: real images with their truth, and one headline metric for whatever answers them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vfm_runtime.tasks.base import Arrays

from vfm.tasks.labelled_images import OpenedImages
from vfm.tasks.labels import match_labels

Run = Callable[[Arrays], Arrays]
"""Answers for what `preprocess.onnx` makes of images, as `model.onnx` does."""

_BATCH = 32


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

        Args:
            labels: Names of the model's labels.
            images: Images opened for the model.
            multilabel: Whether several labels, or none, may apply to an image.

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
    def figure(self, outputs: Arrays) -> float:
        """The headline metric of the answers for all images, 0 to 1.

        Args:
            outputs: Answers of `outputs`.

        Raises:
            ValidationError: It is not defined for these images.
        """

    def inputs(self, batch_size: int = _BATCH) -> Iterator[Arrays]:
        """What the model takes, batch by batch in the order of the images.

        Args:
            batch_size: Most images of a batch.

        Yields:
            `pixels`, uint8 [n, h, w, 3]; for a head that needs it also `geometry`, float32 [n, 6].
        """
        yield from self.images.batches(batch_size)

    def outputs(self, run: Run, batch_size: int = _BATCH) -> Arrays:
        """The answers for all images, joined.

        Args:
            run: The model.
            batch_size: Most images of a batch.
        """
        parts = [run(batch) for batch in self.inputs(batch_size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def score(self, run: Run, batch_size: int = _BATCH) -> float:
        """The headline metric of anything that answers as `model.onnx` does, 0 to 1.

        Args:
            run: The model.
            batch_size: Most images of a batch.

        Raises:
            ValidationError: It is not defined for these images.
        """
        return self.figure(self.outputs(run, batch_size))

"""Answers for one image or many, whatever computes them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.contract import DETECTION
from vfm_runtime.detections import Detections
from vfm_runtime.image import ImageError, ImageSource
from vfm_runtime.types import Prediction

Errors = Literal["raise", "return"]
Arrays = dict[str, NDArray[Any]]
"""Inputs or outputs of a model, by name; the first dimension counts images."""
Answer = Prediction | Detections
_Position = tuple[int, Arrays | ImageError]


class Predictor(ABC):
    """A model that answers for images; a loaded bundle is one, a checkpoint loaded by vfm another.

    Attributes:
        kind: What it answers, `classification`, `multilabel` or `detection`.
        labels: Every class, in the order of the scores.
        batch_size: Images that go through the model at once.
    """

    kind: str
    labels: tuple[str, ...]
    batch_size: int

    def __init__(self, kind: str, labels: Sequence[str], batch_size: int = 32) -> None:
        """Remember what every answer needs.

        Args:
            kind: `classification`, `multilabel` or `detection`.
            labels: Every class, in the order of the scores.
            batch_size: Images that go through the model at once.
        """
        self.kind = kind
        self.labels = tuple(labels)
        self.batch_size = _batch_size(batch_size)

    @property
    def multilabel(self) -> bool:
        """Whether several classes, or none, may apply to an image."""
        return self.kind == "multilabel"

    @abstractmethod
    def prepare(self, image: ImageSource) -> Arrays:
        """Open one image and bring it to the model's size.

        Args:
            image: As for `predict`.

        Returns:
            `pixels`, uint8 [1, height, width, 3]; for a detector also `geometry`, float32 [1, 6].

        Raises:
            ImageError: The image cannot be opened.
        """

    @abstractmethod
    def run(self, inputs: Arrays) -> Arrays:
        """Answer for what `prepare` has made, of one image or of several joined.

        Args:
            inputs: By name.

        Returns:
            `scores` [N, C]; of a detector `boxes` [N, K, 4], `labels` and `scores` [N, K].
        """

    def preprocess(self, image: ImageSource) -> NDArray[np.uint8]:
        """The pixels of `prepare`, [1, height, width, 3].

        Args:
            image: As for `predict`.

        Raises:
            ImageError: The image cannot be opened.
        """
        pixels: NDArray[np.uint8] = self.prepare(image)["pixels"]
        return pixels

    def scores(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Answer for pixels that `preprocess` has made; for models that label images.

        Args:
            pixels: Uint8, [images, height, width, 3], of the model's own height and width.

        Returns:
            Probabilities, [images, classes].

        Raises:
            ValueError: The model finds objects, for which pixels alone do not say where they lie.
        """
        if self.kind == DETECTION:
            raise ValueError("This model finds objects: take `predict`, or `run(prepare(image))`.")
        scores: NDArray[np.float32] = self.run({"pixels": pixels})["scores"]
        return scores

    def answers(self, outputs: Arrays) -> list[Answer]:
        """The answer of each image from what `run` gave."""
        if self.kind == DETECTION:
            rows = zip(outputs["boxes"], outputs["labels"], outputs["scores"], strict=True)
            return [Detections.from_arrays(*row, self.labels) for row in rows]
        return [
            Prediction.from_scores(row, self.labels, multilabel=self.multilabel)
            for row in outputs["scores"]
        ]

    def predict(
        self,
        images: ImageSource | list[Any] | tuple[Any, ...],
        *,
        batch_size: int | None = None,
        errors: Errors = "raise",
    ) -> Any:
        """Answer for one image, or for each image of a list.

        Args:
            images: A path, the bytes of a file, a uint8 array or an image of Pillow; or a list of
                them, of any sizes; or a uint8 array of shape [images, height, width, channels].
            batch_size: Images that go through the model at once; None for that of `load`.
            errors: With `return`, an image that cannot be opened gets its `ImageError` in its
                place; with `raise`, it is raised and the other answers are lost.

        Returns:
            A `Prediction`, or of a detector `Detections`, for one image; a list of the same length for a list.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f"errors is {errors!r}. Choices: 'raise', 'return'.")
        size = self.batch_size if batch_size is None else _batch_size(batch_size)
        if isinstance(images, list | tuple):
            return self._predict_many(images, size, errors)
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return self._predict_many(images, size, errors)
        answers = self._predict_many([images], 1, errors)
        return answers[0]

    def _predict_many(
        self, images: Iterable[Any], size: int, errors: Errors
    ) -> list[Answer | ImageError]:
        answers: dict[int, Answer | ImageError] = {}
        for batch in _batches(self._open_each(images, errors), size):
            good = [(index, item) for index, item in batch if not isinstance(item, ImageError)]
            answers.update((i, item) for i, item in batch if isinstance(item, ImageError))
            if good:
                names = good[0][1]
                joined = {name: np.concatenate([item[name] for _, item in good]) for name in names}
                made = self.answers(self.run(joined))
                answers.update(zip([index for index, _ in good], made, strict=True))
        return [answers[index] for index in range(len(answers))]

    def _open_each(self, images: Iterable[Any], errors: Errors) -> Iterator[_Position]:
        # One decoded image at a time; what waits for its batch has the model's small size.
        for index, image in enumerate(images):
            try:
                yield index, self.prepare(image)
            except ImageError as error:
                if errors == "raise":
                    error.add_note(f"It is image number {index + 1} of those given.")
                    raise
                yield index, error


def _batch_size(value: int) -> int:
    if value < 1:
        raise ValueError(f"batch_size is {value}. Give at least 1.")
    return value


def _batches(items: Iterator[_Position], size: int) -> Iterator[Sequence[_Position]]:
    # itertools.batched came with Python 3.12.
    batch: list[_Position] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch

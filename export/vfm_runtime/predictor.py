"""Answers for one image or many, whatever computes them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm_runtime.image import ImageError, ImageSource
from vfm_runtime.types import Prediction

Errors = Literal["raise", "return"]
_Position = tuple[int, "NDArray[np.uint8] | ImageError"]


class Predictor(ABC):
    """A model that labels images; a loaded bundle is one, a checkpoint loaded by vfm another.

    Attributes:
        labels: Every class, in the order of the scores.
        batch_size: Images that go through the model at once.
        multilabel: Whether several classes, or none, may apply to an image.
    """

    labels: tuple[str, ...]
    batch_size: int
    multilabel: bool

    def __init__(
        self, labels: Sequence[str], batch_size: int = 32, *, multilabel: bool = False
    ) -> None:
        """Remember what every answer needs.

        Args:
            labels: Every class, in the order of the scores.
            batch_size: Images that go through the model at once.
            multilabel: Whether several classes, or none, may apply to an image.
        """
        self.labels = tuple(labels)
        self.multilabel = multilabel
        self.batch_size = _batch_size(batch_size)

    @abstractmethod
    def preprocess(self, image: ImageSource) -> NDArray[np.uint8]:
        """Open one image and bring it to the model's size, [1, height, width, 3].

        Args:
            image: As for `predict`.

        Raises:
            ImageError: The image cannot be opened.
        """

    @abstractmethod
    def scores(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Answer for pixels that `preprocess` has made.

        Args:
            pixels: Uint8, [images, height, width, 3], of the model's own height and width.

        Returns:
            Probabilities, [images, classes].
        """

    def answer(self, scores: NDArray[np.float32]) -> Prediction:
        """The answer that one row of `scores` is."""
        return Prediction.from_scores(scores, self.labels, multilabel=self.multilabel)

    @overload
    def predict(
        self,
        images: str | Path | bytes | Image.Image,
        *,
        batch_size: int | None = ...,
        errors: Literal["raise"] = ...,
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        batch_size: int | None = ...,
        errors: Literal["raise"] = ...,
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        batch_size: int | None = ...,
        errors: Literal["return"],
    ) -> list[Prediction | ImageError]: ...

    # An array is one image or many by its dimensions, which its type does not tell.
    @overload
    def predict(
        self, images: ImageSource, *, batch_size: int | None = ..., errors: Errors = ...
    ) -> Any: ...

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
            A `Prediction` for one image, a list of the same length for a list.
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
    ) -> list[Prediction | ImageError]:
        answers: dict[int, Prediction | ImageError] = {}
        for batch in _batches(self._open_each(images, errors), size):
            good = [(index, item) for index, item in batch if not isinstance(item, ImageError)]
            answers.update((i, item) for i, item in batch if isinstance(item, ImageError))
            if good:
                rows = self.scores(np.concatenate([item for _, item in good]))
                made = [self.answer(row) for row in rows]
                answers.update(zip([index for index, _ in good], made, strict=True))
        return [answers[index] for index in range(len(answers))]

    def _open_each(self, images: Iterable[Any], errors: Errors) -> Iterator[_Position]:
        # One decoded image at a time; what waits for its batch has the model's small size.
        for index, image in enumerate(images):
            try:
                yield index, self.preprocess(image)
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

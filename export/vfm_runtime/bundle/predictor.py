"""Answers for one image or many, whatever computes them."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.bundle.contract import DEEPFAKE, DETECTION, SEVERAL, HeadContract
from vfm_runtime.deepfake.pipeline import Judge, judge_each
from vfm_runtime.deepfake.verdict import Verdict
from vfm_runtime.media.image import ImageError, ImageSource, Pixels
from vfm_runtime.tasks.classification import Prediction
from vfm_runtime.tasks.detection import Detections

Errors = Literal["raise", "return"]
Arrays = dict[str, NDArray[Any]]
"""Inputs or outputs of a model, by name; the first dimension counts images."""
HeadAnswer = Prediction | Detections | Verdict
Answer = HeadAnswer | dict[str, HeadAnswer]
"""Of several heads, the answer of each by its name."""
_Position = tuple[int, Arrays | ImageError]


class Predictor(ABC):
    """A model that answers for images; a loaded bundle is one, a checkpoint loaded by vfm another.

    Attributes:
        kind: What it answers, `classification`, `multilabel`, `detection` or `deepfake`; `several` with several heads.
        labels: Every class, in the order of the scores; the names of several heads.
        batch_size: Images that go through the model at once.
        judge: Of a deepfake model: how it is asked and how it answers; None of every other.
        heads: What each head answers, by its name; the name of a single one is empty.
    """

    kind: str
    labels: tuple[str, ...]
    batch_size: int
    judge: Judge | None
    heads: dict[str, HeadContract]

    def __init__(
        self,
        kind: str,
        labels: Sequence[str],
        batch_size: int = 32,
        *,
        judge: Judge | None = None,
        heads: Mapping[str, HeadContract] | None = None,
    ) -> None:
        """Remember what every answer needs.

        Args:
            kind: `classification`, `multilabel`, `detection` or `deepfake`; `several` with several heads.
            labels: Every class, in the order of the scores; the names of several heads.
            batch_size: Images that go through the model at once.
            judge: Needed by a deepfake model, and by no other.
            heads: What each head answers, by its name; None for one head without rules of sureness.

        Raises:
            ValueError: A deepfake model has no judge, or another model has one.
        """
        if (kind == DEEPFAKE) != (judge is not None):
            raise ValueError(
                f"A model of the kind {kind!r} {'needs a' if judge is None else 'has no'} judge. "
                f"Give one where the kind is {DEEPFAKE!r}, and only there."
            )
        self.kind = kind
        self.labels = tuple(labels)
        self.batch_size = _batch_size(batch_size)
        self.judge = judge
        single = {} if heads or judge else {"": HeadContract(task=kind, labels=self.labels)}
        self.heads = dict(heads) if heads else single

    @property
    def multilabel(self) -> bool:
        """Whether several classes, or none, may apply to an image."""
        return self.kind == "multilabel"

    @abstractmethod
    def prepare(self, image: ImageSource) -> Arrays:
        """Open one image and bring it to the model's size.

        Args:
            image: As for `predict`; of a deepfake model, one crop, as `judge` cuts it.

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
            `scores` [N, C]; of a detector `boxes` [N, K, 4], `labels` and `scores` [N, K]; of a deepfake model
            `logits` [N], `heatmaps` [N, h, w] and `distances` [N].
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
            ValueError: The model finds objects, for which pixels alone do not say where they lie, tells real from
                fake, or has several heads.
        """
        does = {
            DETECTION: "finds objects",
            DEEPFAKE: "tells real from fake",
            SEVERAL: "has several heads",
        }.get(self.kind)
        if does is not None:
            raise ValueError(f"This model {does}: take `predict`, or `run(prepare(image))`.")
        scores: NDArray[np.float32] = self.run({"pixels": pixels})["scores"]
        return scores

    def answers(self, outputs: Arrays) -> list[Answer]:
        """The answer of each image from what `run` gave.

        Args:
            outputs: By name; of a deepfake model, each row is taken as a picture of its own, of which nothing but
                the crop is known.
        """
        if self.judge is not None:
            return list(self.judge.bare(outputs))
        if self.kind != SEVERAL:
            return list(head_answers(self.heads[""], outputs))
        parts = [head_answers(head, part_of(outputs, name)) for name, head in self.heads.items()]
        return [dict(zip(self.heads, row, strict=True)) for row in zip(*parts, strict=True)]

    def predict(
        self,
        images: ImageSource | list[Any] | tuple[Any, ...],
        *,
        batch_size: int | None = None,
        errors: Errors = "raise",
        cropped: bool = False,
    ) -> Any:
        """Answer for one image, or for each image of a list; a deepfake model answers for videos too.

        Args:
            images: A path, the bytes of a file, a uint8 array or an image of Pillow; or a list of
                them, of any sizes; or a uint8 array of shape [images, height, width, channels].
            batch_size: Images that go through the model at once; None for that of `load`.
            errors: With `return`, an image that cannot be opened gets its `ImageError` in its
                place; with `raise`, it is raised and the other answers are lost.
            cropped: For a deepfake model: the images are crops already, as its `judge.crop` makes them, so no
                face is looked for.

        Returns:
            A `Prediction`, of a detector `Detections`, of a deepfake model a `Verdict`, for one image; of several heads
            a dict of them by head; a list of the same length for a list.

        Raises:
            ImageError: An image cannot be opened, or a video, and `errors` is `raise`.
            ValueError: `errors`, `batch_size` or `cropped` is none that this model knows.
        """
        if errors not in ("raise", "return"):
            raise ValueError(f"errors is {errors!r}. Choices: 'raise', 'return'.")
        if cropped and self.judge is None:
            raise ValueError(
                f"cropped is for deepfake models, which cut faces out; this one's kind is {self.kind!r}. "
                "Leave it out."
            )
        size = self.batch_size if batch_size is None else _batch_size(batch_size)
        if isinstance(images, list | tuple):
            return self._predict_many(images, size, errors, cropped)
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return self._predict_many(images, size, errors, cropped)
        # Alone, a picture is a batch of one; a video's frames still go through together.
        alone = 1 if self.judge is None else size
        return self._predict_many([images], alone, errors, cropped)[0]

    def _predict_many(
        self, images: Iterable[Any], size: int, errors: Errors, cropped: bool
    ) -> list[Answer | ImageError]:
        if self.judge is not None:
            keep = errors == "return"
            return list(
                judge_each(
                    self.judge,
                    images,
                    self._look,
                    batch_size=size,
                    cropped=cropped,
                    keep_errors=keep,
                )
            )
        answers: dict[int, Answer | ImageError] = {}
        for batch in _batches(self._open_each(images, errors), size):
            good = [(index, item) for index, item in batch if not isinstance(item, ImageError)]
            answers.update((i, item) for i, item in batch if isinstance(item, ImageError))
            if good:
                made = self.answers(self.run(_joined([item for _, item in good])))
                answers.update(zip([index for index, _ in good], made, strict=True))
        return [answers[index] for index in range(len(answers))]

    def _look(self, crops: Sequence[Pixels]) -> Arrays:
        return self.run(_joined([self.prepare(crop) for crop in crops]))

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


def head_answers(head: HeadContract, outputs: Arrays) -> list[HeadAnswer]:
    """The answer of each image by one head that labels images or finds objects.

    Args:
        head: What it answers.
        outputs: Its own, by name, and the `distances` of the images where the graph gives them.
    """
    rules, many = head.surely, head.task == "multilabel"
    rows = outputs["scores"]
    far = outputs["distances"].tolist() if "distances" in outputs else [None] * len(rows)
    if head.task == DETECTION:
        found = zip(outputs["boxes"], outputs["labels"], rows, far, strict=True)
        return [
            Detections.from_arrays(*row[:3], head.labels, rules=rules, distance=row[3])
            for row in found
        ]
    return [
        Prediction.from_scores(row, head.labels, multilabel=many, rules=rules, distance=distance)
        for row, distance in zip(rows, far, strict=True)
    ]


def part_of(outputs: Arrays, head: str) -> Arrays:
    """The answers of one of several heads, and what all of them share.

    Args:
        outputs: Of all heads, named `head.answer`.
        head: Its name; the empty one of a single head has all.
    """
    if not head:
        return outputs
    own = {n.partition(".")[2]: v for n, v in outputs.items() if n.startswith(f"{head}.")}
    return own | {name: values for name, values in outputs.items() if "." not in name}


def _joined(items: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([item[name] for item in items]) for name in items[0]}


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

"""Predictor: predictions for one image or many, whatever computes them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm_runtime.errors import OptionError
from vfm_runtime.media.bit_depth import ValueRange
from vfm_runtime.media.image import ImageError, ImageSource, Pixels, open_image
from vfm_runtime.media.video import is_video
from vfm_runtime.search import Neighbor, VectorTable
from vfm_runtime.tasks.base import Arrays, Opened, Prediction, TaskType
from vfm_runtime.tasks.confidence import require_finite
from vfm_runtime.tasks.embedding import EmbeddingSpec
from vfm_runtime.teaching.boxes import BoxExplanation, TaughtBoxes
from vfm_runtime.teaching.classes import Explanation, TaughtClasses
from vfm_runtime.teaching.state import TaughtState

Errors = Literal["raise", "return"]
Groups = str | Sequence[str | None] | None
_Pending = tuple[Opened, Arrays | None, TaskType] | ImageError  # a source that waits for its batch


class Predictor(ABC):
    """A model that answers for images; a loaded bundle is one, a checkpoint loaded by vfm another.

    Attributes:
        task_type: What it is asked and answers, with its labels and rules.
        labels: Label names, in the order of the scores; the names of several heads.
        batch_size: Images that go through the model at once.
        value_range: Black and white of values of more than 8 bits; None where the training did not say them.
        embedding: What the vectors of `embed` are made of; None of a model that gives none.
        box_embedding: What the embeddings of a detector's boxes are made of; None of a model that gives none.
        vectors: Images that `search` compares with; None of a model that carries none.
        scale: What cosines of images and texts are multiplied by to be logits; None of a model without a text tower.
        bias: What is then added, where each label has a probability of its own; else None.
    """

    task_type: TaskType
    labels: tuple[str, ...]
    batch_size: int
    value_range: ValueRange | None = None
    embedding: EmbeddingSpec | None = None
    box_embedding: EmbeddingSpec | None = None
    vectors: VectorTable | None = None
    scale: float | None = None
    bias: float | None = None

    def __init__(self, task_type: TaskType, batch_size: int = 32) -> None:
        self.task_type = task_type
        self.labels = task_type.labels
        self.batch_size = _check_batch_size(batch_size)
        self._taught: TaughtClasses | TaughtBoxes | None = None

    @property
    def multilabel(self) -> bool:
        """Whether several labels, or none, may apply to an image."""
        return self.task_type.multilabel

    @abstractmethod
    def prepare(self, image: ImageSource) -> Arrays:
        """Open one image, or one crop that `task_type.open` has cut, and bring it to the model's size.

        Returns:
            `pixels`, uint8 [1, height, width, 3]; for a detector also `geometry`, float32 [1, 6].
        """

    @abstractmethod
    def run(self, inputs: Arrays) -> Arrays:
        """Compute the outputs of the task, a row an image, of what `prepare` has made of one image or of several."""

    def compute_outputs(self, inputs: Arrays) -> Arrays:
        """Compute what `run` returns, of images that are no traffic: examples to teach by, queries of a search."""
        return self.run(inputs)

    def open_pixels(self, image: ImageSource) -> Pixels:
        """Open one image, uint8 [H, W, 3], with the values that the model was trained on.

        Raises:
            ImageError: It cannot be opened, or its values lie outside of the model's range.
        """
        return open_image(image, value_range=self.value_range)

    def open_source(self, source: ImageSource) -> ImageSource:
        """Open an image whose values the model has a range for; what needs no range stays as it is, videos too."""
        is_array = isinstance(source, np.ndarray | Image.Image)
        if self.value_range is None or (not is_array and is_video(source)):
            return source
        return self.open_pixels(source)

    def preprocess(self, image: ImageSource) -> NDArray[np.uint8]:
        """Return the pixels of `prepare`, uint8 [1, height, width, 3]."""
        return self.prepare(image)["pixels"]

    def scores(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Compute the scores [N, C] of pixels uint8 [N, H, W, 3] that `preprocess` has made, for models of labels."""
        if set(self.task_type.inputs) != {"pixels"} or set(self.task_type.outputs) != {"scores"}:
            raise OptionError(
                f"This model {self.task_type.summary}: take `predict`, or `run(prepare(image))`."
            )
        return self.run({"pixels": pixels})["scores"]

    def predict(
        self,
        images: ImageSource | list[Any] | tuple[Any, ...],
        *,
        batch_size: int | None = None,
        errors: Errors = "raise",
        cropped: bool = False,
        group: Groups = None,
    ) -> Any:
        """Answer for one image or video, or for each of a list.

        Args:
            images: A path, the bytes of a file, a uint8 array or an image of Pillow; or a list of them, of any sizes;
                or a uint8 array of shape [images, height, width, channels]. Also videos where the task takes them.
            batch_size: Images that go through the model at once; None for that of `load`.
            errors: With `return`, an image that cannot be opened gets its `ImageError` in its place; with `raise`, it
                is raised and the other predictions are lost.
            cropped: Where the task cuts images into crops: whether they are crops already.
            group: Group of all images, or of each of a list, where the model has rules by group; None for the general
                rule.

        Returns:
            A `Prediction` of the task for one image; of several heads a dict of them by head; a list of the same
            length for a list.

        Raises:
            ImageError: An image or a video cannot be opened, and `errors` is `raise`.
            OptionError: `errors`, `batch_size`, `cropped` or `group` is none that this model knows.
        """
        if errors not in ("raise", "return"):
            raise OptionError(f"errors is {errors!r}. Choices: 'raise', 'return'.")
        size = self.batch_size if batch_size is None else _check_batch_size(batch_size)
        sources: Sequence[Any] = images if _is_many(images) else [images]  # type: ignore[assignment]
        groups = [group] * len(sources) if group is None or isinstance(group, str) else list(group)
        if len(groups) != len(sources):
            raise OptionError(
                f"There are {len(groups)} groups for {len(sources)} images. Give one for all, or one each."
            )
        predictions = self._predict_each(sources, groups, size, errors, cropped)
        return predictions if _is_many(images) else predictions[0]

    def embed(
        self, images: ImageSource | list[Any] | tuple[Any, ...], *, batch_size: int | None = None
    ) -> NDArray[np.float32]:
        """Return the embedding of one image, float32 [D], or of each of a list, [N, D].

        Args:
            images: Images as `predict` takes them; each is looked at whole.
            batch_size: Images that go through the model at once; None for that of `load`.

        Raises:
            ImageError: An image cannot be opened.
            OptionError: The model gives no embeddings, or looks at crops alone.
        """
        size = self.batch_size if batch_size is None else _check_batch_size(batch_size)
        if self.embedding is None:
            raise OptionError(
                f"This bundle {self.task_type.summary}, and its graph gives no embeddings. Export it again with "
                "--embedding pooled."
            )
        if self.task_type.uses_crops:
            raise OptionError(
                f"This model {self.task_type.summary} and looks at crops of an image, not at the whole. Take a "
                "backbone, or a model of another task."
            )
        is_many = _is_many(images)
        sources: list[Any] = list(images) if is_many else [images]  # type: ignore[arg-type]
        if not sources:
            raise OptionError("There are no images to embed. Give one, or a list of at least one.")
        batches = []
        for start in range(0, len(sources), size):
            # One decoded image at a time: what waits for its batch has the model's small size.
            inputs = _join([self.prepare(source) for source in sources[start : start + size]])
            batches.append(self.embed_prepared(inputs))
        vectors = np.concatenate(batches)
        return vectors if is_many else vectors[0]

    def embed_prepared(self, inputs: Arrays) -> NDArray[np.float32]:
        """Return the embeddings, float32 [N, D], of what `prepare` has made of one image or of several joined."""
        assert self.embedding is not None
        vectors = np.asarray(self.compute_outputs(inputs)[self.embedding.output], np.float32)
        require_finite("embeddings", vectors)
        return vectors

    def embed_text(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """Return the vector of one text, float32 [D], or of each of a list, [M, D], to compare with those of images.

        Args:
            texts: Words as they stand; what is longer than the text tower's context is cut.

        Raises:
            OptionError: The model has no text tower, or a text is none.
            MissingPackageError: What cuts words into tokens is not installed.
        """
        raise OptionError(
            f"This model {self.task_type.summary} and has no text tower, so that words are no vectors to it. Export a "
            "pair of towers: vfm export open_clip:NAME/WEIGHTS --images IMAGES --text true -o BUNDLE."
        )

    def search(
        self,
        images: ImageSource | list[Any] | tuple[Any, ...] | None = None,
        k: int = 10,
        *,
        text: str | Sequence[str] | None = None,
    ) -> Any:
        """Return the carried images that are most like one image, or like words, best first.

        Args:
            images: Images as `predict` takes them, each looked at whole; for a list a list of answers is returned.
            k: Number of `Neighbor` to return at most for each.
            text: In place of images: words, or a list of texts.

        Raises:
            ImageError: An image cannot be opened.
            OptionError: The model carries no vectors or has no text tower, or `k` is below 1.
        """
        if (images is None) == (text is None):
            raise OptionError("A search is for images or for a text. Give one of the two.")
        table = self.vectors
        if table is None:
            raise OptionError(
                "This model carries no vectors to search in. Write a bundle that does, from a store of its "
                "embeddings: vfm index STORE --bundle BUNDLE -o OUT."
            )
        is_many = _is_many(images if text is None else text)
        if text is None:
            queries = self.embed(list(images) if is_many else [images])  # type: ignore[arg-type]
        else:
            queries = self.embed_text([text] if isinstance(text, str) else text)
        neighbors: list[list[Neighbor]] = [table.search(query, k) for query in queries]
        return neighbors if is_many else neighbors[0]

    @property
    def taught(self) -> TaughtClasses | TaughtBoxes:
        """What it was taught at run time; in memory alone unless `keep_state` named a folder.

        Raises:
            OptionError: The model gives no embeddings that say their fingerprint.
        """
        if self._taught is None:
            self._taught = self._open_state(None)
        return self._taught

    def keep_state(self, folder: str | Path, *, keep_pictures: bool = False) -> None:
        """Keep what is taught in a folder, and go on from what it holds; errors are those of `TaughtClasses`."""
        self._taught = self._open_state(Path(folder), keep_pictures=keep_pictures)

    def _open_state(
        self, folder: Path | None, *, keep_pictures: bool = False
    ) -> TaughtClasses | TaughtBoxes:
        self.choose_embedding()
        if self.box_embedding is not None:
            return TaughtBoxes(self, folder, keep_pictures=keep_pictures)
        return TaughtClasses(self, folder, keep_pictures=keep_pictures)

    @property
    def learns_boxes(self) -> bool:
        """Whether it is taught classes by boxes, which are then among the answers of `predict`."""
        return self.box_embedding is not None

    def select_task(self, group: str | None = None) -> TaskType:
        """Return the task with the rules of a group of images, and of a detector with the classes that it was taught.

        Raises:
            OptionError: There is no such group.
            DataError: The state of what was taught is damaged.
        """
        task = self.task_type.for_group(group)
        return self._taught.extend(task) if isinstance(self._taught, TaughtBoxes) else task

    def choose_embedding(self) -> None:  # noqa: B027 - most models leave none
        """Choose the vectors of `embed` without arguments, where the model leaves a choice."""

    def teach(self, label: str, images: ImageSource | list[Any] | tuple[Any, ...]) -> TaughtState:
        """Teach a class by one image or several; one that was taught before gets more examples.

        A detector is taught by boxes: a COCO file, or a list of pairs of an image and all boxes of the class in it,
        [M, 4], left, top, right, bottom in pixels. Errors are those of `TaughtClasses.teach` or `TaughtBoxes.teach`,
        which also take many classes at once.
        """
        sources: list[Any] = list(images) if _is_many(images) else [images]  # type: ignore[arg-type]
        return self.taught.teach({label: sources})

    def forget(self, label: str) -> TaughtState:
        """Delete a taught class for good; errors are those of `TaughtClasses.forget`."""
        return self.taught.forget(label)

    def why(
        self, images: ImageSource | list[Any] | tuple[Any, ...], *, num_nearest: int = 3
    ) -> Any:
        """Answer for one image by the taught classes, with the examples nearest to it; a list for a list.

        Returns:
            An `Explanation`, or a list of them; of a detector a `BoxExplanation`, with examples for each taught box.

        Raises:
            ImageError: An image cannot be opened.
            StateError: Fewer than two classes were taught, or none of boxes.
        """
        is_many = _is_many(images)
        sources: list[Any] = list(images) if is_many else [images]  # type: ignore[arg-type]
        explanations: list[Explanation] | list[BoxExplanation]
        if isinstance(self.taught, TaughtBoxes):
            explanations = [self._explain_boxes(self.taught, one, num_nearest) for one in sources]
        else:
            explanations = self.taught.explain(self.embed(sources), num_nearest)
        return explanations if is_many else explanations[0]

    def _explain_boxes(self, taught: TaughtBoxes, source: Any, num_nearest: int) -> BoxExplanation:
        opened = self.task_type.open(self.open_source(source))
        outputs = self.compute_opened(opened)
        return taught.explain(self.task_type, opened, outputs, num_nearest)

    def prepare_all(self, opened: Opened) -> Arrays | None:
        """Bring all images of one source to the model's size, joined; None where there are none."""
        rows = [self.prepare(image) for image in opened.images]
        return _join(rows) if rows else None

    def _predict_each(
        self,
        sources: Iterable[Any],
        groups: Sequence[str | None],
        batch_size: int,
        errors: Errors,
        cropped: bool,
    ) -> list[Prediction | ImageError]:
        # All groups first: an unknown one shall not be refused after hours of work.
        by_group = {group: self.select_task(group) for group in dict.fromkeys(groups)}
        predictions: list[Prediction | ImageError] = []
        pending: list[_Pending] = []
        num_rows = 0
        # One decoded source at a time; what waits for its batch has the model's small size.
        for index, source in enumerate(sources):
            try:
                opened = self.task_type.open(self.open_source(source), cropped=cropped)
                task = by_group[groups[index]]
                if len(opened.images) > batch_size:
                    predictions += self._run_pending(pending, batch_size)
                    pending, num_rows = [], 0
                    outputs = self._run_parts(opened, batch_size, self.run)
                    predictions.append(task.predict(opened, outputs))
                    continue
                pending.append((opened, self.prepare_all(opened), task))
                num_rows += len(opened.images)
            except ImageError as error:
                if errors == "raise":
                    error.add_note(f"It is number {index + 1} of those given.")
                    raise
                pending.append(error)
            if num_rows >= batch_size:
                predictions += self._run_pending(pending, batch_size)
                pending, num_rows = [], 0
        return predictions + self._run_pending(pending, batch_size)

    def compute_opened(self, opened: Opened) -> Arrays:
        """Compute the outputs for all images of one source that is no traffic."""
        return self._run_parts(opened, self.batch_size, self.compute_outputs)

    def _run_parts(
        self, opened: Opened, batch_size: int, run: Callable[[Arrays], Arrays]
    ) -> Arrays:
        """Run the model on all images of one source, one batch of them in memory at a time."""
        outputs = []
        for start in range(0, len(opened.images), batch_size):
            rows = [self.prepare(image) for image in opened.images[start : start + batch_size]]
            outputs.append(run(_join(rows)))
        return _join(outputs)

    def _run_pending(
        self, pending: Sequence[_Pending], batch_size: int
    ) -> list[Prediction | ImageError]:
        rows = [item[1] for item in pending if isinstance(item, tuple) and item[1] is not None]
        outputs = self._run_batches(_join(rows), batch_size) if rows else {}
        predictions: list[Prediction | ImageError] = []
        start = 0
        for item in pending:
            if isinstance(item, ImageError):
                predictions.append(item)
                continue
            opened, _, task = item
            end = start + len(opened.images)
            part = {name: values[start:end] for name, values in outputs.items()}
            predictions.append(task.predict(opened, part or make_empty(task)))
            start = end
        return predictions

    def _run_batches(self, inputs: Arrays, batch_size: int) -> Arrays:
        num_rows = len(next(iter(inputs.values())))
        starts = range(0, num_rows, batch_size)
        if len(starts) == 1:
            return self.run(inputs)
        batches = ({k: v[i : i + batch_size] for k, v in inputs.items()} for i in starts)
        return _join([self.run(batch) for batch in batches])


def make_empty(task: TaskType) -> Arrays:
    """Return outputs of a task without a row, for a source that shows nothing to run the model on."""
    return {name: np.zeros(0, np.float32) for name in task.outputs}


def _join(rows: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def _is_many(images: object) -> bool:
    return isinstance(images, list | tuple) or (isinstance(images, np.ndarray) and images.ndim == 4)


def _check_batch_size(value: int) -> int:
    if value < 1:
        raise OptionError(f"batch_size is {value}. Give at least 1.")
    return value

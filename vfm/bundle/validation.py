"""What an export is validated on: real images with their truth, and one headline figure for whatever answers them."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.bundle.predictor import Arrays

from vfm.bundle.images import (
    MAX_IMAGES,
    Images,
    Source,
    ValidationError,
    given,
    is_root,
    open_images,
    remembered,
    spec_of,
)
from vfm.data.dataset import labels_of
from vfm.deepfake.data.dataset import require_deepfakes
from vfm.deepfake.metrics import auc
from vfm.deepfake.results import FakeAnswers, most_fake
from vfm.deepfake.task import DeepfakeTask
from vfm.metrics.detection import Found, Truth
from vfm.tasks import BaseTask
from vfm.tasks.classification.results import Answers, metrics_of
from vfm.tasks.detection.results import BoxAnswers, figures_of
from vfm.tasks.detection.task import DetectionTask
from vfm.tasks.labels import match_labels

__all__ = [
    "BoxValidation",
    "FakeValidation",
    "LabelValidation",
    "Run",
    "Validation",
    "ValidationError",
    "validation",
]

Run = Callable[[Arrays], Arrays]
"""Answers for what `preprocess.onnx` makes of images, as `model.onnx` does."""

_BATCH = 32

log = logging.getLogger(__name__)


class Validation(ABC):
    """Images that the model has not learned from, with their truth. N images, C labels.

    Attributes:
        kind: What the model does, as the contract names it.
        labels: Names of the model's labels.
        images: The images, opened.
        columns: For each label of the data its place among the model's.
    """

    metric: str
    """Name of the headline figure."""

    def __init__(self, task: BaseTask, images: Images) -> None:
        """Match the labels of the data to the model's.

        Args:
            task: Whose labels and kind count.
            images: Opened for it.

        Raises:
            LabelError: The data has labels that the model does not know, or says nothing of some.
        """
        self.kind = task.kind
        self.labels = task.labels
        self.images = images
        self.columns = match_labels(images.source.data, task.labels, task.multilabel)

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
        """The headline figure of the answers for all images, 0 to 1.

        Args:
            outputs: Of `outputs`.

        Raises:
            ValidationError: It is not defined for these images.
        """

    def inputs(self, batch_size: int = _BATCH) -> Iterator[Arrays]:
        """What the model takes, batch by batch in the order of the images.

        Args:
            batch_size: Most images of a batch.

        Yields:
            `pixels`, uint8 [n, h, w, 3]; of a detector also `geometry`, float32 [n, 6].
        """
        for start in range(0, self.num_images, batch_size):
            chosen = slice(start, start + batch_size)
            yield {name: values[chosen] for name, values in self.images.inputs.items()}

    def outputs(self, run: Run, batch_size: int = _BATCH) -> Arrays:
        """The answers for all images, joined.

        Args:
            run: The model.
            batch_size: Most images of a batch.
        """
        parts = [run(batch) for batch in self.inputs(batch_size)]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def score(self, run: Run, batch_size: int = _BATCH) -> float:
        """The headline figure of anything that answers as `model.onnx` does, 0 to 1.

        Args:
            run: The model.
            batch_size: Most images of a batch.

        Raises:
            ValidationError: It is not defined for these images.
        """
        return self.figure(self.outputs(run, batch_size))


class LabelValidation(Validation):
    """Of models that label images: `accuracy`, or where several labels may apply `mAP`."""

    @property
    def multilabel(self) -> bool:
        """Whether several labels, or none, may apply to an image."""
        return self.kind == "multilabel"

    @property
    def metric(self) -> str:  # type: ignore[override]
        """`accuracy` or `mAP`."""
        return "mAP" if self.multilabel else "accuracy"

    @cached_property
    def truth(self) -> NDArray[Any]:
        """The true label of each image, int64 [N]; or float32 [N, C] of zeros and ones where several may apply."""
        each = [[self.columns[k] for k in labels_of(r)] for r in self.images.source.records]
        if not self.multilabel:
            return np.array([label for (label,) in each], np.int64)
        truth = np.zeros((self.num_images, len(self.labels)), np.float32)
        for row, found in zip(truth, each, strict=True):
            row[found] = 1
        return truth

    def figure(self, outputs: Arrays) -> float:
        """Accuracy, or the mean average precision over labels that occur."""
        number = self.num_images
        answers = Answers(
            outputs["scores"], self.truth, np.arange(number), np.zeros(number, np.float32)
        )
        value = metrics_of(answers, self.multilabel)[self.metric]
        return self._defined(value)

    def _defined(self, value: float) -> float:
        if np.isnan(value):
            raise ValidationError(
                f"No label applies to any of the {self.num_images} images, so there is no {self.metric}. Give others "
                "with --data."
            )
        return value


class BoxValidation(Validation):
    """Of models that find objects: COCO's `AP`."""

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
        found = [Found(boxes, labels, scores) for boxes, labels, scores in rows]
        return self._answers(found).compared(*self._compared)[1]

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


class FakeValidation(Validation):
    """Of models that tell real from fake: the `frame_auc`, as every validation in training logs it."""

    metric = "frame_auc"

    def __init__(self, task: DeepfakeTask, images: Images) -> None:
        """Remember how frames of several faces are judged.

        Args:
            task: Whose crops count.
            images: Opened for it.
        """
        super().__init__(task, images)
        self._by_frame = task.crop is not None and task.crop.policy == "all"

    @cached_property
    def truth(self) -> NDArray[np.int64]:
        """1 for fake, 0 for real, int64 [N]."""
        return np.array([record.label for record in self.images.source.records], np.int64)

    def figure(self, outputs: Arrays) -> float:
        """Area under the ROC curve of single images, or of frames where all faces count."""
        number = self.num_images
        nothing = np.zeros(number, np.float32)
        answers = FakeAnswers(outputs["logits"], nothing, np.arange(number), 0.0)
        if self._by_frame:
            records = require_deepfakes(self.images.source.records)
            answers = most_fake(answers, [record.item for record in records])
        area = auc(answers.logits, self.truth[answers.position] == 1)
        if area is None:
            only = "fake" if self.truth.any() else "real"
            raise ValidationError(
                f"All {number} images are {only}, so there is no AUC. Give real and fake ones with --data."
            )
        return area


def validation(
    checkpoint: Path,
    task: BaseTask,
    data: Path | None = None,
    *,
    trust: Sequence[str] = (),
    max_images: int = MAX_IMAGES,
) -> Validation:
    """Real images with their truth for the model of a checkpoint.

    Args:
        checkpoint: A .ckpt file of a training run, or its adapter.
        task: That was loaded from it.
        data: A folder or a table with labels: its val split where it states one, else all of it. By default, and where
            it is the data of the training, the val split of the training.
        trust: Packages besides vfm whose code the checkpoint may name.
        max_images: Most images that are kept, spread evenly.

    Raises:
        ValidationError: There are no such images, or some were trained on.
        LabelError: Their labels are not those of the model.
    """
    spec = spec_of(checkpoint)
    if data is None or is_root(spec, data):
        source = remembered(checkpoint, task, trust=trust)
    else:
        source = given(data, task, spec)
        _require_unseen(source, checkpoint, task, trust)
    images = open_images(source, task, max_images)
    if isinstance(task, DetectionTask):
        return BoxValidation(task, images)
    return (
        FakeValidation(task, images)
        if isinstance(task, DeepfakeTask)
        else LabelValidation(task, images)
    )


def _require_unseen(source: Source, checkpoint: Path, task: BaseTask, trust: Sequence[str]) -> None:
    """Refuse images that the model has learned from: on them it is better than it will ever be again."""
    try:
        trained = remembered(checkpoint, task, split="train", trust=trust)
    except ValidationError:
        log.warning(
            "The training data is not where it was, so it cannot be checked that none of these images was trained on."
        )
        return
    seen = set(_places(trained))
    known = [place for place in _places(source) if place in seen]
    if known:
        raise ValidationError(
            f"{len(known)} of these {len(source.records)} images were trained on, such as {known[0]}. On them the "
            "model does better than it will ever do again. Leave --data out for the val split of the training, or "
            "give others."
        )


def _places(source: Source) -> list[str]:
    """Where the files really lie; for speed the links of a folder are followed once."""
    paths = [os.path.split(r.source) for r in source.records if isinstance(r.source, str)]
    folders = {folder: os.path.realpath(folder) for folder in {folder for folder, _ in paths}}
    places = [os.path.join(folders[folder], name) for folder, name in paths]  # noqa: PTH118
    return [os.path.realpath(p) if os.path.islink(p) else p for p in places]  # noqa: PTH114

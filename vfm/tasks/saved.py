"""Checkpoint: a trained task with its entry, its results and its data by split, from one read of its file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Self

from vfm.data import ImageData
from vfm.spec import Spec, build
from vfm.tasks.base import BaseTask
from vfm.tasks.classification.results import RESULTS_FILE
from vfm.tasks.labelled_images import (
    MAX_IMAGES,
    LabelledImages,
    OpenedImages,
    ValidationError,
    open_images,
)
from vfm.tasks.validation import Validation
from vfm.training.checkpoint_file import KEY, read_any
from vfm.training.loading import restore_model

Split = Literal["train", "val"]

_STAGES = {"train": None, "val": "validate"}
_ROOTS = ("root", "table", "manifest")

log = logging.getLogger(__name__)


class Checkpoint:
    """A trained task, and what is known of it.

    Attributes:
        task: The task, in evaluation mode.
        entry: The checkpoint's own entry: data, seed, versions.
        results: Metrics by split, of the `results.json` beside the file.
        path: The file; None of a task that was never saved, which remembers no data.
    """

    def __init__(
        self,
        task: BaseTask,
        entry: Mapping[str, Any],
        results: Mapping[str, Any] = MappingProxyType({}),
        path: Path | None = None,
        trust: Collection[str] = (),
    ) -> None:
        """Take what was read, or what is known of a task in memory.

        Args:
            task: Trained task, in evaluation mode.
            entry: What a checkpoint of the task says besides its weights.
            results: Metrics by split.
            path: File that the task was read from.
            trust: Packages besides vfm whose code the data may be of.
        """
        self.task = task
        self.entry = entry
        self.results = results
        self.path = path
        self._trust = trust
        self._data: ImageData | None = None

    @classmethod
    def open(
        cls, path: str | Path, *, base: str | Path | None = None, trust: Collection[str] = ()
    ) -> Self:
        """Read a file once, and rebuild its task.

        Args:
            path: A checkpoint, or an `adapter.safetensors`.
            base: As for `BaseTask.load`.
            trust: As for `BaseTask.load`; also for the code of the data.

        Raises:
            CheckpointError: The file cannot be read.
            SpecError: It names code that is not trusted or not found.
        """
        path = Path(path)
        content = read_any(path)
        task: BaseTask = restore_model(content, path, BaseTask, base=base, trust=trust)
        file = path.parent / RESULTS_FILE
        results = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return cls(task, content[KEY], results, path, trust)

    @cached_property
    def data_spec(self) -> Spec | None:
        """The spec of the data that the task was trained on; None where the checkpoint does not say."""
        spec: Spec | None = (self.entry.get("data") or {}).get("spec")
        return spec

    def split(self, name: Split) -> LabelledImages:
        """A split of the data that the task was trained on; they are read when first asked for.

        Args:
            name: `train` or `val`.

        Raises:
            ValidationError: The checkpoint names no data, or they are not there any more.
            SpecError: The data is of code that is not trusted.
        """
        if self.data_spec is None:
            raise ValidationError(
                f"{self.path} does not say what it was trained on. Name images with labels: --data FOLDER."
            )
        if self._data is None:
            self._data = build(self.data_spec, base=ImageData, trust=self._trust)
        try:
            self._data.setup(_STAGES[name])
        except (ValueError, OSError) as error:
            raise ValidationError(
                f"The data that {self.path} was trained on gives no {name} images: {error}\n"
                "Name other images with labels: --data FOLDER."
            ) from error
        if not self._data.records.get(name):
            raise ValidationError(
                f"The data that {self.path} was trained on has no {name} images. Name others with labels: --data "
                "FOLDER."
            )
        self.task.check_data(self._data)
        return LabelledImages.of_splits(self._data, [name])

    def open_images(
        self, source: LabelledImages | Split, max_images: int = MAX_IMAGES
    ) -> OpenedImages:
        """Open images as the task takes them.

        Args:
            source: Labelled images, or a split of the training's data.
            max_images: Most of them, spread evenly.

        Raises:
            ValidationError: There are none, or none can be read.
        """
        images = self.split(source) if isinstance(source, str) else source
        task = self.task
        return open_images(images, task.preprocess, places=task.head.places, max_images=max_images)

    def validation(self, data: Path | None = None, *, max_images: int = MAX_IMAGES) -> Validation:
        """Real images with their truth, which the task has not learned from.

        Args:
            data: A folder or a table with labels: its val split where it states one, else all of it. By default, and
                where it is the data of the training, the val split of the training.
            max_images: Most images that are kept, spread evenly.

        Raises:
            ValidationError: There are no such images, or some were trained on.
            LabelError: Their labels are not those of the task.
        """
        if data is None or self._was_trained_on(data):
            source = self.split("val")
        else:
            source = self._open_data(data)
            self._require_unseen(source)
        return self.task.validation(self.open_images(source, max_images))

    def _was_trained_on(self, path: Path) -> bool:
        options = (self.data_spec or {}).get("init_args", {})
        roots = [options[name] for name in _ROOTS if options.get(name) is not None]
        return any(Path(root).resolve() == path.resolve() for root in roots)

    def _open_data(self, path: Path) -> LabelledImages:
        if not path.exists():
            raise ValidationError(
                f"There is no {path} (looked in {Path.cwd()}). Give --data a folder or a table of images with labels."
            )
        try:
            source = self.task.open_data(path, self.data_spec or {})
        except OSError as error:
            raise ValidationError(f"{path} cannot be read: {error}") from error
        if not source.positions:
            raise ValidationError(
                f"{path} holds images, but no labels. Put them into folders named by class, or give a table of them."
            )
        self.task.check_data(source.data)
        return source

    def _require_unseen(self, source: LabelledImages) -> None:
        """Refuse images that the task has learned from: on them it is better than it will ever be again."""
        try:
            trained = self.split("train")
        except ValidationError:
            log.warning(
                "The training data is not where it was, so it cannot be checked that none of these images was trained "
                "on."
            )
            return
        seen = set(_real_paths(trained))
        known = [path for path in _real_paths(source) if path in seen]
        if known:
            raise ValidationError(
                f"{len(known)} of these {len(source.positions)} images were trained on, such as {known[0]}. On them "
                "the model does better than it will ever do again. Leave --data out for the val split of the training, "
                "or give others."
            )


def _real_paths(source: LabelledImages) -> list[str]:
    """Where the files really lie; for speed the links of a folder are followed once."""
    paths = [os.path.split(r.source) for r in source.records if isinstance(r.source, str)]
    folders = {folder: os.path.realpath(folder) for folder in {folder for folder, _ in paths}}
    places = [os.path.join(folders[folder], name) for folder, name in paths]  # noqa: PTH118
    return [os.path.realpath(p) if os.path.islink(p) else p for p in places]  # noqa: PTH114

"""Checkpoint: a trained task with its entry, results, calibration and data by split, from one read of its file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from vfm.data import ImageData
from vfm.data.records import Record, describe_content, hash_content
from vfm.data.tar import TarImage
from vfm.models.backbone import is_backbone_name
from vfm.spec import Spec, build
from vfm.tasks.base import BaseTask
from vfm.tasks.calibration import (
    CALIBRATION_FILE,
    Calibration,
    CalibrationError,
    CalibrationOptions,
)
from vfm.tasks.embedding import EmbeddingTask
from vfm.tasks.labeled_images import (
    MAX_IMAGES,
    LabeledImages,
    OpenedImages,
    ValidationError,
    open_images,
)
from vfm.tasks.results import SCORES_FILE, read_results
from vfm.tasks.validation import Validation
from vfm.training.checkpoint import KEY, CheckpointError, list_versions, read_model_file

Split = Literal["train", "val", "test"]

_STAGES = {"train": None, "val": "validate", "test": "test"}
_WHY_UNSEEN = {
    "train": "trained on, such as {}. On them the model does better than it will ever do again.",
    "test": "tested on, or will be, such as {}. Fitted on them, the model's test would prove nothing.",
}
_SEEN_REMEDY = "Leave the data out for the val split of the training, or give others."
_ROOTS = ("root", "table", "manifest")

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Checkpoint:
    """A trained task, and what is known of it."""

    task: BaseTask
    """The task, in evaluation mode."""
    entry: Mapping[str, Any]
    """The checkpoint's own entry: data, seed, versions."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """Metrics by split, of the `results.json` beside the file."""
    path: Path | None = None
    """The file; None of a task that was never saved, which remembers no data."""
    trust: Collection[str] = ()
    """Packages besides vfm whose code the data may be of."""
    _data: ImageData | None = None

    @classmethod
    def open(
        cls, path: str | Path, *, base: str | Path | None = None, trust: Collection[str] = ()
    ) -> Self:
        """Read a file once, and rebuild its task; arguments and errors are those of `BaseTask.load`.

        The name of a backbone, where there is no such file, gives the task that embeds by it; `base` is then a file of
        its weights in place of timm's.
        """
        if is_backbone_name(path):
            weights = None if base is None else Path(base)
            embedding = EmbeddingTask(str(path), pretrained=base is None, weights=weights)
            report = embedding.backbone.report
            entry = {
                "versions": list_versions(),
                "seed": None,
                "weights": report and report.to_dict(),
            }
            return cls(embedding, entry)
        path = Path(path)
        content = read_model_file(path)
        task: BaseTask = BaseTask.restore(content, path, base=base, trust=trust)
        return cls(task, content[KEY], read_results(path.parent), path, trust)

    @property
    def data_spec(self) -> Spec | None:
        """The spec of the data that the task was trained on; None where the checkpoint does not say."""
        spec: Spec | None = (self.entry.get("data") or {}).get("spec")
        return spec

    @cached_property
    def checksum(self) -> str:
        """A sha256 of the file, by which a calibration knows it."""
        assert self.path is not None  # what was never saved has no calibration
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @cached_property
    def calibration(self) -> Calibration | None:
        """What `vfm calibrate` fitted for this file; None where there is nothing, or the task states its own rules.

        What was fitted for another file in the folder is not used, and warned about.

        Raises:
            CalibrationError: The file is damaged.
        """
        if self.path is None or self.task.define_rules() is not None:
            return None
        file = self.path.parent / CALIBRATION_FILE
        if not file.is_file():
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            if values["checkpoint_sha256"] != self.checksum:
                log.warning(
                    "%s is of another checkpoint, %s, and is not used. Fit one for this: vfm calibrate %s.",
                    *(file, values["checkpoint"], self.path),
                )
                return None
            origin = f"From {CALIBRATION_FILE} beside the checkpoint, fitted on {values['data']}"
            return Calibration.from_dict(values, origin)
        except (KeyError, TypeError, ValueError) as error:
            raise CalibrationError(
                f"{file} is no calibration: {type(error).__name__}: {error}. Write it anew (vfm calibrate "
                f"{self.path}), or remove it."
            ) from error

    @cached_property
    def out_of_fold(self) -> tuple[LabeledImages, Validation] | None:
        """Training images and their out-of-fold scores, where the head was solved on all; None where others are left.

        Raises:
            ValidationError: The data of the training is not there any more.
        """
        file = self.path.parent / SCORES_FILE if self.path is not None else None
        if file is None or not file.is_file():
            return None
        images = self.split("train")
        with np.load(file) as arrays:
            if images.data.records.get("val") or str(arrays["fingerprint"]) != (
                (self.entry.get("data") or {}).get("fingerprint")
            ):
                return None  # a val split judges, or the file is of another training
            judged = images.select(arrays["position"].tolist())
            return judged, self.task.open_out_of_fold(dict(arrays))

    def split(self, name: Split) -> LabeledImages:
        """Return a split of the data that the task was trained on, which is read when first asked for.

        Raises:
            ValidationError: The checkpoint names no data, or they are not there any more.
            SpecError: The data is of code that is not trusted.
        """
        if self.data_spec is None:
            raise ValidationError(
                f"{self.path} does not say what it was trained on. Name images with labels: --data FOLDER."
            )
        if self._data is None:
            self._data = build(self.data_spec, base=ImageData, trust=self.trust)
            self._data.preprocess = self.task.preprocess
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
        return LabeledImages.select_splits(self._data, [name])

    def open_images(
        self, source: LabeledImages | Split, max_images: int = MAX_IMAGES
    ) -> OpenedImages:
        """Open at most `max_images` of labelled images, or of a split of the training's data, as the task takes them.

        Raises:
            ValidationError: There are none, or none can be read.
        """
        images = self.split(source) if isinstance(source, str) else source
        task = self.task
        uses = task.head.needs_geometry
        return open_images(images, task.preprocess, needs_geometry=uses, max_images=max_images)

    def select_calibration_images(
        self, data: Path | None, options: CalibrationOptions
    ) -> LabeledImages:
        """Return images to calibrate on, which the task was neither trained nor tested on.

        Args:
            data: A folder or a table with labels. By default, and where it is the data of the training, splits of the
                training.
            options: Options of `vfm calibrate`.

        Raises:
            ValidationError: There are no such images, or some were trained or tested on.
            LabelError: Their labels are not those of the task.
        """
        open_data = partial(self.task.open_calibration_data, options=options)
        source = self._select_images(data, self.task.choose_splits(options), open_data)
        self._require_unseen(source, tested=True)
        return source

    def open_validation(
        self, data: Path | None = None, *, max_images: int = MAX_IMAGES, tested: bool = True
    ) -> Validation:
        """Open real images with their truth, which the task has not learned from.

        Args:
            data: A folder or a table with labels: its val split where it states one, else all of it. By default, and
                where it is the data of the training, the val split of the training.
            max_images: Most images that are kept, spread evenly.
            tested: Whether they may be images that the task was tested on.

        Raises:
            ValidationError: There are no such images, or some were trained on.
            LabelError: Their labels are not those of the task.
        """
        splits = ("val",)
        if data is None and tested and self.out_of_fold is not None:
            splits = ("test",)
            log.warning(
                "No image was left for validation: the head was solved on all. The test images stand in."
            )
        source = self._select_images(data, splits, self.task.open_data)
        if not tested or source.data is not self._data:
            self._require_unseen(source, tested=not tested)
        return self.task.open_validation(self.open_images(source, max_images))

    def _select_images(
        self,
        path: Path | None,
        splits: Sequence[str],
        open_data: Callable[[Path, Spec], LabeledImages],
    ) -> LabeledImages:
        """Open the data of a path; where there is none, or it is the training's, select splits of the training's."""
        options = (self.data_spec or {}).get("init_args", {})
        roots = [Path(options[name]).resolve() for name in _ROOTS if options.get(name) is not None]
        if path is None or path.resolve() in roots:
            parts = [self.split(name) for name in splits]  # type: ignore[arg-type]
            return replace(parts[0], positions=[p for part in parts for p in part.positions])
        if not path.exists():
            raise ValidationError(
                f"There is no {path} (looked in {Path.cwd()}). Give --data a folder or a table of images with labels."
            )
        try:
            source = open_data(path, self.data_spec or {})
        except OSError as error:
            raise ValidationError(f"{path} cannot be read: {error}") from error
        if not source.positions:
            raise ValidationError(
                f"{path} holds images, but no labels. Put them into folders named by class, or give a table of them."
            )
        self.task.check_data(source.data)
        return source

    def _require_unseen(self, source: LabeledImages, *, tested: bool) -> None:
        """Refuse images that the task has learned from, or on which it is judged, where their data still exists."""
        splits: tuple[Split, ...] = ("train", "test") if tested else ("train",)
        for name in splits:
            try:
                records = self.split(name).records
            except (ValidationError, CheckpointError) as error:
                log.debug("The %s images cannot be read: %s", name, error)
                if name == "train":
                    log.warning(
                        "The training data is not where it was, so it cannot be checked that none of these images was "
                        "trained on%s.",
                        ", or tested on" * tested,
                    )
                    return
            else:
                # Two splits of one data set may well hold equal images: whoever drew them decided so.
                copies = source.data is not self._data
                require_disjoint(source.records, records, name, copies=copies)


def require_disjoint(
    records: Sequence[Record], others: Sequence[Record], split: Split, *, copies: bool = True
) -> None:
    """Refuse images that are among those of a split of the training's data, by any name; with `copies` equal files too.

    Raises:
        ValidationError: Some are among them; with their number, and the name of one.
    """
    seen = set(_describe_sources(others))
    common = [
        r.name for r, key in zip(records, _describe_sources(records), strict=True) if key in seen
    ]
    if copies and not common:
        common = list(find_copies(records, others))
    if common:
        raise ValidationError(
            f"{len(common)} of these {len(records)} images were {_WHY_UNSEEN[split].format(common[0])} {_SEEN_REMEDY}"
        )


def find_copies(records: Sequence[Record], others: Sequence[Record]) -> dict[str, str]:
    """Find images that are among others by their content; only files of equal sizes are read.

    Returns:
        The name of one of the others by the name of each image that has the same bytes.
    """
    sizes = {describe_content(r) for r in others} & {describe_content(r) for r in records}
    same_size = (r for r in others if describe_content(r) in sizes)
    contents = {content: r.name for r in same_size if (content := hash_content(r)) is not None}
    hashes = ((r.name, hash_content(r)) for r in records if describe_content(r) in sizes)
    return {name: contents[content] for name, content in hashes if content in contents}


def _describe_sources(records: Sequence[Record]) -> list[Hashable]:
    """Return what tells whether two records are of one image: its real path, its bytes in a tar, its array."""
    folders: dict[str, str] = {}
    keys: list[Hashable] = []
    for record in records:
        source = record.source
        if isinstance(source, str):
            folder, name = os.path.split(source)
            # For speed the links of a folder are followed once.
            if folder not in folders:
                folders[folder] = os.path.realpath(folder)
            path = os.path.join(folders[folder], name)  # noqa: PTH118
            keys.append(os.path.realpath(path) if os.path.islink(path) else path)  # noqa: PTH114
        else:
            keys.append(source if isinstance(source, TarImage) else id(source))
    return keys

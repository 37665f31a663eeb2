"""Real images for an export: of the data that a checkpoint remembers, or of data that is given."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from vfm_runtime.bundle.predictor import Arrays

from vfm.data import DetectionData, FolderData, IdxData, ImageData, TableData
from vfm.data.dataset import ImageDataset, Record, Skipped
from vfm.data.detection.base import BoxData
from vfm.data.detection.dataset import BoxDataset
from vfm.data.splits import SPLITS
from vfm.data.tables import read_table
from vfm.deepfake.data.base import CROP_FILE, FakeImages
from vfm.deepfake.data.data import FakesData
from vfm.deepfake.data.dataset import FakesDataset
from vfm.deepfake.task import DeepfakeTask, require_same_crop
from vfm.preprocess import Preprocess
from vfm.spec import Spec, build, class_path
from vfm.tasks import BaseTask
from vfm.tasks.checkpoint import KEY, read_any
from vfm.tasks.detection.task import DetectionTask

MAX_IMAGES = 2000
"""Most images that are kept in memory, spread evenly over the data."""

Split = Literal["train", "val"]

_STAGES = {"train": None, "val": "validate"}
_TABLE = ("path_column", "label_column", "label_separator", "allow_no_label", "split_column")
_BOXES = ("box_format", "tile", "tile_overlap")

log = logging.getLogger(__name__)


class ValidationError(ValueError):
    """There are no images to validate an export on; the message says why and what to do."""


@dataclass(frozen=True)
class Source:
    """Images of one split, not yet opened."""

    data: ImageData
    """Where they come from; its labels are known."""
    records: Sequence[Record]

    def thinned(self, number: int) -> Source:
        """No more than some of the images, spread evenly.

        Args:
            number: Most images.
        """
        if len(self.records) <= number:
            return self
        log.warning(
            "Of %d images %d are taken, spread evenly.",
            len(self.records),
            number,
        )
        return self.picked(np.linspace(0, len(self.records) - 1, number).round().astype(int))

    def picked(self, places: Collection[int]) -> Source:
        """The images at these places.

        Args:
            places: In `records`.
        """
        return replace(self, records=[self.records[i] for i in places])

    def dataset(self, preprocess: Preprocess) -> ImageDataset:
        """What opens the images and brings them to the model's size, as validation in training does.

        Args:
            preprocess: Of the model.
        """
        if isinstance(self.data, FakeImages):
            return FakesDataset(self.records, self.data.crop, preprocess, seed=self.data.seed)
        if isinstance(self.data, BoxData):
            return BoxDataset(self.records, preprocess)
        return ImageDataset(self.records, preprocess, num_labels=self.data.num_targets)


@dataclass(frozen=True)
class Images:
    """Opened images, at the model's size. N images."""

    inputs: Arrays
    """`pixels`, uint8 [N, h, w, 3]; of a detector also `geometry`, float32 [N, 6]."""
    source: Source
    """What they show: of each the record."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Reason by name for those that could not be read."""


def open_images(source: Source, task: BaseTask, max_images: int = MAX_IMAGES) -> Images:
    """Open images once and keep them as the model takes them.

    Args:
        source: Whose images.
        task: Whose size and geometry they get.
        max_images: Most of them.

    Raises:
        ValidationError: None can be read.
    """
    source = source.thinned(max_images)
    number = len(source.records)
    images = source.dataset(task.preprocess)
    pixels = np.empty((number, *task.preprocess.size, 3), np.uint8)
    geometry = np.empty((number, 6), np.float32)
    kept: list[int] = []
    skipped: dict[str, str] = {}
    # Opening and resizing leave Python's lock alone, and threads need no copy of the data.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for place, sample in enumerate(pool.map(images.__getitem__, range(number))):
            if isinstance(sample, Skipped):
                skipped[sample.name] = sample.reason
                continue
            pixels[len(kept)] = sample.image
            if task.head.places:
                geometry[len(kept)] = sample.geometry  # type: ignore[attr-defined]  # a BoxSample
            kept.append(place)
    _tell_skipped(skipped, number)
    inputs: Arrays = {"pixels": pixels[: len(kept)]}
    if task.head.places:
        inputs["geometry"] = geometry[: len(kept)]
    return Images(inputs, source.picked(kept), skipped)


def remembered(
    checkpoint: Path, task: BaseTask, *, split: Split = "val", trust: Sequence[str] = ()
) -> Source:
    """A split of the data that a checkpoint was trained on.

    Args:
        checkpoint: A .ckpt file, or an adapter.
        task: That was loaded from it.
        split: Of the training.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        ValidationError: The checkpoint names no data, or they are not there any more.
        SpecError: The data is of code that is not trusted.
    """
    spec = spec_of(checkpoint)
    if spec is None:
        raise ValidationError(
            f"{checkpoint} does not say what it was trained on. Name images with labels: --data FOLDER."
        )
    data: ImageData = build(spec, base=ImageData, trust=trust)
    try:
        data.setup(_STAGES[split])
    except (ValueError, OSError) as error:
        raise ValidationError(
            f"The data that {checkpoint} was trained on gives no {split} images: {error}\n"
            "Name other images with labels: --data FOLDER."
        ) from error
    if not data.records.get(split):
        raise ValidationError(
            f"The data that {checkpoint} was trained on has no {split} images. Name others with labels: --data FOLDER."
        )
    _check_crop(data, task)
    return Source(data, data.records[split])


def given(path: Path, task: BaseTask, spec: Spec | None = None) -> Source:
    """The images of data that has nothing to do with the training: its val split where it states one, else all.

    Args:
        path: A folder or a table, in any layout that the task learns from.
        task: The model; it decides how the data is read.
        spec: Of the data of the training, whose columns and tiles are taken over.

    Raises:
        ValidationError: There is nothing, or nothing that can be read in such a way.
    """
    if not path.exists():
        raise ValidationError(
            f"There is no {path} (looked in {Path.cwd()}). Give --data a folder or a table of images with labels."
        )
    try:
        source = _read(path, task, spec or {})
    except OSError as error:
        raise ValidationError(f"{path} cannot be read: {error}") from error
    if not source.records:
        raise ValidationError(
            f"{path} holds images, but no labels. Put them into folders named by class, or give a table of them."
        )
    _check_crop(source.data, task)
    return source


def spec_of(checkpoint: Path) -> Spec | None:
    """The spec of the data that a checkpoint was trained on; None where it does not say.

    Args:
        checkpoint: A .ckpt file, or an adapter.
    """
    spec: Spec | None = (read_any(checkpoint)[KEY]["data"] or {}).get("spec")
    return spec


def is_root(spec: Spec | None, path: Path) -> bool:
    """Whether a path is that of the data of the training.

    Args:
        spec: Of that data.
        path: A folder or a file.
    """
    places = [(spec or {}).get("init_args", {}).get(name) for name in ("root", "table", "manifest")]
    return any(place is not None and Path(place).resolve() == path.resolve() for place in places)


def _read(path: Path, task: BaseTask, spec: Spec) -> Source:
    if isinstance(task, DeepfakeTask):
        return _read_fakes(path, task)
    none: dict[str, Any] = {"val_fraction": 0.0, "test_fraction": 0.0}
    data: ImageData
    if isinstance(task, DetectionTask):
        data = DetectionData(path, **none, **_carried(spec, DetectionData, _BOXES))
    elif not path.is_dir():
        data = TableData(path, **none, **_columns(path, task, spec))
    elif any(path.glob("*-idx3-ubyte*")):
        data = IdxData(path, val_fraction=0.0, **_carried(spec, IdxData, ("label_names",)))
    else:
        data = FolderData(path, **none)
    data.setup()
    return Source(data, _joined(data.records, _stated(data.records, path)))


def _read_fakes(path: Path, task: DeepfakeTask) -> Source:
    folder = path if path.is_dir() else path.parent
    kind = task.crop.source if task.crop is not None else ""
    # What crop.json says goes first; without it the images are taken for what the model was trained on.
    silent = not (folder / CROP_FILE).is_file()
    options: dict[str, Any] = {
        "manifest": path if path.is_file() else None,
        "mode": "plain",
        "edits": False,
        "benign_share": 0.0,
        "cropped": silent and kind == "cropped",
        "native": silent and kind == "native",
        "crop_size": task.crop.size if task.crop is not None else 256,
        "val_fraction": 0.0,
        "test_fraction": 0.0,
    }
    data = FakesData(folder, **options)
    found = data.find()
    if not found.get("val"):
        # Not as they are trained on, of which whole images show one square alone.
        data = FakesData(folder, **options, all_as="val")
        found = data.find()
    data.labels = task.labels
    return Source(data, found["val"])


def _stated(splits: Mapping[str, Sequence[Record]], path: Path) -> list[str]:
    """The val split where the data states one, else all that have labels."""
    if splits.get("val"):
        return ["val"]
    found = [name for name in SPLITS if splits.get(name)]
    if len(found) > 1:
        log.warning("%s states no val split: all of %s is taken.", path, " and ".join(found))
    return found


def _joined(splits: Mapping[str, Sequence[Record]], names: Sequence[str]) -> list[Record]:
    return [record for name in names for record in splits[name]]


def _columns(path: Path, task: BaseTask, spec: Spec) -> dict[str, Any]:
    """The columns by which a table was read in training; else those named as the labels, where there are several."""
    carried = _carried(spec, TableData, _TABLE)
    columns = read_table(path).columns
    if carried and carried["path_column"] in columns:
        if carried["split_column"] not in columns:
            carried["split_column"] = None
        return carried
    if task.multilabel and set(task.labels) <= set(columns):
        return {"label_column": list(task.labels)}
    return {}


def _carried(spec: Spec, cls: type, names: Sequence[str]) -> dict[str, Any]:
    if spec.get("class_path") != class_path(cls):
        return {}
    return {name: spec["init_args"][name] for name in names}


def _check_crop(data: ImageData, task: BaseTask) -> None:
    if isinstance(task, DeepfakeTask):
        if not isinstance(data, FakeImages):
            raise ValidationError(
                f"The model tells real from fake, but {type(data).__name__} does not say which images are forged. Name "
                "a folder as for FakesData, or a manifest: --data FOLDER."
            )
        if task.crop is not None:
            require_same_crop(data.crop, task.crop)


def _tell_skipped(skipped: Mapping[str, str], number: int) -> None:
    if not skipped:
        return
    name, reason = next(iter(skipped.items()))
    said = f"{len(skipped)} of the {number} images cannot be read, such as {name}: {reason}"
    if len(skipped) == number:
        raise ValidationError(f"{said} Give others with --data.")
    log.warning("%s They are left out.", said)

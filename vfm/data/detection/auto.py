"""Images with boxes, from the files that annotation tools write."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from vfm_runtime.errors import OptionError
from vfm_runtime.media.image import find_images

from vfm.data.dataset import Record
from vfm.data.detection.annotation import AnnotatedImage, BoxError
from vfm.data.detection.base import BoxData
from vfm.data.detection.clean import Fix, checked, present, require_inside
from vfm.data.detection.coco import BoxFormat, find_coco, read_coco
from vfm.data.detection.csv import find_tables, read_tables
from vfm.data.detection.dataset import BoxAugment
from vfm.data.detection.tiles import tiles
from vfm.data.detection.voc import find_voc, read_voc
from vfm.data.detection.yolo import find_yolo, read_yolo
from vfm.data.folder import SPLIT_FILE
from vfm.data.layouts import Layout, LayoutTable, Reading
from vfm.data.splits import SPLITS, SplitRow, complete_splits, read_split, write_split
from vfm.data.tables import write_rows
from vfm.spec import Spec

Format = Literal["auto", "coco", "yolo", "voc", "csv"]

REPAIRS_FILE = "boxes_mended.csv"
"""Beside a run's logs: every box that was clipped or dropped."""


def _explain(root: Path) -> str:
    return (
        f"{root} holds no annotations of a known format: COCO (train/_annotations.coco.json, "
        "annotations/instances_train*.json), YOLO (data.yaml with names), Pascal VOC (.xml) or a .csv of boxes."
    )


BOX_LAYOUTS: LayoutTable[Layout[AnnotatedImage]] = LayoutTable(
    {
        "coco": Layout(find_coco, read_coco, ("box_format",)),
        "yolo": Layout(find_yolo, read_yolo),
        "voc": Layout(find_voc, read_voc),
        "csv": Layout(find_tables, read_tables),
    },
    BoxError,
    _explain,
)


class DetectionData(BoxData):
    """Images with boxes in the format of COCO, YOLO, Pascal VOC or a table.

    Splits that the files make are followed; what is missing of train and val is drawn.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        format: Format = "auto",
        box_format: BoxFormat = "xywh",
        tile: int | None = None,
        tile_overlap: float = 0.2,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_file: str | Path | None = None,
        augment: BoxAugment = BoxAugment(),
        batch_size: int = 16,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        """Make the data module; the annotations are read by `setup`.

        Args:
            root: The folder of images and annotations; or a COCO json, a data.yaml of YOLO, a table.
            format: coco, yolo, voc or csv; `auto` finds out.
            box_format: Order of the numbers of a COCO box: xywh, as the format has it, or xyxy for corners.
            tile: Side in pixels of the tiles that larger photos are cut into; null leaves them whole.
            tile_overlap: Least share of a tile that its neighbour shows too.
            val_fraction: Share of the images for validation, where the files have no split for it.
            test_fraction: Share of the images for the test, where the files have no splits.
            split_file: A table of images and their splits, as a training run leaves it; in place of all other splits.
            augment: Augmentation of training images.
            batch_size: Images in a batch, on each process.
            num_workers: Processes that open images, as for `ImageData`.
            seed: Of order, augmentation and splits.

        Raises:
            ValueError: An argument lies outside its range.
        """
        super().__init__(augment=augment, batch_size=batch_size, num_workers=num_workers, seed=seed)
        if format not in get_args(Format):
            raise OptionError(f"format is '{format}'. Choices: {', '.join(get_args(Format))}.")
        if tile is not None and tile < 32:
            raise OptionError(f"tile is {tile}. Give the side of a tile in pixels, 32 or more.")
        if not 0 <= tile_overlap < 0.9:
            raise OptionError(f"tile_overlap is {tile_overlap}. Give a share from 0 to below 0.9.")
        if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
            raise OptionError(
                f"val_fraction is {val_fraction} and test_fraction is {test_fraction}. "
                "Give shares from 0 that leave something to train on, such as 0.1 and 0.1."
            )
        self.root = Path(root)
        self.format = format
        self.box_format = box_format
        self.tile = tile
        self.tile_overlap = tile_overlap
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_file = Path(split_file) if split_file is not None else None
        self.fixes: list[Fix] = []

    def read(self) -> dict[str, list[Record]]:
        """Read the annotations, check them, and find the images of each split."""
        reading = self._reading()
        for note in reading.notes:
            warnings.warn(note, stacklevel=2)
        scenes = reading.entries
        if not scenes:
            raise BoxError(f"There are annotations in {self.root}, but of no image at all.")
        absent = present(scenes, self.root)
        if absent:
            warnings.warn(
                f"{len(absent)} annotated images are missing, such as {absent[0]}; they are listed with the results.",
                stacklevel=2,
            )
        require_inside(scenes, self.root)
        names = self._names(reading, scenes)
        self.labels = tuple(names)
        splits = self._splits(reading.splits, names)
        records = {
            split: self._records(splits[split], names) for split in SPLITS if splits.get(split)
        }
        self._tell_repairs(scenes)
        return records

    def read_predict(self) -> list[Record]:
        """Every image below the root, without boxes."""
        folder = self.root if self.root.is_dir() else self.root.parent
        return [Record(str(p), -1, p.relative_to(folder).as_posix()) for p in find_images(folder)]

    def remedy(self, split: str) -> str:
        """What to do about a missing split."""
        if split == "val":
            return (
                f"Add annotations of a val split to {self.root}, or set val_fraction above 0; to train without "
                "validation, set limit_val_batches=0 in the trainer."
            )
        return f"Add annotations of a {split} split to {self.root}, or give data that has one."

    def keep_split(self, folder: Path) -> Spec:
        """Write `splits.csv`, and `boxes_mended.csv` where boxes were clipped or dropped.

        Args:
            folder: Of the training run.
        """
        self._read_once()
        rows = {
            SplitRow(_photo(record), "", split)
            for split in SPLITS
            for record in self.records.get(split, [])
        }
        path = folder.absolute() / SPLIT_FILE
        write_split(path, rows)
        if self.fixes:
            listed = [repair._asdict() for repair in self.fixes]
            write_rows(folder / REPAIRS_FILE, Fix._fields, listed)
        spec = self.spec
        spec["init_args"] |= {"root": str(self.root.absolute()), "split_file": str(path)}
        return spec

    def describe(self) -> dict[str, Any]:
        """Class names, images and boxes per split and class, and how many boxes were mended; ready for JSON."""
        found = super().describe()
        return found | {"mended": dict(Counter(repair.done for repair in self.fixes))}

    def _reading(self) -> Reading[AnnotatedImage]:
        if not self.root.exists():
            raise BoxError(
                f"{self.root} does not exist (looked in {Path.cwd()}). Give the folder of images and annotations."
            )
        name: str = self.format
        if name == "auto":
            name = BOX_LAYOUTS.detect(self.root)
        else:
            BOX_LAYOUTS.require(self.root, name, "--data.format")
        layout = BOX_LAYOUTS.layouts[name]
        options = {"box_format": self.box_format} if "box_format" in layout.options else {}
        return layout.read(self.root, **options)

    def _names(
        self, reading: Reading[AnnotatedImage], scenes: Sequence[AnnotatedImage]
    ) -> dict[str, int]:
        """A number for each class that a box has, in the order of the file."""
        used = {box.label for scene in scenes for box in scene.boxes}
        if not used:
            raise BoxError(
                f"There is not one box in {self.root}. Check that its annotations are those of the images."
            )
        listed = list(reading.labels) if reading.labels is not None else sorted(used)
        unused = [name for name in listed if name not in used]
        if unused:
            warnings.warn(
                f"{len(unused)} classes of {self.root} have no box and are left out: {', '.join(unused[:5])}.",
                stacklevel=2,
            )
        return {name: number for number, name in enumerate(n for n in listed if n in used)}

    def _splits(
        self, splits: Mapping[str, list[AnnotatedImage]], names: Mapping[str, int]
    ) -> dict[str, list[AnnotatedImage]]:
        if self.split_file is not None:
            return _as_listed(splits, self.split_file)
        return complete_splits(
            splits,
            lambda scene: (
                scene.name,
                tuple(sorted({names[box.label] for box in scene.boxes if box.label in names})),
            ),
            list(names),
            val_fraction=self.val_fraction,
            test_fraction=self.test_fraction,
            seed=self.seed,
        )

    def _records(self, scenes: Sequence[AnnotatedImage], names: dict[str, int]) -> list[Record]:
        records = []
        for scene in sorted(scenes, key=lambda scene: scene.name):
            annotation, labels = checked(scene, names, self.fixes)
            if self.tile is None:
                records.append(Record(str(scene.path), labels, scene.name, objects=annotation))
                continue
            for part, own in tiles(annotation, labels, self.tile, self.tile_overlap):
                place = "" if part.tile is None else f"@{part.tile.left},{part.tile.top}"
                records.append(Record(str(scene.path), own, scene.name + place, objects=part))
        return records

    def _tell_repairs(self, scenes: Sequence[AnnotatedImage]) -> None:
        if not self.fixes:
            return
        number = sum(len(scene.boxes) for scene in scenes)
        kinds = Counter(repair.done for repair in self.fixes)
        said = "; ".join(f"{count} {what}" for what, count in kinds.most_common())
        first = self.fixes[0]
        warnings.warn(
            f"Of {number} boxes of {self.root}: {said}. The first: '{first.label}' {first.box} in {first.image}; a "
            f"training lists all in {REPAIRS_FILE}.",
            stacklevel=2,
        )


def _photo(record: Record) -> str:
    """Name of the file's image, for a tile too."""
    tiled = record.objects is not None and record.objects.tile is not None
    return record.name.rpartition("@")[0] if tiled else record.name


def _as_listed(
    given: Mapping[str, list[AnnotatedImage]], path: Path
) -> dict[str, list[AnnotatedImage]]:
    splits = {row.path: row.split for row in read_split(path)}
    scenes = [scene for found in given.values() for scene in found]
    unknown = sorted({scene.name for scene in scenes} ^ set(splits))
    if unknown:
        raise BoxError(
            f"{len(unknown)} images are either annotated or listed in {path}, but not both, such as '{unknown[0]}'. Is "
            "it the table of this data?"
        )
    return {split: [s for s in scenes if splits[s.name] == split] for split in SPLITS}

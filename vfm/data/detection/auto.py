"""Detection data by path: images with boxes in COCO, YOLO, Pascal VOC or a table, told apart by their files."""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Literal, Unpack, get_args

from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.tiling import LEAST_SIDE, Tiling

from vfm.data.class_folders import list_readable, write_prefix
from vfm.data.copies import find_copies, warn_of_copies
from vfm.data.detection.annotation import AnnotatedImage, BoxError
from vfm.data.detection.base import BoxData
from vfm.data.detection.clean import (
    Fix,
    check_boxes,
    find_absent,
    recognize_fractions,
    require_inside,
    require_one_split,
)
from vfm.data.detection.coco import BoxFormat, find_coco, read_coco
from vfm.data.detection.csv import find_tables, read_tables
from vfm.data.detection.dataset import BoxAugment
from vfm.data.detection.foreign import explain_foreign
from vfm.data.detection.labelstudio import find_label_studio, read_label_studio
from vfm.data.detection.orientation import Orientation, settle_boxes
from vfm.data.detection.tiles import name_photo
from vfm.data.detection.voc import find_voc, read_voc
from vfm.data.detection.yolo import find_yolo, read_yolo
from vfm.data.folder import SPLIT_FILE
from vfm.data.layouts import Layout, LayoutTable, Reading
from vfm.data.options import LOADER_DEFAULTS, LoaderOptions
from vfm.data.records import Record
from vfm.data.splits import (
    SPLITS,
    SplitRow,
    check_fractions,
    complete_splits,
    read_split,
    write_split,
)
from vfm.data.tables import write_rows
from vfm.spec import Spec

Format = Literal["auto", "coco", "yolo", "voc", "csv", "labelstudio"]

FIXES_FILE = "boxes_mended.csv"
"""Beside a run's logs: every box that was clipped or dropped."""


def _explain(root: Path) -> str:
    return explain_foreign(root) or (
        f"{root} holds no annotations of a known format: COCO (train/_annotations.coco.json, "
        "annotations/instances_train*.json), YOLO (data.yaml with names), Pascal VOC (.xml) or a .csv of boxes."
    )


BOX_LAYOUTS: LayoutTable[Layout[AnnotatedImage]] = LayoutTable(
    {
        "coco": Layout(find_coco, read_coco, ("box_format",)),
        "yolo": Layout(find_yolo, read_yolo),
        # Beside its tasks lies an XML file, which is none of VOC.
        "labelstudio": Layout(find_label_studio, read_label_studio),
        "voc": Layout(find_voc, read_voc, ("box_origin",)),
        "csv": Layout(find_tables, read_tables),
    },
    BoxError,
    _explain,
)


class DetectionData(BoxData):
    """Images with boxes in the format of COCO, YOLO, Pascal VOC or a table.

    Splits that the files make are followed; what is missing of train and val is drawn.
    """

    option_defaults: ClassVar[LoaderOptions] = {**LOADER_DEFAULTS, "batch_size": 16}

    def __init__(
        self,
        root: str | Path,
        *,
        format: Format = "auto",
        box_format: BoxFormat = "xywh",
        box_origin: int | None = None,
        box_orientation: Orientation = "auto",
        tile: int | None = None,
        tile_overlap: float = 0.2,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        split_file: str | Path | None = None,
        repeat_threshold: float = 0.0,
        augment: BoxAugment = BoxAugment(),
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Make the data module; the annotations are read by `setup`.

        Args:
            root: Folder of images and annotations; or a COCO json, a data.yaml of YOLO, a table.
            format: Name of the format, coco, yolo, voc, csv or labelstudio; `auto` finds out.
            box_format: Order of the numbers of a COCO box: xywh, as the format has it, or xyxy for corners.
            box_origin: Number of the first pixel in the boxes of VOC, 0 or 1; by default 1 for the challenge's own
                development kit, and 0 for all others.
            box_orientation: What boxes are of where an image is turned by its EXIF: `upright`, or `stored` for tools
                that ignore EXIF; `auto` goes by the sizes that annotations state.
            tile: Side in pixels of the tiles that larger photos are cut into; part of the model. Null leaves them
                whole, or cuts them as the model does.
            tile_overlap: Least fraction of a tile that its neighbour shows too.
            val_fraction: Fraction of the images for validation, where the files have no split for it.
            test_fraction: Fraction of the images for the test, where the files have no splits.
            split_file: Table of images and their splits, as a training run leaves it; in place of all other splits.
            repeat_threshold: Fraction of the training images below which a class is rare: they come more often where it
                is shown, by the root of how much rarer it is; 0 for all alike. Epochs stay as long as they are.
            augment: Augmentation of training images.
            **options: Options of every data module.

        Raises:
            ValueError: An argument lies outside its range.
        """
        super().__init__(augment=augment, **options)
        if format not in get_args(Format):
            raise OptionError(f"format is '{format}'. Choices: {', '.join(get_args(Format))}.")
        if box_origin not in (None, 0, 1):
            raise OptionError(f"box_origin is {box_origin}. Choices: 0, 1, null.")
        if box_orientation not in get_args(Orientation):
            choices = ", ".join(get_args(Orientation))
            raise OptionError(f"box_orientation is '{box_orientation}'. Choices: {choices}.")
        # The overlap is checked in any case.
        tiling = Tiling(LEAST_SIDE if tile is None else tile, tile_overlap)
        self.tiling = None if tile is None else tiling
        check_fractions(val_fraction, test_fraction)
        self.root = Path(root)
        self.format = format
        self.box_format = box_format
        self.box_origin = box_origin
        self.box_orientation = box_orientation
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        if not 0 <= repeat_threshold <= 1:
            raise OptionError(
                f"repeat_threshold is {repeat_threshold}. Give a fraction of the images, from 0 for no repetition to 1 "
                "(--data.repeat_threshold)."
            )
        self.repeat_threshold = repeat_threshold
        self.split_file = Path(split_file) if split_file is not None else None
        self.fixes: list[Fix] = []
        self.category_ids: dict[str, int] = {}
        self._copies: dict[str, str] = {}

    def read(self) -> dict[str, list[Record]]:
        """Read the annotations, check them, and find the images of each split."""
        reading = self._read_annotations()
        images = reading.entries
        if not images:
            raise BoxError(
                f"There are annotations in {self.root}, but of no image at all. Put the images there, or export them "
                "with the annotations (Label Studio: YOLO with images)."
            )
        absent = find_absent(images, self.root)
        notes = [*reading.notes]
        if absent:
            notes.append(
                f"{len(absent)} annotated images are missing, such as {absent[0]}; they are listed with the results."
            )
        reading, more = self._settle_boxes(reading)
        for note in (*notes, *more):
            warnings.warn(note, stacklevel=2)
        images = reading.entries
        require_inside(images, self.root)
        numbers = self._index_classes(reading)
        self.labels = tuple(numbers)
        if reading.label_ids is not None:
            self.category_ids = {label: reading.label_ids[label] for label in self.labels}
        if self.split_file is not None:
            splits = _assign_splits(images, self.split_file)
        else:
            self.val_is_drawn = "val" not in reading.splits
            paths = {image.name: image.path for image in images}
            self._copies = find_copies(paths, self.root, is_drawn=self.val_is_drawn)
            splits = complete_splits(
                reading.splits,
                lambda image: (
                    self._copies.get(image.name, image.name),
                    tuple(sorted({numbers[b.label] for b in image.boxes if b.label in numbers})),
                ),
                self.labels,
                val_fraction=self.val_fraction,
                test_fraction=self.test_fraction,
                seed=self.seed,
            )
        warn_of_copies(
            self._copies,
            {i.name: tuple(sorted(b.label for b in i.boxes)) for i in images},
            {split: [image.name for image in images] for split, images in splits.items()},
            self.root,
        )
        records = {split: self._build_records(images, numbers) for split, images in splits.items()}
        self._warn_of_fixes(images)
        return records

    def read_predict(self) -> list[Record]:
        """Every image below the root, without boxes."""
        folder = self.root if self.root.is_dir() else self.root.parent
        prefix = write_prefix(folder)
        return [
            Record(path, -1, path.removeprefix(prefix).replace(os.sep, "/"))
            for path in list_readable(folder)
        ]

    def remedy(self, split: str) -> str:
        """What to do about a missing split."""
        if split == "val":
            return (
                f"Add annotations of a val split to {self.root}, or set val_fraction above 0; to train without "
                "validation, set limit_val_batches=0 in the trainer."
            )
        return f"Add annotations of a {split} split to {self.root}, or give data that has one."

    def keep_split(self, folder: Path) -> Spec:
        """Write `splits.csv` to a run's folder, and `boxes_mended.csv` where boxes were clipped or dropped."""
        self._read_once()
        if self.leaves_val_out:
            return self.spec  # such a file lists all images, and these are in no split
        rows = {
            SplitRow(name_photo(record), "", split)
            for split in SPLITS
            for record in self.records.get(split, [])
        }
        path = folder.absolute() / SPLIT_FILE
        write_split(path, rows)
        if self.fixes:
            write_rows(folder / FIXES_FILE, Fix._fields, [fix._asdict() for fix in self.fixes])
        return self._pin_split(root=str(self.root.absolute()), split_file=str(path))

    def describe(self) -> dict[str, Any]:
        """Class names, images and boxes per split and class, and how many boxes were mended; ready for JSON.

        With the ids of the classes in the files of COCO, where they are not 1, 2, 3 and so on.
        """
        values = super().describe() | {"mended": dict(Counter(fix.done for fix in self.fixes))}
        ids = list(self.category_ids.values())
        has_ids = bool(ids) and ids != list(range(1, len(ids) + 1))
        return values | ({"category_ids": self.category_ids} if has_ids else {})

    def _read_annotations(self) -> Reading[AnnotatedImage]:
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
        return layout.read(self.root, **{name: getattr(self, name) for name in layout.options})

    def _settle_boxes(
        self, reading: Reading[AnnotatedImage]
    ) -> tuple[Reading[AnnotatedImage], list[str]]:
        """Give each image one split, and its boxes in pixels of the upright image; with notes on what was settled."""
        splits, notes = require_one_split(reading.splits, self.root)
        splits, more = recognize_fractions(splits, self.root)
        images, turned = settle_boxes([*chain(*splits.values())], self.box_orientation)
        settled = iter(images)
        splits = {split: [*islice(settled, len(images))] for split, images in splits.items()}
        return reading._replace(splits=splits), [*notes, *more, *turned]

    def _index_classes(self, reading: Reading[AnnotatedImage]) -> dict[str, int]:
        """A number for each class that a box has, in the order of the file."""
        used = {box.label for image in reading.entries for box in image.boxes}
        if not used:
            raise BoxError(
                f"There is not one box in {self.root}. Check that its annotations are those of the images."
            )
        listed = reading.labels if reading.labels is not None else sorted(used)
        unused = [name for name in listed if name not in used]
        if unused:
            warnings.warn(
                f"{len(unused)} classes of {self.root} have no box and are left out: {', '.join(unused[:5])}.",
                stacklevel=2,
            )
        return {name: number for number, name in enumerate(n for n in listed if n in used)}

    def _build_records(
        self, images: Sequence[AnnotatedImage], numbers: dict[str, int]
    ) -> list[Record]:
        records = []
        for image in sorted(images, key=attrgetter("name")):
            annotation, labels = check_boxes(image, numbers, self.fixes)
            key = self._copies.get(image.name, image.name)
            record = Record(str(image.path), labels, image.name, objects=annotation, key=key)
            records.append(record)
        return records

    def _warn_of_fixes(self, images: Sequence[AnnotatedImage]) -> None:
        if not self.fixes:
            return
        number = sum(len(image.boxes) for image in images)
        kinds = Counter(fix.done for fix in self.fixes)
        counts = "; ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        first = self.fixes[0]
        warnings.warn(
            f"Of {number} boxes of {self.root}: {counts}. The first: '{first.label}' {first.box} in {first.image}; a "
            f"training lists all in {FIXES_FILE}.",
            stacklevel=2,
        )


def _assign_splits(
    images: Sequence[AnnotatedImage], split_file: Path
) -> dict[str, list[AnnotatedImage]]:
    splits = {row.path: row.split for row in read_split(split_file)}
    unmatched = sorted({image.name for image in images} ^ set(splits))
    if unmatched:
        raise BoxError(
            f"{len(unmatched)} images are either annotated or listed in {split_file}, but not both, such as "
            f"'{unmatched[0]}'. Is it the table of this data?"
        )
    chosen = {split: [i for i in images if splits[i.name] == split] for split in SPLITS}
    return {split: images for split, images in chosen.items() if images}

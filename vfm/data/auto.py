"""Data modules by path: which layout a folder or file is in, and what reads it."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from vfm_runtime.errors import VfmError

from vfm.data.base import ImageData
from vfm.data.detection.auto import BOX_LAYOUTS, DetectionData
from vfm.data.detection.csv import COLUMNS, find_tables
from vfm.data.folder import FolderData, read_class_folders
from vfm.data.idx import IdxData, find_idx_files, read_idx_files
from vfm.data.labelstudio import CHOICE_SEPARATOR, find_choices
from vfm.data.layouts import Layout, LayoutTable
from vfm.data.options import LoaderOptions
from vfm.data.records import Record, list_labels
from vfm.data.splits import SPLITS
from vfm.data.table import TableData
from vfm.data.table_rows import TABLE_SUFFIXES, find_table, read_table_rows
from vfm.data.tables import read_table
from vfm.data.transforms import Augment
from vfm.spec import Spec, get_class_path

log = logging.getLogger(__name__)


class SourceError(VfmError, ValueError):
    """A path names no data."""


@dataclass(frozen=True, kw_only=True)
class LabelLayout(Layout[Any]):
    """A layout of images with labels, which has a data module of its own."""

    module: type[Any]
    """Data module, which takes the path first."""
    carried: tuple[str, ...] = ()
    """Options of the data module by which other data of the same kind is read too."""
    fractions: tuple[str, ...] = ("val_fraction", "test_fraction")
    """Options of the data module by which missing splits are drawn."""


def _explain(path: Path) -> str:
    what = "is a file of another kind" if path.is_file() else "does not exist"
    return (
        f"{path} {what}. Give a folder of class folders (my_images/cat/1.jpg), a table "
        f"({', '.join(TABLE_SUFFIXES)}), or a folder of IDX files."
    )


_COLUMNS = ("path_column", "label_column", "label_separator", "allow_no_label", "split_column")
LABEL_LAYOUTS: LayoutTable[LabelLayout] = LayoutTable(
    {
        "idx": LabelLayout(
            find_idx_files,
            read_idx_files,
            module=IdxData,
            carried=("label_names",),
            fractions=("val_fraction",),
        ),
        "labelstudio": LabelLayout(
            find_choices, read_table_rows, module=TableData, carried=("allow_no_label",)
        ),
        "folder": LabelLayout(Path.is_dir, read_class_folders, module=FolderData),
        "table": LabelLayout(find_table, read_table_rows, module=TableData, carried=_COLUMNS),
    },
    SourceError,
    _explain,
)
_BOX_OPTIONS = ("box_format", "box_origin", "box_orientation", "tile", "tile_overlap")


def open_data(path: str | Path, **options: Any) -> ImageData:
    """A data module for a folder of class folders, a table, or a folder of IDX files.

    Args:
        path: Folder or file of the images.
        **options: Options of every data module: batch_size, num_workers, augment, seed.

    Raises:
        SourceError: There is nothing at the path, or a file of another kind.
    """
    path = Path(path)
    data: ImageData = LABEL_LAYOUTS.layouts[LABEL_LAYOUTS.detect(path)].module(path, **options)
    return data


def open_labels(
    path: Path,
    *,
    training: Spec | None = None,
    labels: Sequence[str] = (),
    multilabel: bool = False,
) -> ImageData:
    """Read a folder or a table of images that have nothing to do with a training, in the splits that they state.

    Args:
        path: Folder or table, which exists.
        training: Spec of the training's data, whose columns and label names are taken over.
        labels: Label names of the model.
        multilabel: Whether the model tells whether each label applies; a table may have a column for each then.

    Raises:
        ValueError: The data cannot be understood.
    """
    # What reads tables takes more suffixes than are looked for, and says what is wrong with a file.
    is_known = path.is_dir() or find_choices(path) is not None
    name = LABEL_LAYOUTS.detect(path) if is_known else "table"
    layout = LABEL_LAYOUTS.layouts[name]
    options = take_options(training, layout.module, layout.carried)
    if name == "labelstudio" and multilabel:
        options["label_separator"] = CHOICE_SEPARATOR
    if name == "table":
        columns = read_table(path).columns
        if options and options["path_column"] in columns:
            if options["split_column"] not in columns:
                options["split_column"] = None
        else:
            named = multilabel and labels and set(labels) <= set(columns)
            options = {"label_column": list(labels)} if named else {}
    data: ImageData = layout.module(path, **dict.fromkeys(layout.fractions, 0.0), **options)
    data.setup()
    return data


def open_boxes(path: Path, *, training: Spec | None = None) -> ImageData:
    """Read images with boxes that have nothing to do with a training, in the splits that they state.

    Args:
        path: Folder or file of annotations, which exists.
        training: Spec of the training's data, whose tiles and order of numbers are taken over.

    Raises:
        ValueError: The data cannot be understood.
    """
    options = take_options(training, DetectionData, _BOX_OPTIONS)
    data = DetectionData(path, val_fraction=0.0, test_fraction=0.0, **options)
    data.setup()
    return data


def is_of_boxes(path: Path) -> bool:
    """Whether a path is of a format of boxes; a table is by its columns, since tables of labels are in CSV too."""
    names = [name for name, layout in BOX_LAYOUTS.layouts.items() if layout.find(path)]
    if names[:1] != ["csv"]:
        return bool(names)
    table = next(iter(find_tables(path).values()))
    return set(COLUMNS[1:5]) <= set(read_table(table).columns)


def choose_evaluation_splits(data: ImageData, path: Path) -> list[str]:
    """The val split where the data states one, else all that have labels, with a warning where these are several."""
    if data.records.get("val"):
        return ["val"]
    names = [name for name in SPLITS if data.records.get(name)]
    if len(names) > 1:
        log.warning("%s states no val split: all of %s is taken.", path, " and ".join(names))
    return names


def take_options(
    training: Spec | None, module: type[ImageData], names: Sequence[str]
) -> dict[str, Any]:
    """These options of the data of a training, to read other data alike; none where another module read it."""
    if training is None or training.get("class_path") != get_class_path(module):
        return {}
    arguments = training["init_args"]
    return {name: arguments[name] for name in names if name in arguments}


class SelectedData(ImageData):
    """Some of the labelled images of other data: some to learn from, others to answer for."""

    def __init__(
        self,
        data: ImageData,
        train: Sequence[int],
        predict: Sequence[int] = (),
        *,
        augment: Augment = "none",
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Make the data module.

        Args:
            data: Data module to take images of.
            train: Indices of images to learn from, among the training images of the other data.
            predict: Indices of images to answer for, among the same; classes that are not learned may be among them.
            augment: Augmentation of training images, as for `ImageData`.
            **options: Options of every data module.
        """
        options.setdefault("bit_depth", data.bit_depth)
        super().__init__(augment=augment, **options)
        self.data = data
        self.indices = {"train": train, "predict": predict}

    def read(self) -> dict[str, list[Record]]:
        """Take the images of the other data, and all of its labels."""
        self.data.setup("fit")
        self.labels, self.multilabel = self.data.labels, self.data.multilabel
        images = self.data.records["train"]
        return {split: [images[i] for i in indices] for split, indices in self.indices.items()}

    def keep_split(self, folder: Path) -> Spec:
        """Keep the splits of the other data."""
        return self.data.keep_split(folder)


def draw_indices(records: Sequence[Record], number: int, seed: int) -> list[int]:
    """Draw some of the images, as evenly over the classes as there are images of them; indices in their old order."""
    # The first image drawn of each class, then the second of each, and so on.
    turns: Counter[int] = Counter()
    ranks: dict[int, tuple[int, int]] = {}
    for i in np.random.default_rng(seed).permutation(len(records)).tolist():
        label = min(list_labels(records[i]), default=-1)
        ranks[i] = (turns[label], label)
        turns[label] += 1
    return sorted(sorted(ranks, key=ranks.__getitem__)[:number])

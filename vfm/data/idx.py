"""IDX, MNIST's file format: all images of a split in one file, all labels in another."""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Unpack

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import DataError, OptionError

from vfm.data.base import ImageData
from vfm.data.layouts import Reading
from vfm.data.options import LoaderOptions
from vfm.data.records import Record
from vfm.data.transforms import Augment

_STEMS = {"train": "train", "test": "t10k"}
_UNSIGNED_BYTES = 0x08


class IdxData(ImageData):
    """MNIST, Fashion-MNIST and their kin: `train-images-idx3-ubyte`, `t10k-labels-idx1-ubyte` ..., plain or `.gz`.

    Validation images are drawn from the training images, class by class; `predict` answers for the
    test images.
    """

    can_balance = True
    default_augment: ClassVar[Augment] = "light"

    def __init__(
        self,
        root: str | Path,
        *,
        label_names: Sequence[str] = (),
        val_fraction: float = 0.1,
        augment: Augment = "auto",
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Make the data module; the files are read by `setup`.

        Args:
            root: Folder of the four files.
            label_names: Names of the classes in the order of their numbers; the numbers by default.
            val_fraction: Fraction of the training images for validation; 0 for none.
            augment: Augmentation of training images, as for `ImageData`.
            **options: Options of every data module.

        Raises:
            ValueError: An argument lies outside its range.
        """
        super().__init__(augment=augment, **options)
        if not 0 <= val_fraction < 1:
            raise OptionError(f"val_fraction is {val_fraction}. Give a share from 0 to below 1.")
        self.root = Path(root)
        self.label_names = tuple(map(str, label_names))
        self.val_fraction = val_fraction

    def read(self) -> dict[str, list[Record]]:
        """All images, as uint8 [H, W]."""
        reading = read_idx_files(self.root, self.label_names)
        self.labels = tuple(reading.labels or ())
        return self._complete_splits(reading.splits, self.val_fraction, 0.0)

    def remedy(self, split: str) -> str:
        """What to do about a missing split."""
        return (
            "Set val_fraction above 0." if split == "val" else f"Look at the files in {self.root}."
        )


def find_idx_files(root: Path) -> bool:
    """Whether a folder holds IDX files of images."""
    return any(root.glob("*[-.]idx3-ubyte*"))


def read_idx_files(root: Path, label_names: Sequence[str] = ()) -> Reading[Record]:
    """Read train and test images, uint8 [H, W], with their labels; options are those of `IdxData`.

    Raises:
        ValueError: A file is missing or damaged, or there are other classes than names.
    """
    arrays = {split: _read_split(root, split) for split in _STEMS}
    count = max(int(labels.max()) for _, labels in arrays.values()) + 1
    splits = {
        split: [
            Record(image, int(label), f"{split}-{index:05d}")
            for index, (image, label) in enumerate(zip(images, labels, strict=True))
        ]
        for split, (images, labels) in arrays.items()
    }
    names = label_names or tuple(map(str, range(count)))
    if len(names) != count or len(set(names)) != count:
        raise DataError(
            f"label_names has {len(set(names))} different names, the files of {root} have {count} classes. "
            "Give one name for each class, or leave label_names out."
        )
    return Reading(splits, names)


def _read_split(root: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    stem = _STEMS[split]
    images = read_idx(_find_file(root, f"{stem}-images-idx3-ubyte"), num_dimensions=3)
    labels = read_idx(_find_file(root, f"{stem}-labels-idx1-ubyte"), num_dimensions=1)
    if len(images) != len(labels) or not len(images):
        raise DataError(
            f"{root} has {len(images)} {split} images and {len(labels)} labels. "
            "Give one label for each image; the files may belong to different sets."
        )
    return images, labels


def read_idx(path: Path, *, num_dimensions: int) -> NDArray[np.uint8]:
    """Read one file, plain or `.gz`: uint8 of as many dimensions, first of them the samples.

    Raises:
        ValueError: It is cut short, of another kind, or holds other numbers than bytes.
    """
    data = path.read_bytes()
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                f"{path} cannot be unpacked: {error}. Copy or download it again."
            ) from error
    if data[:4] != bytes([0, 0, _UNSIGNED_BYTES, num_dimensions]):
        raise DataError(
            f"{path} is no IDX file of bytes in {num_dimensions} dimensions: it starts with {data[:4].hex(' ')}, not "
            f"00 00 08 {num_dimensions:02x}. Give MNIST's own files, unpacked or as .gz."
        )
    start = 4 + 4 * num_dimensions
    if len(data) < start:
        raise DataError(f"{path} ends within its header. Copy or download it again.")
    shape = np.frombuffer(data, ">i4", num_dimensions, 4).tolist()
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"{path} should hold {math.prod(shape):,} bytes for shape {shape}, but holds {len(data) - start:,}. "
            "Copy or download it again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _find_file(root: Path, name: str) -> Path:
    # torchvision and others unpack to a name with a dot in place of the last dash.
    for stem in (name, name.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            if (path := root / f"{stem}{suffix}").is_file():
                return path
    content = "There is no such folder."
    if root.is_dir():
        names = sorted(path.name for path in root.iterdir())[:5]
        content = f"It holds {', '.join(names) or 'nothing'}."
    raise DataError(
        f"There is no {name} or {name}.gz in {root}. {content} Give the folder of MNIST's four files."
    )

"""Data set of images with boxes: samples, their augmentation, and batches."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from vfm_runtime.media.bit_depth import ValueRange
from vfm_runtime.media.image import ImageError, open_image

from vfm.data.dataset import ImageDataset, Skipped, build_batch, sample_seed
from vfm.data.decode import Source
from vfm.data.detection.annotation import Annotation
from vfm.data.detection.tiles import find_photos, name_photo
from vfm.data.detection.transforms import Geometric, Picture
from vfm.data.records import Record, read_source
from vfm.data.transforms import AugmentError, TrainTransform, build_jitter
from vfm.preprocess import Geometry, convert_corners
from vfm.renames import accept_old_keys
from vfm.types import Batch, Objects

_COLORS: dict[str, list[Any]] = {
    "none": [],
    "mild": [build_jitter(0.2, saturation=0.3, hue=0.03, probability=0.7)],
    "strong": [
        build_jitter(0.4, saturation=0.5, hue=0.05, probability=0.8),
        {"ToGray": {"p": 0.05}},
        {"GaussianBlur": {"sigma_limit": [0.1, 1.5], "blur_limit": 0, "p": 0.1}},
    ],
}
_PARTNERS = 3
_MOST_OPEN = 2**29


class OpenPhotos:
    """Photos that are cut into tiles stay open, in each worker up to a number of bytes, or one that is larger."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, ValueRange | None], NDArray[np.uint8]] = {}

    def open(self, path: str, value_range: ValueRange | None, num_bytes: int) -> NDArray[np.uint8]:
        """Return the pixels of a photo, from the disk where it was not among the last.

        Args:
            path: File of the photo.
            value_range: Black and white of values of more than 8 bits.
            num_bytes: Size of its pixels, as its annotation says.

        Raises:
            ImageError: It cannot be read.
        """
        key = path, value_range
        pixels = self._open.pop(key, None)
        if pixels is None:
            # Before another is decoded, which takes its size twice.
            while (
                self._open and num_bytes + sum(p.nbytes for p in self._open.values()) > _MOST_OPEN
            ):
                del self._open[next(iter(self._open))]
            pixels = open_image(path, value_range=value_range)
        self._open[key] = pixels
        return pixels


_open_photos = OpenPhotos()


@accept_old_keys
@dataclass(frozen=True)
class BoxAugment:
    """Augmentation of training images with boxes.

    Raises:
        AugmentError: A value lies outside its range.
    """

    mosaic: float = 0.5
    """Fraction of the samples that are put together from parts of four images."""
    zoom: tuple[float, float] = (0.5, 1.25)
    """Least and greatest side of a view as a fraction of the image's; a view shows at least one box as a whole."""
    flip: float = 0.5
    """Fraction of the samples that are mirror images; 0 where left and right differ, as in text."""
    colors: Literal["none", "mild", "strong"] = "mild"
    """How brightness, contrast, saturation and hue change."""
    close_mosaic: float = 0.15
    """Last fraction of the training without mosaic, zoom and change of colours: it ends on images as they are."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "zoom", tuple(self.zoom))
        for name in ("mosaic", "flip", "close_mosaic"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise AugmentError(
                    f"augment.{name} is {value}. Give a share, from 0 to 1 (--data.augment.{name})."
                )
        if len(self.zoom) != 2 or not 0.1 <= self.zoom[0] <= self.zoom[1] <= 4:
            raise AugmentError(
                f"augment.zoom is {list(self.zoom)}. Give the least and the greatest, from 0.1 to 4; [1, 1] for none."
            )
        if self.colors not in _COLORS:
            raise AugmentError(f"augment.colors is '{self.colors}'. Choices: {', '.join(_COLORS)}.")


@dataclass(frozen=True, slots=True)
class BoxSample:
    """One image with its boxes, ready for a batch. M boxes."""

    image: NDArray[np.uint8]
    """uint8 [h, w, 3], at the model's size."""
    boxes: NDArray[np.float32]
    """[M, 4], center, width and height as fractions of the image."""
    labels: NDArray[np.int64]
    """[M], classes of the boxes."""
    geometry: NDArray[np.float32]
    """[6], as `Geometry.to_row`."""
    index: int
    name: str


@dataclass(eq=False)
class BoxDataset(ImageDataset):
    """The images and boxes of one split; what it gives depends on seed, epoch and index alone."""

    augment: BoxAugment | None = None
    """Augmentation, for training; without it `preprocess` is used alone."""
    calm_from: float = float("inf")
    """Epoch from which images are only mirrored."""

    def __post_init__(self) -> None:
        if self.augment is not None:
            self.photos = find_photos(self.records)
            flip = self.augment.flip
            self._wild = Geometric(self.preprocess, zoom=self.augment.zoom, flip=flip)
            self._calm = Geometric(self.preprocess, zoom=(1.0, 1.0), flip=flip)
            steps = _COLORS[self.augment.colors]
            self._colors = TrainTransform(list(steps), self.preprocess) if steps else None

    def __getitem__(self, key: int | tuple[int, int]) -> BoxSample | Skipped:  # type: ignore[override]
        """One image by its index, or a pair of epoch and index: whole, or in training a view of it."""
        epoch, number = key if isinstance(key, tuple) else (0, key)
        index = number % len(self.records)  # the sampler numbers repetitions on
        record = self.records[index]
        try:
            if self.augment is not None:
                seed = sample_seed(self.seed, epoch, number)
                return self._draw_view(
                    index, record, seed, self.augment, calm=epoch >= self.calm_from
                )
            limits, size = self.preprocess.value_range, self.preprocess.size
            pixels, geometry = self.preprocess.resize(load_pixels(record, limits))
            corners, labels = _select_learned(record)
            row = np.array(geometry.to_row(size), np.float32)
            fractions = geometry.to_fractions(corners, size)
            return BoxSample(pixels, fractions, labels, row, index, record.name)
        except ImageError as error:
            return Skipped(
                name_photo(record), error.reason, np.zeros(0, np.int64), self.preprocess.size
            )

    def _draw_view(
        self, index: int, record: Record, seed: int, augment: BoxAugment, *, calm: bool
    ) -> BoxSample:
        generator = np.random.default_rng(seed)
        picture = self._open_picture(record)
        partners: list[Picture] = []
        if not calm and generator.random() < augment.mosaic:
            partners = self._open_partners(index, generator)
        if len(partners) == _PARTNERS:
            view = self._wild.sample_mosaic([picture, *partners], generator)
        else:
            view = (self._calm if calm else self._wild).sample_view(picture, generator)
        pixels = view.pixels
        if self._colors is not None and not calm:
            pixels = self._colors(pixels, seed)
        height, width = pixels.shape[:2]
        corners = (view.corners / np.array([width, height] * 2, np.float32)).astype(np.float32)
        geometry = Geometry(height, width, 1.0, 1.0, 0.0, 0.0).to_row((height, width))
        row = np.array(geometry, np.float32)
        return BoxSample(pixels, convert_corners(corners), view.labels, row, index, record.name)

    def _open_partners(self, index: int, generator: np.random.Generator) -> list[Picture]:
        """Three other images, or tiles of the same photo, which is open already, for a tile.

        Fewer where one cannot be read, which is reported when its own turn comes.
        """
        pictures = []
        others = np.arange(len(self.records))
        if self.photos is not None:
            of_sample, num_bytes = self.photos
            number = of_sample[index]
            others = np.flatnonzero(
                of_sample == number if num_bytes[number] else num_bytes[of_sample] == 0
            )
        for other in others[generator.integers(len(others), size=_PARTNERS)].tolist():
            try:
                pictures.append(self._open_picture(self.records[other]))
            except ImageError:
                break
        return pictures

    def _open_picture(self, record: Record) -> Picture:
        is_tile = record.objects is not None and record.objects.tile is not None
        limits = self.preprocess.value_range
        source = Source.open(
            load_pixels(record, limits) if is_tile else read_source(record), limits
        )
        if record.objects is not None:
            _require_size(record, record.objects, source.height, source.width)
        return Picture(source, *_select_learned(record))


def collate_boxes(samples: Sequence[BoxSample | Skipped]) -> Batch:
    """Join samples to a batch; unreadable ones are listed and leave it smaller, down to none."""
    good = [sample for sample in samples if isinstance(sample, BoxSample)]
    bad = [sample for sample in samples if isinstance(sample, Skipped)]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(s.boxes for s in good)])
    labels = np.concatenate([np.zeros(0, np.int64), *(s.labels for s in good)])
    counts = torch.tensor([len(s.labels) for s in good], dtype=torch.int64)
    target = Objects(torch.from_numpy(boxes), torch.from_numpy(labels), counts)
    rows = np.stack([s.geometry for s in good]) if good else np.zeros((0, 6), np.float32)
    return {**build_batch(good, bad, target), "geometry": torch.from_numpy(rows)}


def _select_learned(record: Record) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Corners [M, 4] and classes [M] of the boxes to learn."""
    if record.objects is None or not isinstance(record.label, tuple):
        return np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    learned = ~record.objects.ignored
    return record.objects.corners[learned], np.array(record.label, np.int64)[learned]


def load_pixels(record: Record, value_range: ValueRange | None = None) -> NDArray[np.uint8]:
    """The image, or the tile of it, uint8 [h, w, 3].

    Args:
        record: An image with boxes.
        value_range: Black and white of values of more than 8 bits.

    Raises:
        ImageError: It cannot be read, or is not the one that was annotated.
    """
    annotation = record.objects
    if annotation is None or annotation.tile is None:
        pixels: NDArray[np.uint8] = open_image(read_source(record), value_range=value_range)
    else:
        (left, top), (height, width) = annotation.tile[:2], annotation.size
        source = read_source(record)
        if isinstance(source, str):
            num_bytes = 3 * math.prod(annotation.tile.photo.size)
            whole = _open_photos.open(source, value_range, num_bytes)
        else:
            whole = open_image(source, value_range=value_range)
        _require_size(record, annotation.tile.photo, *whole.shape[:2])
        return np.ascontiguousarray(whole[top : top + height, left : left + width])
    if annotation is not None:
        _require_size(record, annotation, *pixels.shape[:2])
    return pixels


def _require_size(record: Record, annotation: Annotation, height: int, width: int) -> None:
    """Refuse an image that is not the one that was annotated: its boxes would lie elsewhere."""
    if annotation.size != (height, width):
        stated = f"{annotation.size[1]} x {annotation.size[0]}"
        raise ImageError(
            record.name,
            f"its boxes are for {stated} pixels, the file has {width} x {height}",
            "Annotate this file, or put back the one that was annotated.",
        )

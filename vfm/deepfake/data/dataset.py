"""Datasets of deepfakes: from records to samples and batches, alone or in pairs, with masks of what was changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from vfm_runtime.deepfake.faces.crop import Crop, CropSpec, crop_whole, cut_tiles
from vfm_runtime.deepfake.faces.geometry import move_points
from vfm_runtime.errors import DataError
from vfm_runtime.media.image import ImageError, open_image

from vfm.data.dataset import ImageDataset, Sample, Skipped, build_batch, sample_seed
from vfm.data.records import Record, read_source
from vfm.deepfake.data.augment import Array, Mask, Pixels, View, apply_benign_edit, apply_edit
from vfm.deepfake.data.blend import self_blend
from vfm.deepfake.data.pairs import Pairs
from vfm.deepfake.data.record import Item
from vfm.deepfake.target import DeepfakeTarget
from vfm.preprocess import Preprocess
from vfm.types import Batch

BLENDED = "self-blended"
"""In the name of a fake that was made on the fly, and its method."""

# The epoch of blends that are the same ones every time; no training comes to it.
_FIXED = -1

_UNKNOWN = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepfakeRecord(Record):
    """A real image or a fake, not yet opened, with all that is known of it."""

    item: Item
    """Facts of the image: video, method, identities, source, frame ..."""
    component: str
    """Name of the videos that share persons or sources with it, directly or through other videos."""
    mask: str | NDArray[np.uint8] | None = None
    """Path, or [H, W], white where the image was changed."""
    landmarks: str | NDArray[np.floating] | None = None
    """Path of a .npy file, or [K, 2], x and y in pixels of the image."""
    tile: int = 0
    """Which of the crop's tiles it stands for, where these are cut at native resolution."""
    blend: int = -1
    """From 0: it is a side of this blend of the image with itself, real or fake by its label; -1 for the image."""

    def __post_init__(self) -> None:
        """Group the image as results report it, by `GROUPS`."""
        object.__setattr__(self, "groups", (*self.item.key, self.component))


def require_deepfakes(records: Sequence[Record]) -> list[DeepfakeRecord]:
    """Return the records, refused where one does not say what it shows.

    Raises:
        ValueError: One is not of a real or fake image.
    """
    typed = []
    for record in records:
        if not isinstance(record, DeepfakeRecord):
            raise DataError(
                f"{record.name} has the groups {record.groups}, but a forged or real image needs (dataset, method, "
                "video, identities). Read the images with DeepfakeData."
            )
        typed.append(record)
    return typed


class Changes(NamedTuple):
    """How training images are changed."""

    edits: bool = True
    """Whether they are flipped, turned, blurred, recoloured and compressed."""
    benign: float = 0.0
    """Fraction of the images, real and fake alike, that get a harmless edit first."""


@dataclass(frozen=True, slots=True)
class DeepfakeSample(Sample):
    """One image, ready for a batch."""

    mask: Mask
    """float32 [h, w], 0 to 1, how much of each pixel is forged; -1 everywhere where that is not known."""


@dataclass(eq=False, kw_only=True)
class DeepfakeDataset(ImageDataset):
    """The images of one split; what it gives depends on seed, epoch and index alone."""

    crop: CropSpec
    """What part of an image is shown."""
    changes: Changes | None = None
    """How the images are changed for training; None to leave them as they are."""

    def __getitem__(self, key: int | tuple[int, int]) -> DeepfakeSample | Skipped:
        """One image, by its index, or by a pair of epoch and index as `EpochSampler` gives."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        try:
            if self.changes is None:
                return self._make_sample(index, self._read_view(index))
            generator = np.random.default_rng(sample_seed(self.seed, epoch, index))
            (view,) = self._edit([self._read_view(index, generator)], generator)
            return self._make_sample(index, view)
        except ImageError as error:
            return self._skip(index, error)

    def _read_view(self, index: int, generator: np.random.Generator | None = None) -> View:
        """The crop of an image, as it is, with its mask."""
        return self._read_crop(index, generator)[0]

    def _read_crop(
        self, index: int, generator: np.random.Generator | None
    ) -> tuple[View, NDArray[np.float64]]:
        """The crop with its mask, and the affine map [2, 3] from the image to the crop."""
        record = self.records[index]
        # Nothing is known of an image that is only predicted on.
        deepfake = record if isinstance(record, DeepfakeRecord) else None
        image = self.preprocess.open(read_source(record))
        size = self.crop.size
        if self.crop.source == "faces" and image.shape[:2] != (size, size):
            # Resized, a picture that no face was cut out of would pass for a crop.
            raise ImageError(
                record.name,
                f"it has {image.shape[1]} x {image.shape[0]} pixels, but crops of faces have {size} x {size}",
                "Cut the faces out with 'vfm faces'.",
            )
        crop = self._cut(image, deepfake.tile if deepfake else 0, generator)
        if record.label == 0:
            mask = np.zeros(crop.pixels.shape[:2], np.float32)
        elif deepfake is None or deepfake.mask is None:
            mask = np.full(crop.pixels.shape[:2], _UNKNOWN, np.float32)
        else:
            mask = _cut_mask(deepfake.mask, image, crop, self.crop, record.name)
        view = View(crop.pixels, mask)
        if deepfake is None or deepfake.blend < 0:
            return view, crop.matrix
        generator = np.random.default_rng(sample_seed(self.seed, _FIXED, deepfake.blend))
        real, fake = self._blend(deepfake, view, crop.matrix, generator)
        return (fake if record.label else real), crop.matrix

    def _blend(
        self,
        record: DeepfakeRecord,
        view: View,
        matrix: NDArray[np.float64],
        generator: np.random.Generator,
    ) -> tuple[View, View]:
        """The two sides of a blend."""
        points = _read_landmarks(record.landmarks, record.name, matrix)
        blend = self_blend(view.pixels, generator, points, self.crop)
        return View(blend.real, np.zeros_like(blend.mask)), View(blend.fake, blend.mask)

    def _cut(self, image: Pixels, tile: int, generator: np.random.Generator | None) -> Crop:
        size = self.crop.size
        if self.crop.source != "native":
            return crop_whole(image, self.crop)
        height, width = image.shape[:2]
        if generator is None or min(height, width) < size:
            tiles = cut_tiles(image, size, tile + 1)
            return tiles[tile % len(tiles)]
        top, left = (int(generator.integers(n - size + 1)) for n in (height, width))
        part = np.ascontiguousarray(image[top : top + size, left : left + size])
        return Crop(part, np.array([[1.0, 0, -left], [0, 1.0, -top]]), None)

    def _edit(self, views: Sequence[View], generator: np.random.Generator) -> Sequence[View]:
        """Images changed for training: each with a benign edit of its own or none, then all of them alike."""
        if self.changes is None:
            return views
        seed, resampling = int(generator.integers(2**63)), self.crop.source != "native"
        edited = []
        for view in views:
            if generator.random() < self.changes.benign:
                view = apply_benign_edit(view, generator)
            if self.changes.edits:
                view = apply_edit(view, np.random.default_rng(seed), resampling=resampling)
            edited.append(view)
        return edited

    def _make_sample(
        self, index: int, view: View, label: int | None = None, note: str = ""
    ) -> DeepfakeSample:
        record = self.records[index]
        target = np.array(record.label if label is None else label)
        pixels = self.preprocess.resize(view.pixels)[0]
        mask = resize_mask(view, self.preprocess)
        return DeepfakeSample(pixels, target, index, record.name + note, mask)

    def _skip(self, index: int, error: ImageError) -> Skipped:
        name = self.records[index].name
        return Skipped(name, error.reason, np.zeros((), np.int64), self.preprocess.size)


@dataclass(eq=False, kw_only=True)
class PairedDeepfakes(DeepfakeDataset):
    """Pairs of a real image and a fake of it: its own, or one blended from it on the fly.

    Both get the same edits, so that what was forged alone tells them apart.
    """

    records: Sequence[DeepfakeRecord]
    pairs: Pairs
    """Fakes of each real image of the split."""
    blends: float
    """Fraction of the pairs whose fake is blended."""
    blend_rest: bool
    """Whether a fake is blended for each real image without fakes of its own; these are left out otherwise."""

    def __post_init__(self) -> None:
        """List the real images of the pairs."""
        has = self.pairs.has_deepfakes
        self.reals = [index for index in self.pairs.reals if self.blend_rest or has(index)]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.reals)

    def __getitem__(  # type: ignore[override]
        self, key: int | tuple[int, int]
    ) -> tuple[DeepfakeSample, DeepfakeSample] | Skipped:
        """A real image and its fake, or what could not be read."""
        epoch, number = key if isinstance(key, tuple) else (0, key)
        generator = np.random.default_rng(sample_seed(self.seed, epoch, number))
        index = self.reals[number]
        blended = not self.pairs.has_deepfakes(index) or generator.random() < self.blends
        other = index if blended else self.pairs.draw(index, generator)
        reading = index
        try:
            real, matrix = self._read_crop(index, generator)
            if blended:
                real, fake = self._blend(self.records[index], real, matrix, generator)
            else:
                reading = other
                fake = self._read_view(other, generator)
        except ImageError as error:
            return self._skip(reading, error)
        real, fake = self._edit([real, fake], generator)
        note = f" ({BLENDED})" if blended else ""
        return self._make_sample(index, real, 0), self._make_sample(other, fake, 1, note)


def collate_deepfakes(
    samples: Sequence[DeepfakeSample | tuple[DeepfakeSample, DeepfakeSample] | Skipped],
) -> Batch:
    """Join samples to a batch, pairs as real, fake, real, fake; unreadable ones are listed and leave it smaller."""
    bad = [sample for sample in samples if isinstance(sample, Skipped)]
    good: list[DeepfakeSample] = []
    for sample in samples:
        if isinstance(sample, tuple):
            good += sample
        elif isinstance(sample, DeepfakeSample):
            good.append(sample)
    masks = np.stack([s.mask for s in good]) if good else np.zeros((0, *bad[0].size), np.float32)
    labels = torch.tensor([int(s.label) for s in good], dtype=torch.int64)
    return build_batch(good, bad, DeepfakeTarget(labels, torch.from_numpy(masks)))


def resize_mask(view: View, preprocess: Preprocess) -> Mask:
    """Resize a mask as `Preprocess.resize` does the image: float32 [h, w]; the border of a letterbox is not forged."""
    height, width = preprocess.size
    if not view.is_known:
        return np.full((height, width), _UNKNOWN, np.float32)
    mask = view.mask
    if not mask.any():
        return np.zeros((height, width), np.float32)
    geometry = preprocess.compute_geometry(*mask.shape)
    rows, columns = (
        max(1, round(side * min(1.0, scale)))
        for side, scale in zip(mask.shape, (geometry.scale_y, geometry.scale_x), strict=True)
    )
    # Averaged first: an interpolation between two pixels would miss what lies between its steps.
    small = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_AREA)
    x, y = geometry.scale_x * mask.shape[1] / columns, geometry.scale_y * mask.shape[0] / rows
    # Geometry speaks of the corners of pixels, OpenCV of their middles.
    offset_x, offset_y = geometry.offset_x + (x - 1) / 2, geometry.offset_y + (y - 1) / 2
    border = cv2.BORDER_CONSTANT if preprocess.fit == "letterbox" else cv2.BORDER_REPLICATE
    matrix = np.array([[x, 0, offset_x], [0, y, offset_y]])
    moved: Array = cv2.warpAffine(small, matrix, (width, height), borderMode=border)
    return moved.clip(0, 1)


def _cut_mask(
    mask: str | NDArray[np.uint8], image: Pixels, crop: Crop, spec: CropSpec, name: str
) -> Mask:
    """The part of an image's mask that its crop shows, float32 [s, s]."""
    try:
        whole: Array = open_image(mask)
    except ImageError as error:
        raise ImageError(name, f"its mask {error.source}: {error.reason}", error.remedy) from error
    height, width = image.shape[:2]
    if abs(whole.shape[1] * height - whole.shape[0] * width) > max(height, width):
        raise ImageError(
            name,
            f"its mask has {whole.shape[1]} x {whole.shape[0]} pixels, the image {width} x {height}",
            "Give the mask of this image.",
        )
    if whole.shape != image.shape:
        whole = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    if spec.source == "native":
        size = crop.pixels.shape[1::-1]
        part: Array = cv2.warpAffine(whole, crop.matrix, size, flags=cv2.INTER_NEAREST)
    else:
        part = crop_whole(whole, spec).pixels
    fraction: Mask = part.max(axis=2).astype(np.float32) / 255
    return fraction


def _read_landmarks(
    landmarks: str | NDArray[np.floating] | None, name: str, matrix: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Landmarks in pixels of the crop, [K, 2]."""
    if landmarks is None:
        return None
    if isinstance(landmarks, str):
        try:
            landmarks = np.load(landmarks, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ImageError(
                name, f"its landmarks in {landmarks} cannot be read ({error})", "Write them anew."
            ) from error
    points = np.asarray(landmarks, np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise ImageError(
            name,
            f"its landmarks are of shape {list(points.shape)} or not finite",
            "Give x and y of three points or more.",
        )
    return move_points(points, matrix)

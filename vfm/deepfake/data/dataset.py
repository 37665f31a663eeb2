"""From real and forged images to batches, alone or in pairs: what the data workers run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from vfm_runtime.deepfake.faces.crop import Crop, CropSpec, move_points, native_tiles, whole_crop
from vfm_runtime.errors import DataError
from vfm_runtime.media.image import ImageError, open_image

from vfm.data.dataset import ImageDataset, Record, Sample, Skipped, read_source, sample_seed
from vfm.deepfake.data.augment import Array, Edit, Mask, Pixels, View, benign_edit
from vfm.deepfake.data.blend import self_blend
from vfm.deepfake.data.pairs import Pairs
from vfm.deepfake.data.record import Item
from vfm.deepfake.target import DeepfakeTarget
from vfm.preprocess import Preprocess
from vfm.types import Batch

BLENDED = "self-blended"
"""In the name of a forgery that was made on the fly, and its method."""

# The epoch of blends that are the same ones every time; no training comes to it.
_FIXED = -1

_UNKNOWN = -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepfakeRecord(Record):
    """A real image or a forgery, not yet opened, with all that is known of it."""

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
    """The records, refused where one does not say what it shows.

    Args:
        records: Records of a split.

    Raises:
        ValueError: One is not of real and forged images.
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
    """Share of the images, real and forged alike, that get a harmless edit first."""


@dataclass(frozen=True, slots=True)
class DeepfakeSample(Sample):
    """One image, ready for a batch."""

    mask: Mask
    """float32 [h, w], 0 to 1, how much of each pixel is forged; -1 everywhere where that is not known."""


class DeepfakeDataset(ImageDataset):
    """The images of one split; what it gives depends on seed, epoch and index alone."""

    def __init__(
        self,
        records: Sequence[Record],
        crop: CropSpec,
        preprocess: Preprocess,
        changes: Changes | None = None,
        seed: int = 0,
    ) -> None:
        """Make the data set.

        Args:
            records: In the order of the split.
            crop: What part of an image is shown.
            preprocess: Of the model.
            changes: How to change the images for training; None to leave them as they are.
            seed: Of all that is random.
        """
        super().__init__(records, preprocess, None, seed)
        self.crop = crop
        self.changes = changes

    def __getitem__(self, key: int | tuple[int, int]) -> DeepfakeSample | Skipped:
        """One image, changed only in training.

        Args:
            key: An index, or a pair of epoch and index as `EpochSampler` gives.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        try:
            if self.changes is None:
                return self._sample(index, self._view(index))
            generator = np.random.default_rng(sample_seed(self.seed, epoch, index))
            view = self._harmless(self._view(index, generator), generator)
            return self._sample(index, self._edit(generator).apply(view))
        except ImageError as error:
            return self._skipped(index, error)

    def _view(self, index: int, generator: np.random.Generator | None = None) -> View:
        """The crop of an image, as it is, with its mask."""
        return self._opened(index, generator)[0]

    def _opened(
        self, index: int, generator: np.random.Generator | None
    ) -> tuple[View, NDArray[np.float64]]:
        """The crop with its mask, and the map from places in the image to places in the crop."""
        record = self.records[index]
        # Nothing is known of an image that is only predicted on.
        marks = record if isinstance(record, DeepfakeRecord) else None
        image = open_image(read_source(record))
        self._require_crop(record.name, image)
        cut = self._cut(image, marks.tile if marks else 0, generator)
        if record.label == 0:
            mask = np.zeros(cut.pixels.shape[:2], np.float32)
        elif marks is None or marks.mask is None:
            mask = np.full(cut.pixels.shape[:2], _UNKNOWN, np.float32)
        else:
            mask = _cut_mask(marks.mask, image, cut, self.crop, record.name)
        if marks is None or marks.blend < 0:
            return View(cut.pixels, mask), cut.matrix
        generator = np.random.default_rng(sample_seed(self.seed, _FIXED, marks.blend))
        real, fake = self._blended(marks, View(cut.pixels, mask), cut.matrix, generator)
        return (fake if record.label else real), cut.matrix

    def _blended(
        self,
        record: DeepfakeRecord,
        view: View,
        matrix: NDArray[np.float64],
        generator: np.random.Generator,
    ) -> tuple[View, View]:
        """The two sides of a blend."""
        points = _landmarks(record.landmarks, record.name, matrix)
        blend = self_blend(view.pixels, generator, points, self.crop)
        return View(blend.real, np.zeros_like(blend.mask)), View(blend.fake, blend.mask)

    def _require_crop(self, name: str, image: Pixels) -> None:
        """Refuse a picture that the faces were not cut out of: resized, it would pass for a crop."""
        size = self.crop.size
        if self.crop.source == "faces" and image.shape[:2] != (size, size):
            found = f"{image.shape[1]} x {image.shape[0]}"
            raise ImageError(
                name,
                f"it has {found} pixels, but crops of faces have {size} x {size}",
                "Cut the faces out with 'vfm faces'.",
            )

    def _cut(self, image: Pixels, tile: int, generator: np.random.Generator | None) -> Crop:
        size = self.crop.size
        if self.crop.source != "native":
            return whole_crop(image, self.crop)
        height, width = image.shape[:2]
        if generator is None or min(height, width) < size:
            tiles = native_tiles(image, size, tile + 1)
            return tiles[tile % len(tiles)]
        top, left = (int(generator.integers(n - size + 1)) for n in (height, width))
        part = np.ascontiguousarray(image[top : top + size, left : left + size])
        return Crop(part, np.array([[1.0, 0, -left], [0, 1.0, -top]]), None)

    def _harmless(self, view: View, generator: np.random.Generator) -> View:
        assert self.changes is not None
        if generator.random() >= self.changes.benign:
            return view
        return benign_edit(view, generator)

    def _edit(self, generator: np.random.Generator) -> Edit:
        assert self.changes is not None
        if not self.changes.edits:
            return Edit()
        return Edit.draw(generator, resampling=self.crop.source != "native")

    def _sample(
        self, index: int, view: View, label: int | None = None, note: str = ""
    ) -> DeepfakeSample:
        record = self.records[index]
        target = np.array(record.label if label is None else label)
        pixels = self.preprocess.resize(view.pixels)[0]
        mask = resized_mask(view, self.preprocess)
        return DeepfakeSample(pixels, target, index, record.name + note, mask)

    def _skipped(self, index: int, error: ImageError) -> Skipped:
        name = self.records[index].name
        return Skipped(name, error.reason, np.zeros((), np.int64), self.preprocess.size)


class PairedDeepfakes(DeepfakeDataset):
    """Pairs of a real image and a forgery of it: its own, or one blended from it on the fly.

    Both get the same edits, so that the forgery alone tells them apart.
    """

    records: Sequence[DeepfakeRecord]

    def __init__(
        self,
        records: Sequence[DeepfakeRecord],
        crop: CropSpec,
        preprocess: Preprocess,
        changes: Changes,
        seed: int,
        *,
        pairs: Pairs,
        blends: float,
        blend_rest: bool,
    ) -> None:
        """Make the data set.

        Args:
            records: In the order of the split.
            crop: What part of an image is shown.
            preprocess: Of the model.
            changes: How to change the images.
            seed: Of all that is random.
            pairs: Of the split.
            blends: Share of the pairs whose forgery is blended.
            blend_rest: Whether one is blended for each real image without forgeries of its own; these are left out
                otherwise.
        """
        super().__init__(records, crop, preprocess, changes, seed)
        self.pairs = pairs
        self.blends = blends
        self.reals = [i for i in pairs.reals if blend_rest or pairs.paired(i)]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.reals)

    def __getitem__(  # type: ignore[override]
        self, key: int | tuple[int, int]
    ) -> tuple[DeepfakeSample, DeepfakeSample] | Skipped:
        """A real image and its forgery, or what could not be read.

        Args:
            key: An index of a pair, or epoch and index as `EpochSampler` gives.
        """
        epoch, number = key if isinstance(key, tuple) else (0, key)
        generator = np.random.default_rng(sample_seed(self.seed, epoch, number))
        index = self.reals[number]
        blended = not self.pairs.paired(index) or generator.random() < self.blends
        other = index if blended else self.pairs.draw(index, generator)
        opening = index
        try:
            real, matrix = self._opened(index, generator)
            if blended:
                real, fake = self._blended(self.records[index], real, matrix, generator)
            else:
                opening = other
                fake = self._view(other, generator)
        except ImageError as error:
            return self._skipped(opening, error)
        edit = self._edit(generator)
        real, fake = (edit.apply(self._harmless(view, generator)) for view in (real, fake))
        note = f" ({BLENDED})" if blended else ""
        return self._sample(index, real, 0), self._sample(other, fake, 1, note)


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
    size = good[0].image.shape[:2] if good else bad[0].size
    images = np.stack([s.image for s in good]) if good else np.zeros((0, *size, 3), np.uint8)
    masks = np.stack([s.mask for s in good]) if good else np.zeros((0, *size), np.float32)
    labels = torch.tensor([int(s.label) for s in good], dtype=torch.int64)
    return Batch(
        image=torch.from_numpy(images),
        target=DeepfakeTarget(labels, torch.from_numpy(masks)),
        index=torch.tensor([s.index for s in good], dtype=torch.int64),
        name=[s.name for s in good],
        skipped=[(s.name, s.reason) for s in bad],
    )


def resized_mask(view: View, preprocess: Preprocess) -> Mask:
    """The mask where `Preprocess.resize` puts the image, float32 [h, w]; what the image leaves free is not forged.

    Args:
        view: Image and mask of one size.
        preprocess: Of the model.
    """
    height, width = preprocess.size
    if not view.known:
        return np.full((height, width), _UNKNOWN, np.float32)
    mask = view.mask
    if not mask.any():
        return np.zeros((height, width), np.float32)
    place = preprocess.compute_geometry(*mask.shape)
    rows, columns = (
        max(1, round(side * min(1.0, scale)))
        for side, scale in zip(mask.shape, (place.scale_y, place.scale_x), strict=True)
    )
    # Averaged first: an interpolation between two pixels would miss what lies between its steps.
    small = cv2.resize(mask, (columns, rows), interpolation=cv2.INTER_AREA)
    x, y = place.scale_x * mask.shape[1] / columns, place.scale_y * mask.shape[0] / rows
    # Geometry speaks of the corners of pixels, OpenCV of their middles.
    matrix = np.array([[x, 0, place.offset_x + (x - 1) / 2], [0, y, place.offset_y + (y - 1) / 2]])
    border = cv2.BORDER_CONSTANT if preprocess.fit == "letterbox" else cv2.BORDER_REPLICATE
    moved: Array = cv2.warpAffine(
        small, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border
    )
    return moved.clip(0, 1)


def _cut_mask(
    mask: str | NDArray[np.uint8], image: Pixels, cut: Crop, spec: CropSpec, name: str
) -> Mask:
    """The part of an image's mask that its crop shows, float32 [s, s]."""
    try:
        whole: Array = open_image(mask)
    except ImageError as error:
        raise ImageError(name, f"its mask {error.source}: {error.reason}", error.remedy) from error
    height, width = image.shape[:2]
    if abs(whole.shape[1] * height - whole.shape[0] * width) > max(height, width):
        said = (
            f"its mask has {whole.shape[1]} x {whole.shape[0]} pixels, the image {width} x {height}"
        )
        raise ImageError(name, said, "Give the mask of this image.")
    if whole.shape != image.shape:
        whole = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
    if spec.source == "native":
        side = cut.pixels.shape[0]
        part: Array = cv2.warpAffine(
            whole, cut.matrix, (side, side), flags=cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT
        )
    else:
        part = whole_crop(whole, spec).pixels
    share: Mask = part.max(axis=2).astype(np.float32) / 255
    return share


def _landmarks(
    landmarks: str | NDArray[np.floating] | None, name: str, matrix: NDArray[np.float64]
) -> NDArray[np.float64] | None:
    """Landmarks in pixels of the crop."""
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

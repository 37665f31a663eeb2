"""Generated faces and forgeries of them as data: for tests, examples and a first run without data."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.errors import OptionError

from vfm.data.dataset import Record
from vfm.deepfake.data.augment import Array, Colours, Mask, Pixels
from vfm.deepfake.data.base import DeepfakeImages, Mode, write_crop
from vfm.deepfake.data.blend import affine, face_mask
from vfm.deepfake.data.dataset import DeepfakeRecord
from vfm.deepfake.data.layouts import MANIFEST
from vfm.deepfake.data.manifest import write_manifest
from vfm.deepfake.data.portrait import Portrait, draw_face
from vfm.deepfake.data.record import LABELS, Item, LabelName
from vfm.deepfake.data.splits import assign_splits, components

METHODS = ("swap", "recolour")
"""How the fakes are made: another person's face within a soft outline, or the own face in other colours."""

__all__ = [
    "METHODS",
    "Drawn",
    "Portrait",
    "SyntheticDeepfakes",
    "draw_face",
    "draw_faces",
    "forge",
    "write_faces",
]

_DATASET = "procedural"
_FRACTIONS = {"train": 0.5, "val": 0.25, "test": 0.25}
# In each split there must be a pair of persons.
_LEAST = 8


class Drawn(NamedTuple):
    """A generated image with what is known of it."""

    item: Item
    """Its path is a name."""
    pixels: Pixels
    """uint8 [s, s, 3]."""
    mask: NDArray[np.uint8] | None
    """[s, s], white where it is forged; None of a real image."""
    landmarks: NDArray[np.float64]
    """[5, 2], in pixels."""


class SyntheticDeepfakes(DeepfakeImages):
    """Generated faces, and two kinds of forgeries of them, in memory.

    Half of the persons are to train, a quarter each to validate and to test; nobody is in two splits.
    """

    def __init__(
        self,
        *,
        num_identities: int = 16,
        num_frames: int = 4,
        image_size: int = 64,
        mode: Mode = "mixed",
        sbi_share: float = 0.5,
        benign_share: float = 0.1,
        edits: bool = True,
        batch_size: int = 16,
        num_workers: int | None = 0,
        seed: int = 0,
    ) -> None:
        """Make the data module.

        Args:
            num_identities: Persons, an even number of at least 8: two are swapped with each other.
            num_frames: Of each video; a person has one real video, and one of each kind of forgery.
            image_size: Side of the crops in pixels, 32 or more.
            mode: What a training batch is made of, as for `DeepfakeImages`.
            sbi_share: Of `mixed`, the share of the pairs whose forgery is blended on the fly.
            benign_share: Share of the training images that get a harmless edit.
            edits: Whether training images are flipped, turned, blurred, recoloured and compressed.
            batch_size: Images in a batch, on each process; two make a pair.
            num_workers: Processes that prepare images.
            seed: Of persons, order, pairs, blends and edits.

        Raises:
            ValueError: A number is too small or odd.
        """
        super().__init__(
            mode=mode,
            sbi_share=sbi_share,
            benign_share=benign_share,
            edits=edits,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        _check(num_identities, num_frames, image_size)
        self.num_identities = num_identities
        self.num_frames = num_frames
        self.image_size = image_size

    def find(self) -> dict[str, list[DeepfakeRecord]]:
        """Draw all faces."""
        drawn = draw_faces(self.num_identities, self.num_frames, self.image_size, self.seed)
        of_path = {one.item.path: one for one in drawn}
        items = assign_splits([one.item for one in drawn], _FRACTIONS, self.seed)
        splits: dict[str, list[DeepfakeRecord]] = {}
        for item, component in zip(items, components(items), strict=True):
            one = of_path[item.path]
            record = DeepfakeRecord(
                one.pixels,
                LABELS.index(item.label),
                item.path,
                item=item,
                component=component,
                mask=one.mask,
                landmarks=one.landmarks,
            )
            splits.setdefault(item.split, []).append(record)
        return splits

    def read_predict(self) -> list[Record]:
        """The test images."""
        self._read_once()
        return self.records["test"]

    def read_crop(self) -> CropSpec:
        """Crops of faces, of the size of the images."""
        return CropSpec(source="cropped", size=self.image_size)


def draw_faces(num_identities: int, num_frames: int, size: int = 256, seed: int = 0) -> list[Drawn]:
    """Real videos of persons, and of each a video by each of `METHODS`; person 2 k is swapped with 2 k + 1.

    Args:
        num_identities: Persons, an even number.
        num_frames: Of each video.
        size: Side of the images in pixels.
        seed: Of all.
    """
    drawn = []
    for who in range(num_identities):
        other = who ^ 1
        generator = np.random.default_rng([13, seed, who])
        for frame in range(num_frames):
            real = draw_face(who, frame, size, seed)
            drawn.append(_drawn(real.pixels, None, real, who, None, "", frame))
            for method in METHODS:
                donor = draw_face(other, frame, size, seed) if method == "swap" else real
                fake, mask = forge(method, real, donor, generator)
                swapped = other if method == "swap" else None
                drawn.append(_drawn(fake, mask, real, who, swapped, method, frame))
    return drawn


def forge(
    method: str, target: Portrait, donor: Portrait, generator: np.random.Generator
) -> tuple[Pixels, Mask]:
    """A forgery and its soft mask, float32 [s, s], 0 to 1.

    Args:
        method: One of `METHODS`.
        target: The picture to change.
        donor: Of another person, of the same size; not used by `recolour`.
        generator: Of random numbers.

    Raises:
        ValueError: There is no such method.
    """
    if method not in METHODS:
        raise OptionError(f"method is '{method}'. Choices: {', '.join(METHODS)}.")
    side = target.pixels.shape[0]
    mask = face_mask(target.landmarks, side, blur=float(generator.uniform(0.008, 0.03)))
    source: Array
    if method == "recolour":
        light = generator.choice([-1, 1]) * generator.uniform(10, 28)
        offset = tuple(float(light + tint) for tint in generator.uniform(-8, 8, 3))
        gain = (float(generator.uniform(0.9, 1.1)),) * 3
        source = Colours(gain, offset, 1.0).apply(target.pixels)
        source = cv2.GaussianBlur(
            source, (0, 0), generator.uniform(0.3, 0.8) * max(1.0, side / 128)
        )
    else:
        matrix = affine(donor.landmarks, target.landmarks)
        source = cv2.warpAffine(
            donor.pixels,
            matrix,
            (side, side),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )
        source = _tinted(source, target.pixels, mask)
    fake: Array = cv2.blendLinear(source, target.pixels, mask, 1 - mask)
    return fake, mask


def write_faces(
    folder: str | Path,
    num_identities: int = 16,
    num_frames: int = 4,
    size: int = 256,
    seed: int = 0,
) -> list[Item]:
    """Write generated faces as PNG files with masks, landmarks, `manifest.csv` and `crop.json`, for `DeepfakeData`.

    Args:
        folder: Made if it does not exist.
        num_identities: Persons, an even number of at least 8.
        num_frames: Of each video.
        size: Side of the images in pixels.
        seed: Of all.

    Returns:
        What the manifest lists; no item has a split.
    """
    _check(num_identities, num_frames, size)
    root = Path(folder).absolute()
    items = []
    for one in draw_faces(num_identities, num_frames, size, seed):
        path = root / "crops" / f"{one.item.path}.png"
        _save(path, one.pixels)
        mask, points = (root / kind / one.item.path for kind in ("masks", "landmarks"))
        if one.mask is not None:
            _save(mask.with_suffix(".png"), one.mask)
        points.parent.mkdir(parents=True, exist_ok=True)
        np.save(points.with_suffix(".npy"), one.landmarks)
        items.append(
            one.item._replace(
                path=path.as_posix(),
                mask=mask.with_suffix(".png").as_posix() if one.mask is not None else "",
                landmarks=points.with_suffix(".npy").as_posix(),
            )
        )
    write_manifest(root / MANIFEST, items)
    write_crop(root, CropSpec(source="cropped", size=size))
    return items


def _drawn(
    pixels: Pixels,
    mask: Mask | None,
    real: Portrait,
    who: int,
    donor: int | None,
    method: str,
    frame: int,
) -> Drawn:
    own = f"person{who:03d}"
    identities = (own,) if donor is None else (own, f"person{donor:03d}")
    label: LabelName = "fake" if method else "real"
    item = Item(
        path=f"{_DATASET}/{method or label}/{'_'.join(identities)}/{frame:04d}",
        label=label,
        video="_".join(identities),
        identities=identities,
        method=method,
        dataset=_DATASET,
        source=own if method else "",
        frame=frame,
    )
    levels = None if mask is None else np.rint(255 * mask).astype(np.uint8)
    return Drawn(item, pixels, levels, real.landmarks)


def _tinted(source: Array, target: Array, mask: Mask) -> Array:
    """The source, its mean colour brought most of the way to that of the target."""
    inside = (mask > 0.5).astype(np.uint8)
    gap = np.array(cv2.mean(target, inside)[:3]) - np.array(cv2.mean(source, inside)[:3])
    return Colours((1.0,) * 3, tuple(0.8 * gap), 1.0).apply(source)


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _check(num_identities: int, num_frames: int, size: int) -> None:
    if num_identities < _LEAST or num_identities % 2:
        raise OptionError(
            f"num_identities is {num_identities}. Give an even number of at least {_LEAST}: two persons are swapped, "
            "and each split needs a pair."
        )
    for name, value, least in (("num_frames", num_frames, 1), ("image_size", size, 32)):
        if value < least:
            raise OptionError(f"{name} is {value}. Give {least} or more.")

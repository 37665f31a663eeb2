"""Synthetic deepfakes: drawn faces and two kinds of fakes made of them, for tests, examples and a run without data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Unpack

import cv2
import numpy as np
from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.errors import OptionError

from vfm.data.records import Record
from vfm.deepfake.data.augment import Array, Mask, Pixels, change_colors
from vfm.deepfake.data.base import DEEPFAKE_DEFAULTS, DeepfakeImages, DeepfakeOptions
from vfm.deepfake.data.blend import fit_affine, mask_face
from vfm.deepfake.data.dataset import DeepfakeRecord
from vfm.deepfake.data.portrait import Portrait, draw_face
from vfm.deepfake.data.record import LABELS, Item
from vfm.deepfake.data.splits import name_components

METHODS = ("swap", "recolour")
"""How the fakes are made: another person's face within a soft outline, or the own face in other colours."""

_DATASET = "procedural"
_FRACTIONS = {"train": 0.5, "val": 0.25, "test": 0.25}
# In each split there must be a pair of persons.
_MIN_IDENTITIES = 8


class SyntheticDeepfakes(DeepfakeImages):
    """Drawn faces, and two kinds of fakes made of them, in memory.

    Half of the persons are to train, a quarter each to validate and to test; nobody is in two splits.
    """

    option_defaults: ClassVar[DeepfakeOptions] = {
        **DEEPFAKE_DEFAULTS,
        "batch_size": 16,
        "num_workers": 0,
    }

    def __init__(
        self,
        *,
        num_identities: int = 16,
        num_frames: int = 4,
        image_size: int = 64,
        **options: Unpack[DeepfakeOptions],
    ) -> None:
        """Make the data module.

        Args:
            num_identities: Persons, an even number of at least 8: two are swapped with each other.
            num_frames: Frames of each video; a person has one real video, and one of each kind of fake.
            image_size: Side of the crops in pixels, 32 or more.
            **options: As for every data module of deepfakes.

        Raises:
            ValueError: A number is too small or odd.
        """
        super().__init__(**options)
        if num_identities < _MIN_IDENTITIES or num_identities % 2:
            raise OptionError(
                f"num_identities is {num_identities}. Give an even number of at least {_MIN_IDENTITIES}: two persons "
                "are swapped, and each split needs a pair."
            )
        for name, value, least in (("num_frames", num_frames, 1), ("image_size", image_size, 32)):
            if value < least:
                raise OptionError(f"{name} is {value}. Give {least} or more.")
        self.num_identities = num_identities
        self.num_frames = num_frames
        self.image_size = image_size

    def find(self) -> dict[str, list[DeepfakeRecord]]:
        """Draw all faces."""
        drawn = list(draw_faces(self.num_identities, self.num_frames, self.image_size, self.seed))
        items = self._assign_splits([record.item for record in drawn], _FRACTIONS)
        splits: dict[str, list[DeepfakeRecord]] = {}
        for record, item, component in zip(drawn, items, name_components(items), strict=True):
            record = replace(record, item=item, component=component)
            splits.setdefault(item.split, []).append(record)
        return splits

    def read_predict(self) -> list[Record]:
        """The test images."""
        self._read_once()
        return self.records["test"]

    def read_crop(self) -> CropSpec:
        """Crops of faces, of the size of the images."""
        return CropSpec(source="cropped", size=self.image_size)


def draw_faces(
    num_identities: int, num_frames: int, size: int = 256, seed: int = 0
) -> Iterator[DeepfakeRecord]:
    """Draw real videos of persons, and of each a video by each of `METHODS`; person 2 k is swapped with 2 k + 1."""
    for person in range(num_identities):
        name, other = f"person{person:03d}", f"person{person ^ 1:03d}"
        generator = np.random.default_rng([13, seed, person])
        for frame in range(num_frames):
            real = draw_face(person, frame, size, seed)
            yield _make_record(real, None, Item("", "real", name, (name,), frame=frame))
            for method in METHODS:
                swapped = method == "swap"
                donor = draw_face(person ^ 1, frame, size, seed) if swapped else real
                names = (name, other) if swapped else (name,)
                fake, mask = make_deepfake(method, real, donor, generator)
                item = Item("", "fake", "_".join(names), names, method, source=name, frame=frame)
                yield _make_record(Portrait(fake, real.landmarks), mask, item)


def make_deepfake(
    method: str, target: Portrait, donor: Portrait, generator: np.random.Generator
) -> tuple[Pixels, Mask]:
    """Make a fake of the target, uint8 [s, s, 3], and its soft mask, float32 [s, s], 0 to 1.

    Only a swap takes the face of the donor, whose picture is of the same size.
    """
    side = target.pixels.shape[0]
    mask = mask_face(target.landmarks, side, blur=float(generator.uniform(0.008, 0.03)))
    source: Array = target.pixels
    if method == "recolour":
        light = generator.choice([-1, 1]) * generator.uniform(10, 28)
        tint = light + generator.uniform(-8, 8, 3)
        source = change_colors(target.pixels, generator.uniform(0.9, 1.1), tint)
        blur = generator.uniform(0.3, 0.8) * max(1.0, side / 128)
        source = cv2.GaussianBlur(source, (0, 0), blur)
    else:
        matrix = fit_affine(donor.landmarks, target.landmarks)
        size, border = (side, side), cv2.BORDER_REFLECT
        source = cv2.warpAffine(donor.pixels, matrix, size, borderMode=border)
        # The donor's mean color is brought most of the way to that of the target.
        inside = (mask > 0.5).astype(np.uint8)
        wanted, mean = (np.array(cv2.mean(i, inside)[:3]) for i in (target.pixels, source))
        source = change_colors(source, offset=0.8 * (wanted - mean))
    fake: Array = cv2.blendLinear(source, target.pixels, mask, 1 - mask)
    return fake, mask


def _make_record(face: Portrait, mask: Mask | None, item: Item) -> DeepfakeRecord:
    kind = item.method or item.label
    name = f"{_DATASET}/{kind}/{item.video}/{item.frame:04d}"
    return DeepfakeRecord(
        face.pixels,
        LABELS.index(item.label),
        name,
        item=item._replace(path=name, dataset=_DATASET),
        component="",
        mask=None if mask is None else np.rint(255 * mask).astype(np.uint8),
        landmarks=face.landmarks,
    )

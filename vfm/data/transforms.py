"""Random augmentation of training images; the only file that knows albumentations."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vfm.preprocess import Preprocess

if TYPE_CHECKING:
    from albumentations import Compose

Augment = Literal["none", "light", "standard"]


class TrainTransform:
    """From an image of any size to the model's size, augmented; a function of image and seed.

    Raises:
        ValueError: `augment` has a value outside its choices.
    """

    def __init__(self, augment: Augment, preprocess: Preprocess) -> None:
        """Make the transform.

        Args:
            augment: `none`; `light`: small shifts, scales and rotations, which digits and text
                survive; `standard`: random crops, mirror images and mild changes of colour.
            preprocess: Of the model that is trained.
        """
        check_augment(augment)
        self.augment = augment
        self.preprocess = preprocess
        self._pipeline = _PIPELINES[augment](preprocess)

    def __call__(self, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Augment one image.

        Args:
            image: uint8 [H, W, 3], RGB, of any size.
            seed: At least 0; the same seed gives the same result on every machine and worker.

        Returns:
            uint8 [h, w, 3], at the model's size.
        """
        if self.augment != "standard":
            # First the resize: a shift by a part of a pixel of an 8 x 8 digit needs the pixels, and
            # a small image is turned in a tenth of the time of a photo.
            image = self.preprocess.resize(image)[0]
        if self._pipeline is None:
            return image
        # Not `set_random_seed`: it seeds every transform alike, so that the draw that decides on
        # the mirror image also decides on the colours. One shared generator gives independent
        # draws.
        self._pipeline.set_random_state(np.random.default_rng(seed), random.Random(seed))
        augmented: NDArray[np.uint8] = self._pipeline(image=np.ascontiguousarray(image))["image"]
        return augmented

    def __reduce__(self) -> tuple[type[TrainTransform], tuple[Augment, Preprocess]]:
        # A worker that is not forked makes its own pipeline.
        return TrainTransform, (self.augment, self.preprocess)


def check_augment(augment: str) -> None:
    """Refuse an augmentation that does not exist.

    Raises:
        ValueError: With the choices.
    """
    if augment not in get_args(Augment):
        raise ValueError(f"augment is '{augment}'. Choices: {', '.join(get_args(Augment))}.")


def _albumentations() -> Any:
    # It asks the network for updates at import otherwise. The import takes two seconds.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations

    return albumentations


def _none(preprocess: Preprocess) -> None:
    return None


def _light(preprocess: Preprocess) -> Compose:
    import cv2

    A = _albumentations()  # noqa: N806 - the name that albumentations' own documentation uses
    shift = (-0.06, 0.06)
    affine = A.Affine(
        scale=(0.9, 1.1),
        keep_ratio=True,
        translate_percent={"x": shift, "y": shift},
        rotate=(-10, 10),
        # A border that repeats the edge adds no strokes to a digit, as a mirrored one would.
        border_mode=cv2.BORDER_REPLICATE,
        p=1.0,
    )
    return A.Compose([affine])


def _standard(preprocess: Preprocess) -> Compose:
    import cv2

    A = _albumentations()  # noqa: N806
    cubic = preprocess.interpolation == "bicubic"
    crop = A.RandomResizedCrop(
        size=preprocess.size,
        # Fine-tuning keeps the object in view: 0.08, usual when training from nothing, does not.
        scale=(0.35, 1.0),
        interpolation=cv2.INTER_CUBIC if cubic else cv2.INTER_LINEAR,
        # OpenCV's filters are not antialiased; evaluation is.
        area_for_downscale="image",
    )
    colour = A.ColorJitter(
        brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.02, 0.02), p=0.8
    )
    return A.Compose([crop, A.HorizontalFlip(p=0.5), colour])


_PIPELINES: dict[str, Any] = {"none": _none, "light": _light, "standard": _standard}

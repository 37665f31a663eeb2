"""Random augmentation of training images; the only file that knows albumentations."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import VfmError

from vfm.data.crop import RandomCrop
from vfm.data.decode import Source
from vfm.preprocess import Preprocess

Preset = Literal["none", "light", "standard", "strong"]
Augment = Preset | list[Any]
"""A preset, or a pipeline: names of albumentations' transforms, each alone or with arguments as `{name: {argument:
value}}`."""

_RESIZE = "Resize"
_CROP = "RandomResizedCrop"
_SHIFT = [-0.06, 0.06]


def build_jitter(
    light: float, *, saturation: float, hue: float, probability: float
) -> dict[str, Any]:
    """A step of random brightness, contrast, saturation and hue: each within 1 or 0 plus or minus what is given."""
    around = {name: [1 - light, 1 + light] for name in ("brightness", "contrast")}
    ranges = {"saturation": [1 - saturation, 1 + saturation], "hue": [-hue, hue]}
    return {"ColorJitter": {**around, **ranges, "p": probability}}


_PRESETS: dict[str, list[Any]] = {
    "none": [_RESIZE],
    # First the resize: a shift by a part of a pixel of an 8 x 8 digit needs the pixels, and a small image is turned in
    # a tenth of the time of a photo.
    "light": [
        _RESIZE,
        {
            "Affine": {
                "scale": [0.9, 1.1],
                "keep_ratio": True,
                "translate_percent": {"x": _SHIFT, "y": _SHIFT},
                "rotate": [-10, 10],
                # OpenCV's BORDER_REPLICATE: a border that repeats the edge adds no strokes to a digit.
                "border_mode": 1,
                "p": 1.0,
            }
        },
    ],
    # Fine-tuning keeps the object in view: a scale from 0.08, usual when training from nothing, does not.
    "standard": [
        {_CROP: {"scale": [0.35, 1.0]}},
        {"HorizontalFlip": {"p": 0.5}},
        build_jitter(0.2, saturation=0.2, hue=0.02, probability=0.8),
    ],
    "strong": [
        {_CROP: {"scale": [0.2, 1.0]}},
        {"HorizontalFlip": {"p": 0.5}},
        build_jitter(0.4, saturation=0.4, hue=0.05, probability=0.8),
        {"ToGray": {"p": 0.1}},
        {"GaussianBlur": {"sigma_limit": [0.1, 2.0], "blur_limit": 0, "p": 0.1}},
        {"CoarseDropout": {"num_holes_range": [1, 2], "fill": "random", "p": 0.25}},
    ],
}


class AugmentError(VfmError, ValueError):
    """A pipeline cannot be made or does not give an image; the message says what to change."""


class TrainTransform:
    """From a file or an image of any size to the model's size, augmented; a function of image and seed."""

    def __init__(self, augment: Augment, preprocess: Preprocess) -> None:
        """Make the transform.

        Args:
            augment: `none`; `light`: small shifts, scales and rotations, which digits and text
                survive; `standard`: random crops, mirror images and mild changes of colour;
                `strong`: smaller crops, stronger colours, grey, blur, holes; or a pipeline. A
                pipeline that starts with `RandomResizedCrop` or `Resize` gets the model's size
                there; any other sees the image as it is, and the result is resized.
            preprocess: Of the model that is trained.

        Raises:
            AugmentError: There is no such preset, or the pipeline cannot be made.
        """
        self.augment = augment
        self.preprocess = preprocess
        steps = _steps(augment)
        name, arguments = _entry(steps[0]) if steps else ("", {})
        self._crop = _random_crop(arguments, preprocess) if name == _CROP else None
        self._resize = name == _RESIZE
        self._whole = not (self._crop or self._resize)
        if self._crop or self._resize:
            steps = steps[1:]
        self._pipeline: Any = _compose(steps, preprocess) if steps else None
        # Nothing random, so training sees what evaluation will.
        self._exact = self._resize and not steps

    def __call__(self, source: str | bytes | NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Open and augment one image.

        Args:
            source: As for `vfm_runtime.media.image.open_image`.
            seed: At least 0; the same seed gives the same result on every machine and worker.

        Returns:
            uint8 [h, w, 3], at the model's size.

        Raises:
            ImageError: The file cannot be read.
            AugmentError: A transform fails on this image, or gives something else than an image.
        """
        opened = Source.open(source)
        generator = np.random.default_rng(seed)
        if self._crop is not None:
            image = self._crop(opened, generator)
        elif self._resize:
            image = self.preprocess.resize(
                opened.decode(1.0 if self._exact else self._scale(opened))
            )[0]
        else:
            image = opened.decode()
        if self._pipeline is not None:
            image = self._augmented(image, generator, seed)
        if not self._whole and image.shape[:2] == self.preprocess.size:
            return image  # once more would cut its border off again
        return self.preprocess.resize(image)[0]

    def __reduce__(self) -> tuple[type[TrainTransform], tuple[Augment, Preprocess]]:
        # A worker that is not forked makes its own pipeline.
        return TrainTransform, (self.augment, self.preprocess)

    def _scale(self, source: Source) -> float:
        """Share of the sides that leaves the resize two pixels for one."""
        height, width = self.preprocess.size
        return 2 * max(height / source.height, width / source.width)

    def _augmented(
        self, image: NDArray[np.uint8], generator: np.random.Generator, seed: int
    ) -> NDArray[np.uint8]:
        # Not `set_random_seed`: it seeds every transform alike, so that the draw that decides on the mirror image also
        # decides on the colours. One shared generator gives independent draws.
        self._pipeline.set_random_state(generator, random.Random(seed))
        before = image.shape
        try:
            image = self._pipeline(image=np.ascontiguousarray(image))["image"]
        except Exception as error:  # whatever a transform of the user raises
            raise AugmentError(
                f"The augmentation failed on an image of {before[0]} x {before[1]} pixels: {error}. "
                "Change the pipeline (--data.augment), or start it with RandomResizedCrop or Resize."
            ) from error
        if getattr(image, "dtype", None) != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            kind = f"{getattr(image, 'dtype', type(image).__name__)} of shape {list(image.shape)}"
            raise AugmentError(
                f"The augmentation gives {kind}; it must give uint8 RGB [height, width, 3]. "
                "Leave out Normalize, ToFloat and ToTensorV2: the model normalises by itself."
            )
        return image


def check_augment(augment: Augment) -> None:
    """Refuse an augmentation that cannot be made.

    Raises:
        AugmentError: With the choices.
    """
    if isinstance(augment, str):
        _steps(augment)
    else:
        # Only the user's own is tried: it takes the seconds that albumentations needs to be imported.
        TrainTransform(augment, Preprocess(size=(224, 224)))


def _steps(augment: Augment) -> list[Any]:
    if isinstance(augment, str):
        if augment not in _PRESETS:
            raise AugmentError(
                f"augment is '{augment}'. Choices: {', '.join(get_args(Preset))}, or a list of "
                "albumentations' transforms, such as [HorizontalFlip, {Rotate: {limit: 15}}]."
            )
        return _PRESETS[augment]
    return list(augment)


def _entry(step: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a step."""
    if isinstance(step, str):
        return step, {}
    if isinstance(step, Mapping) and len(step) == 1:
        name, arguments = next(iter(step.items()))
        if arguments is None or isinstance(arguments, Mapping):
            return str(name), dict(arguments or {})
    raise AugmentError(
        f"A step of augment is {step!r}. Give a name, such as HorizontalFlip, or a name with its arguments, such as "
        "{Rotate: {limit: 15, p: 0.5}}; mind the indentation."
    )


def _random_crop(arguments: Mapping[str, Any], preprocess: Preprocess) -> RandomCrop:
    try:
        return RandomCrop(preprocess.size, preprocess.interpolation == "bicubic", **arguments)
    except TypeError:
        raise AugmentError(
            f"{_CROP} takes scale and ratio, not {', '.join(arguments)}. Its size is the model's."
        ) from None


def _compose(steps: Sequence[Any], preprocess: Preprocess) -> Any:
    # It asks the network for updates at import otherwise. The import takes two seconds.
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    import albumentations as A

    return A.Compose([_transform(A, *_entry(step), preprocess) for step in steps])


def _transform(A: Any, name: str, arguments: dict[str, Any], preprocess: Preprocess) -> Any:  # noqa: N803
    known = {
        key: value
        for key, value in vars(A).items()
        if isinstance(value, type) and issubclass(value, A.BasicTransform | A.BaseCompose)
    }
    if name not in known:
        close = ", ".join(get_close_matches(name, known, 3)) or "none"
        raise AugmentError(
            f"albumentations has no transform '{name}'. Near: {close}. "
            f"A preset is given alone: {', '.join(get_args(Preset))}."
        )
    if "transforms" in arguments:
        inner = [_transform(A, *_entry(step), preprocess) for step in arguments["transforms"]]
        arguments = arguments | {"transforms": inner}
    if name in (_CROP, _RESIZE):
        height, width = preprocess.size
        size = {"size": (height, width)} if name == _CROP else {"height": height, "width": width}
        arguments = size | arguments
    with warnings.catch_warnings():
        # It warns of arguments that it does not know and goes on without them.
        warnings.filterwarnings("error", message="Argument.* not valid", category=UserWarning)
        try:
            return known[name](**arguments)
        except Exception as error:  # of pydantic, of the warning, of the transform itself
            reason = " ".join(str(error).split())
            raise AugmentError(f"{name} cannot be made with {arguments}: {reason}") from error

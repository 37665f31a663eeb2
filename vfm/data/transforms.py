"""Augmentation of training images at random; the only file that knows albumentations."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import VfmError, suggest

from vfm.data.crop import RandomCrop
from vfm.data.decode import Source
from vfm.preprocess import Preprocess

Preset = Literal["none", "light", "standard", "strong"]
Augment = Preset | Literal["auto"] | list[Any]
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
            augment: `none`; `light`: small shifts, scales and rotations, which digits and text survive; `standard`:
                random crops, mirror images and mild changes of colour; `strong`: smaller crops, stronger colours, grey,
                blur, holes; or a pipeline. A pipeline that starts with `RandomResizedCrop` or `Resize` gets the model's
                size there; any other sees the image as it is, and the result is resized.
            preprocess: Preprocessing of the model that is trained.

        Raises:
            AugmentError: There is no such preset, or the pipeline cannot be made.
        """
        self.augment = augment
        self.preprocess = preprocess
        steps = _list_steps(augment)
        name, arguments = _parse_step(steps[0]) if steps else ("", {})
        self._resize = name == _RESIZE
        self._crop: RandomCrop | None = None
        if name == _CROP:
            cubic = preprocess.interpolation == "bicubic"
            try:
                self._crop = RandomCrop(preprocess.size, cubic, **arguments)
            except TypeError:
                raise AugmentError(
                    f"{_CROP} takes scale and ratio, not {', '.join(arguments)}. Its size is the model's."
                ) from None
        if self._crop or self._resize:
            steps = steps[1:]
        self._pipeline: Any = None
        if steps:
            # It asks the network for updates at import otherwise. The import takes two seconds.
            os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
            import albumentations as A

            self._pipeline = A.Compose([_build_step(A, step, preprocess) for step in steps])

    def __call__(self, source: str | bytes | NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
        """Open and augment one image, uint8 [h, w, 3], at the model's size.

        Args:
            source: What `vfm_runtime.media.image.open_image` takes.
            seed: Number from 0; the same seed gives the same result on every machine and worker.

        Raises:
            ImageError: The file cannot be read.
            AugmentError: A transform fails on this image, or gives something else than an image.
        """
        opened = Source.open(source, self.preprocess.value_range)
        generator = np.random.default_rng(seed)
        if self._crop is not None:
            image = self._crop(opened, generator)
        elif self._resize:
            # Where nothing is random, training sees what evaluation will; else two pixels for one are enough to resize.
            height, width = self.preprocess.size
            scale = 2 * max(height / opened.height, width / opened.width) if self._pipeline else 1.0
            image = self.preprocess.resize(opened.decode(scale))[0]
        else:
            image = opened.decode()
        if self._pipeline is not None:
            image = self._apply_pipeline(image, generator, seed)
        if (self._crop or self._resize) and image.shape[:2] == self.preprocess.size:
            return image  # once more would cut its border off again
        return self.preprocess.resize(image)[0]

    def __reduce__(self) -> tuple[type[TrainTransform], tuple[Augment, Preprocess]]:
        # A worker that is not forked makes its own pipeline.
        return TrainTransform, (self.augment, self.preprocess)

    def _apply_pipeline(
        self, image: NDArray[np.uint8], generator: np.random.Generator, seed: int
    ) -> NDArray[np.uint8]:
        # Not `set_random_seed`: it seeds every transform alike, so that the draw that decides on the mirror image also
        # decides on the colours. One shared generator gives independent draws.
        self._pipeline.set_random_state(generator, random.Random(seed))
        height, width = image.shape[:2]
        try:
            image = self._pipeline(image=np.ascontiguousarray(image))["image"]
        except Exception as error:  # whatever a transform of the user raises
            raise AugmentError(
                f"The augmentation failed on an image of {height} x {width} pixels: {error}. "
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
        _list_steps(augment)
    else:
        # Only the user's own is tried: it takes the seconds that albumentations needs to be imported.
        TrainTransform(augment, Preprocess(size=(224, 224)))


def _list_steps(augment: Augment) -> list[Any]:
    if not isinstance(augment, str):
        return list(augment)
    if augment not in _PRESETS:
        raise AugmentError(
            f"augment is '{augment}'. Choices: auto, {', '.join(get_args(Preset))}, or a list of "
            "albumentations' transforms, such as [HorizontalFlip, {Rotate: {limit: 15}}]."
        )
    return _PRESETS[augment]


def _parse_step(step: Any) -> tuple[str, dict[str, Any]]:
    """Name and arguments of a step."""
    if isinstance(step, str):
        return step, {}
    if isinstance(step, Mapping) and len(step) == 1:
        ((name, arguments),) = step.items()
        if arguments is None or isinstance(arguments, Mapping):
            return str(name), dict(arguments or {})
    raise AugmentError(
        f"A step of augment is {step!r}. Give a name, such as HorizontalFlip, or a name with its arguments, such as "
        "{Rotate: {limit: 15, p: 0.5}}; mind the indentation."
    )


def _build_step(A: Any, step: Any, preprocess: Preprocess) -> Any:  # noqa: N803
    name, arguments = _parse_step(step)
    kind = getattr(A, name, None)
    if not (isinstance(kind, type) and issubclass(kind, A.BasicTransform | A.BaseCompose)):
        raise AugmentError(
            f"albumentations has no transform '{name}'.{suggest(name, dir(A))} "
            f"A preset is given alone: {', '.join(get_args(Preset))}."
        )
    if "transforms" in arguments:
        arguments["transforms"] = [
            _build_step(A, inner, preprocess) for inner in arguments["transforms"]
        ]
    height, width = preprocess.size
    if name == _CROP:
        arguments = {"size": (height, width)} | arguments
    elif name == _RESIZE:
        arguments = {"height": height, "width": width} | arguments
    with warnings.catch_warnings():
        # It warns of arguments that it does not know and goes on without them.
        warnings.filterwarnings("error", message="Argument.* not valid", category=UserWarning)
        try:
            return kind(**arguments)
        except Exception as error:  # of pydantic, of the warning, of the transform itself
            reason = " ".join(str(error).split())
            raise AugmentError(f"{name} cannot be made with {arguments}: {reason}") from error

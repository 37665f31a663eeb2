"""Mixup and CutMix: training on blends of two images and their labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from vfm_runtime.errors import OptionError


@dataclass(frozen=True)
class Mixing:
    """How batches are mixed; nothing by default.

    What is drawn is a function of a key, not of a generator's state, so that a resumed training
    draws the same.

    Raises:
        ValueError: A value is outside its range.
    """

    mixup: float = 0.0
    """Alpha of mixup's Beta distribution (Zhang et al., 2018); 0 switches it off, 0.2 is mild, 0.8 strong."""
    cutmix: float = 0.0
    """Alpha of CutMix's Beta distribution (Yun et al., 2019); 0 switches it off, 1 is usual."""
    probability: float = 1.0
    """Fraction of the batches that are mixed; where both are on, each is chosen half of the time."""

    def __post_init__(self) -> None:
        for name, most in (("mixup", 10), ("cutmix", 10), ("probability", 1)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise OptionError(
                    f"mixing.{name} is {value}. Give a number from 0 to {most} (--model.mixing.{name})."
                )

    def __call__(self, images: Tensor, target: Tensor, key: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mix each image of a batch with its neighbour; give images and targets of the same shapes.

        Args:
            images: float [N, C, H, W].
            target: float [N, L], fractions of the labels.
            key: Numbers from 0; the same ones draw the same.
        """
        random = np.random.Generator(np.random.Philox(np.random.SeedSequence(list(key))))
        kinds = [kind for kind in ("mixup", "cutmix") if getattr(self, kind)]
        if not kinds or len(images) < 2 or random.random() >= self.probability:
            return images, target
        kind = kinds[int(random.integers(len(kinds)))]
        fraction = float(random.beta(*[getattr(self, kind)] * 2))
        other = images.roll(1, 0)
        if kind == "mixup":
            images = other.lerp(images, fraction)
        else:
            # A box of `1 - fraction` of the area around a random center, cut off at the border.
            height, width = images.shape[2:]
            side = math.sqrt(1 - fraction)
            h, w = round(height * side), round(width * side)
            y, x = int(random.integers(height)) - h // 2, int(random.integers(width)) - w // 2
            top, left, bottom, right = max(0, y), max(0, x), min(height, y + h), min(width, x + w)
            images = images.clone()
            images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
            fraction = 1 - (bottom - top) * (right - left) / (height * width)
        return images, target.roll(1, 0).lerp(target, fraction)

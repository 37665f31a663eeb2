"""The way from an image of any size to the model's input, stated once.

`Preprocess` has two halves. `resize` runs per image, in the data workers, on uint8; `normalise` runs inside the
model, on the batch. Training, evaluation and the exported graphs all use these two functions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Fit = Literal["crop", "squash", "letterbox"]
Interpolation = Literal["bilinear", "bicubic"]

_PER_MILLE = 1000
# Enlarging by a whole factor gives many values exactly half-way between two whole numbers, where the last bits of each
# engine's arithmetic would decide. A boundary a little beside them makes all engines round alike.
_HALF = 0.5012


@dataclass(frozen=True)
class Geometry:
    """Where the pixels of a resized image lie in the original: `x_model = x * scale_x + offset_x`, in pixels."""

    height: int
    """Height of the original image."""
    width: int
    """Width of the original image."""
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float


@dataclass(frozen=True)
class Preprocess:
    """Size, fit, interpolation and normalisation of a model's input.

    Raises:
        ValueError: A field has a value outside its choices.
    """

    size: tuple[int, int]
    """Height and width in pixels that the model takes."""
    fit: Fit = "crop"
    """How the aspect ratio is met: `crop` cuts the centre, `squash` distorts, `letterbox` pads with the mean colour."""
    crop_fraction: float = 1.0
    """Share of the largest centred region that `crop` keeps, along each side."""
    interpolation: Interpolation = "bilinear"
    """Filter of the resize; always antialiased."""
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Mean of red, green and blue, in 0..1, that `normalise` subtracts."""
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    """Standard deviation, in 0..1, that `normalise` divides by."""

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_choice("fit", self.fit, get_args(Fit))
        _check_choice("interpolation", self.interpolation, get_args(Interpolation))
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"Preprocess size is {self.size}. Give height and width in pixels.")
        if not 0 < self.crop_fraction <= 1:
            raise ValueError(
                f"Preprocess crop_fraction is {self.crop_fraction}. Give a number above 0, up to 1."
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError(
                f"Preprocess mean {self.mean} and std {self.std} need three numbers each, std above 0."
            )

    @classmethod
    def from_timm(
        cls,
        config: Mapping[str, Any],
        *,
        size: tuple[int, int] | None = None,
        fit: Fit | None = None,
    ) -> Preprocess:
        """The preprocessing that a timm model was trained for.

        Args:
            config: As given by `timm.data.resolve_model_data_config`.
            size: Height and width in place of the model's own.
            fit: In place of the model's own way; timm's `border` is a letterbox.
        """
        own: dict[str, Fit] = {"center": "crop", "squash": "squash", "border": "letterbox"}
        # timm names filters that few models use (lanczos, nearest); the nearest smooth one stands in.
        interpolation: Interpolation = (
            "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
        )
        return cls(
            size=size or tuple(config["input_size"][1:]),
            fit=fit or own[config.get("crop_mode") or "center"],
            crop_fraction=float(config["crop_pct"]),
            interpolation=interpolation,
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`."""
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a bundle."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def resize(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], Geometry]:
        """Bring one image to the model's size.

        Args:
            image: uint8 [H, W, 3], RGB, of any size.

        Returns:
            uint8 [h, w, 3], and where it came from.
        """
        height, width = image.shape[:2]
        # torch shares the memory, and wants it writable; an array read from a file often is not.
        pixels = self.resize_tensor(torch.from_numpy(np.require(image, requirements=["C", "W"])))
        return pixels.numpy(), self.geometry(height, width)

    def resize_tensor(self, image: Tensor) -> Tensor:
        """`resize` as traceable tensor operations: uint8 [H, W, 3] to uint8 [h, w, 3].

        The arithmetic is in whole numbers so that a graph with a dynamic height and width computes the same region.
        """
        x = image.permute(2, 0, 1).unsqueeze(0).float()
        if self.fit == "crop":
            top, left, height, width = self._region(image.shape[0], image.shape[1])
            # Cutting first gives, but for half a pixel, the same as timm's order, and a 20,000 x 1 image stays small.
            x = x.narrow(2, top, height).narrow(3, left, width)
        x = self._letterboxed(x) if self.fit == "letterbox" else self._interpolated(x, *self.size)
        return (x + _HALF).floor().clamp(0, 255).to(torch.uint8).squeeze(0).permute(1, 2, 0)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Make the network's input from a batch of pixels.

        Args:
            pixels: uint8 [N, h, w, 3].

        Returns:
            float32 [N, 3, h, w], standardised by mean and std.
        """
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def geometry(self, height: int, width: int) -> Geometry:
        """Where an original of this size lies in the resized image."""
        h, w = self.size
        if self.fit == "squash":
            return Geometry(height, width, w / width, h / height, 0.0, 0.0)
        if self.fit == "letterbox":
            nh, nw = self._fitted(height, width)
            return Geometry(
                height, width, nw / width, nh / height, float((w - nw) // 2), float((h - nh) // 2)
            )
        top, left, rh, rw = self._region(height, width)
        return Geometry(height, width, w / rw, h / rh, -left * w / rw, -top * h / rh)

    def _region(self, height: int, width: int) -> tuple[Any, Any, Any, Any]:
        """Top, left, height and width of the central region that `crop` keeps."""
        h, w = self.size
        keep = round(self.crop_fraction * _PER_MILLE)
        scaled = torch.sym_min(height * w, width * h) * keep  # = h * w * 1000 * scale
        rh = torch.sym_max(1, (2 * scaled + w * _PER_MILLE) // (2 * w * _PER_MILLE))
        rw = torch.sym_max(1, (2 * scaled + h * _PER_MILLE) // (2 * h * _PER_MILLE))
        return (height - rh) // 2, (width - rw) // 2, rh, rw

    def _fitted(self, height: int, width: int) -> tuple[Any, Any]:
        """Height and width of the whole image inside the letterbox."""
        h, w = self.size
        longest = torch.sym_max(height * w, width * h)  # = height * width / scale
        nh = torch.sym_max(1, (2 * height * h * w + longest) // (2 * longest))
        nw = torch.sym_max(1, (2 * width * h * w + longest) // (2 * longest))
        return nh, nw

    def _letterboxed(self, x: Tensor) -> Tensor:
        h, w = self.size
        nh, nw = self._fitted(x.shape[2], x.shape[3])
        top, left = (h - nh) // 2, (w - nw) // 2
        x = self._interpolated(x, nh, nw)
        fill = torch.tensor([round(m * 255) for m in self.mean], dtype=x.dtype).view(1, 3, 1, 1)
        padded = F.pad(x - fill, (left, w - nw - left, top, h - nh - top))
        return padded + fill

    def _interpolated(self, x: Tensor, height: int, width: int) -> Tensor:
        return F.interpolate(
            x, size=(height, width), mode=self.interpolation, antialias=True, align_corners=False
        )


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"Preprocess {name} is '{value}'. Choices: {', '.join(choices)}.")

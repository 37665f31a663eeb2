"""The contracts between the layers: what data gives a task, a backbone gives a head, a head gives a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, NotRequired, Self, TypedDict

import torch
from torch import Tensor

Raw = dict[str, Tensor]
"""What a head's forward gives: named tensors, before they are decoded to an answer."""


class Objects(NamedTuple):
    """The objects of a batch's images, those of the first image first. T objects, N images."""

    boxes: Tensor
    """float32 [T, 4], centre x and y, width and height, as shares of the model's input."""
    labels: Tensor
    """int64 [T], index into the data's label names."""
    counts: Tensor
    """int64 [N], objects of each image."""


class Batch(TypedDict):
    """Images of one size with their labels. Files that could not be read are not in it, but listed."""

    image: Tensor
    """uint8 [N, H, W, 3], RGB, already at the model's size; [N, 0, 0, 3] where `features` stand in."""
    features: NotRequired[dict[str, Tensor]]
    """Fields of `Features` that a frozen backbone gave for these images."""
    label: Tensor
    """int64 [N], index into the data's label names, -1 where there is none; float32 [N, C] of zeros and ones where
    several labels may apply."""
    objects: NotRequired[Objects]
    """What is to be found in the images, where that is the task."""
    geometry: NotRequired[Tensor]
    """float32 [N, 6], where each image lies in its original, as `vfm.preprocess.Geometry.row` gives it."""
    mask: NotRequired[Tensor]
    """float32 [N, H, W], 0 to 1, how much of each pixel is forged; -1 everywhere where that is not known."""
    index: Tensor
    """int64 [N], position of each sample in its split."""
    name: list[str]
    """Path or name of each sample."""
    skipped: list[tuple[str, str]]
    """Name and reason of each sample of this batch that could not be read."""


@dataclass(frozen=True)
class Features:
    """What every backbone gives, whatever its family. N images, width D, a last grid of h x w."""

    pooled: Tensor
    """[N, D], one vector an image, pooled as the backbone was trained."""
    tokens: Tensor
    """[N, h * w, D'], one vector a place, row by row; class and register tokens are left out."""
    maps: tuple[Tensor, ...]
    """Feature maps [N, D', h, w], finest first; the last one holds the tokens."""

    @classmethod
    def partial(cls, fields: Mapping[str, Tensor]) -> Self:
        """Features of which only some fields are known; the others hold nothing.

        Args:
            fields: `pooled`, `tokens` or both.
        """
        nothing = torch.empty(0)
        return cls(fields.get("pooled", nothing), fields.get("tokens", nothing), ())


@dataclass(frozen=True)
class FeatureInfo:
    """Sizes of `Features`, known before the first image: what a head is built from."""

    width: int
    """D, the width of `pooled`."""
    token_width: int
    """D', the width of `tokens`."""
    map_widths: tuple[int, ...] = ()
    """Width of each of the `maps`."""
    map_strides: tuple[int, ...] = ()
    """Pixels of the input for one place, of each of the `maps`."""

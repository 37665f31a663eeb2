"""Multi-crop: several random views of each image of a batch, cut and colored by torch where the batch lies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from vfm_runtime.errors import OptionError


class Views(NamedTuple):
    """Views of N images, those of one kind in one tensor: all first views, then all second ones."""

    large: Tensor
    """Global views, [Vg * N, 3, H, W]."""
    small: Tensor | None
    """Local views, [Vl * N, 3, h, w]; None where there are none."""


@dataclass(frozen=True)
class MultiCrop:
    """Views that a self-supervised method compares: large crops, and small ones (Caron et al., 2020).

    Crops are cut out of the image at the model's size, with other brightness, contrast and saturation, mirrored or
    not, some of them without color. The views of an image hang on its key alone, not on its batch.

    Raises:
        OptionError: A value is outside its range.
    """

    num_global: int = 2
    """Large crops of each image, 2 or more."""
    num_local: int = 4
    """Small crops of each image, 0 or more; each costs what its size costs."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Least and largest fraction of the image's area in a large crop."""
    local_scale: tuple[float, float] = (0.1, 0.4)
    """Least and largest fraction of the image's area in a small crop."""
    local_size: int | None = None
    """Side in pixels of a small crop; null: that of the model. A plain ViT takes another than its own with
    --model.backbone_args '{"dynamic_img_size": true}'."""
    flip: float = 0.5
    """Fraction of the crops that are mirrored; 0 where left and right differ, as in digits."""
    jitter: float = 0.4
    """How far brightness, contrast and saturation vary: by a factor from 1 less this to 1 more."""
    gray: float = 0.2
    """Fraction of the crops without color."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "global_scale", tuple(self.global_scale))
        object.__setattr__(self, "local_scale", tuple(self.local_scale))
        ranges = {
            "num_global": (2 <= self.num_global <= 8, "2 to 8"),
            "num_local": (0 <= self.num_local <= 16, "0 to 16"),
            "global_scale": (
                _is_range(self.global_scale),
                "two numbers above 0, up to 1, in order",
            ),
            "local_scale": (_is_range(self.local_scale), "two numbers above 0, up to 1, in order"),
            "local_size": (
                self.local_size is None or self.local_size >= 8,
                "8 pixels or more, or null",
            ),
            "flip": (0 <= self.flip <= 1, "0 to 1"),
            "jitter": (0 <= self.jitter < 1, "0 to below 1"),
            "gray": (0 <= self.gray <= 1, "0 to 1"),
        }
        for name, (good, expected) in ranges.items():
            if not good:
                raise OptionError(
                    f"views.{name} is {getattr(self, name)}. Give {expected} (--model.views.{name})."
                )

    def cut(self, images: Tensor, keys: Sequence[Sequence[int]]) -> Views:
        """Cut the views of a batch.

        Args:
            images: Normalized images, float [N, 3, H, W].
            keys: Numbers from 0 for each of the N images; the same ones draw the same.
        """
        shape = 9, self.num_global + self.num_local
        draws = draw_uniform(shape, keys).movedim(0, 2).to(images.device)
        size = tuple(images.shape[2:])
        local = size if self.local_size is None else (self.local_size, self.local_size)
        large = self._cut_kind(images, draws[:, : self.num_global], self.global_scale, size)
        small = None
        if self.num_local:
            small = self._cut_kind(images, draws[:, self.num_global :], self.local_scale, local)
        return Views(large, small)

    def _cut_kind(
        self,
        images: Tensor,
        draws: Tensor,
        scale: tuple[float, float],
        size: tuple[int, ...],
    ) -> Tensor:
        """Return crops of each image by numbers that were drawn, [9, V, N], as [V * N, 3, h, w]."""
        count, draw = draws.shape[1], draws.flatten(1)
        number = draw.shape[1]
        area = scale[0] + (scale[1] - scale[0]) * draw[0]
        ratio = torch.exp((2 * draw[1] - 1) * math.log(4 / 3)).sqrt()
        width, height = (area.sqrt() * ratio).clamp(max=1), (area.sqrt() / ratio).clamp(max=1)
        mirror = torch.where(draw[4] < self.flip, -1.0, 1.0)
        theta = torch.zeros(number, 2, 3, device=images.device)
        theta[:, 0, 0], theta[:, 1, 1] = width * mirror, height
        theta[:, 0, 2] = (2 * draw[2] - 1) * (1 - width)
        theta[:, 1, 2] = (2 * draw[3] - 1) * (1 - height)
        grid = F.affine_grid(theta, [number, 3, *size], align_corners=False)
        repeated = images.float().repeat(count, 1, 1, 1)
        crops = F.grid_sample(repeated, grid, padding_mode="reflection", align_corners=False)
        bright, contrast, saturation = (
            (1 + self.jitter * (2 * draw[i] - 1)).reshape(-1, 1, 1, 1) for i in (5, 6, 7)
        )
        # Of normalized values: half of the range from black to white is about 2 of their units.
        crops = crops + 2 * (bright - 1)
        mean = crops.mean((1, 2, 3), keepdim=True)
        crops = mean + contrast * (crops - mean)
        gray = crops.mean(1, keepdim=True)
        saturation = torch.where((draw[8] < self.gray).reshape(-1, 1, 1, 1), 0.0, saturation)
        return gray + saturation * (crops - gray)


def draw_uniform(shape: tuple[int, ...], keys: Sequence[Sequence[int]]) -> Tensor:
    """Return numbers from 0 to 1 for each of N keys, float32 [N, *shape]; the same key gives the same ones."""
    generator = torch.Generator()
    seeds = (hash(tuple(key)) % 2**63 for key in keys)
    return torch.stack([torch.rand(shape, generator=generator.manual_seed(s)) for s in seeds])


def _is_range(scale: Sequence[float]) -> bool:
    return len(scale) == 2 and 0 < scale[0] <= scale[1] <= 1

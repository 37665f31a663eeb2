"""From the maps of any backbone to one map, or to maps of three strides: what heads that find objects look at."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_MIDDLE_STRIDE = 16


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of maps [N, D, h, w]; unlike batch norm it does not care for the batch's size."""

    def forward(self, maps: Tensor) -> Tensor:
        """Normalize the maps."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNorm(nn.Sequential):
    """A convolution without bias, with a kernel of odd side; a norm; SiLU."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(before, after, kernel, padding=kernel // 2, bias=False),
            ChannelNorm(after),
            nn.SiLU(),
        )


class Projector(nn.Module):
    """Joins a backbone's maps to one of a given stride and width (the C2f block of LW-DETR, with layer norm)."""

    def __init__(
        self, widths: Sequence[int], strides: Sequence[int], width: int, stride: int, depth: int
    ) -> None:
        """Make the layers.

        Args:
            widths: Channels of each map.
            strides: Pixels of the input for one cell of each map.
            width: Channels of the result.
            stride: Pixels of the input for one cell of the result.
            depth: Number of pairs of 3 x 3 convolutions.
        """
        super().__init__()
        self.stride = stride
        self.strides = tuple(strides)
        if len(set(strides)) > 1:
            # Coarse maps are as wide as fine ones here: a backbone's last map would drown the others.
            self.reduce = nn.ModuleList(ConvNorm(w, width, 1) for w in widths)
            total = width * len(widths)
        else:
            self.reduce = nn.ModuleList(nn.Identity() for _ in widths)
            total = sum(widths)
        half = width // 2
        self.enter = ConvNorm(total, 2 * half, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(ConvNorm(half, half, 3), ConvNorm(half, half, 3)) for _ in range(depth)
        )
        self.leave = ConvNorm((2 + depth) * half, width, 1)
        self.norm = ChannelNorm(width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return one map, [N, width, H / stride, W / stride], from the maps [N, D, h, w] of a backbone."""
        height, width = (n * self.strides[-1] // self.stride for n in maps[-1].shape[-2:])
        reduced = [reduce(m) for reduce, m in zip(self.reduce, maps, strict=True)]
        joined = torch.cat([_resize(m, (height, width)) for m in reduced], 1)
        parts = list(self.enter(joined).chunk(2, 1))
        for block in self.blocks:
            parts.append(parts[-1] + block(parts[-1]))
        return self.norm(self.leave(torch.cat(parts, 1)))  # type: ignore[no-any-return]


class FeaturePyramid(nn.Module):
    """Three maps of one width, each with what the coarser ones know (FPN; Lin et al., 2017).

    Attributes:
        levels: Pixels of the input for one cell of each map, the finest first: 8, 16 and 32; for a backbone of one
            stride half of it, itself and twice.
    """

    def __init__(self, widths: Sequence[int], strides: Sequence[int], width: int) -> None:
        """Make the layers.

        Args:
            widths: Channels of each map of the backbone.
            strides: Pixels of the input for one cell of each map.
            width: Channels of the results.
        """
        super().__init__()
        self.strides = tuple(strides)
        is_plain = len(set(strides)) == 1
        middle = strides[-1] if is_plain else _MIDDLE_STRIDE
        self.levels = (middle // 2, middle, 2 * middle)
        # The maps that each level starts from: that of the nearest stride, the last of several.
        order = range(len(strides))
        self.sources = [
            min(order, key=lambda i: (abs(math.log2(strides[i] / level)), -i))
            for level in self.levels
        ]
        if is_plain:
            # The layers of a plain backbone differ in depth, not in size: early ones for the fine level.
            self.sources = [max(0, len(strides) - 3), max(0, len(strides) - 2), len(strides) - 1]
        self.enter = nn.ModuleList(ConvNorm(widths[i], width, 1) for i in self.sources)
        self.smooth = nn.ModuleList(ConvNorm(width, width, 3) for _ in self.levels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps [N, width, H / level, W / level] from the maps [N, D, h, w] of a backbone."""
        sides = [n * self.strides[-1] for n in maps[-1].shape[-2:]]
        results: list[Tensor] = []
        for index in reversed(range(len(self.levels))):
            size = (max(1, sides[0] // self.levels[index]), max(1, sides[1] // self.levels[index]))
            grid = _resize(self.enter[index](maps[self.sources[index]]), size)
            if results:
                grid = grid + F.interpolate(results[0], size=size, mode="nearest")
            results.insert(0, grid)
        return [smooth(grid) for smooth, grid in zip(self.smooth, results, strict=True)]


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    if maps.shape[-2] > size[0]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=size, mode="nearest")

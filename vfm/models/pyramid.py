"""From the maps of any backbone to one map: what dense heads look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    if maps.shape[-2] > size[0]:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=size, mode="nearest")

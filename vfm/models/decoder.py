"""The decoder of a DETR: queries that look at each other and at the image, and answer with boxes and classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models.deformable import DeformableAttention

_NUM_HEADS = 8
_NUM_POINTS = 4
_TEMPERATURE = 10_000.0
# e ** 4 times the reference: beyond any image, and far from an overflow in 16 bits.
_MAX_LOG_GROWTH = 4.0


class DecoderLayer(nn.Module):
    """Self-attention among the queries of a group, deformable attention to the image, a feed-forward network."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.queries_and_keys = nn.Linear(width, 2 * width)
        self.values = nn.Linear(width, width)
        self.mix = nn.Linear(width, width)
        self.norm_self = nn.LayerNorm(width)
        self.look = DeformableAttention(width, _NUM_HEADS, _NUM_POINTS)
        self.norm_look = nn.LayerNorm(width)
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.norm_feed = nn.LayerNorm(width)

    def forward(
        self,
        queries: Tensor,
        position: Tensor,
        boxes: Tensor,
        memory: Tensor,
        size: tuple[int, int],
        num_groups: int,
    ) -> Tensor:
        """Return the queries after this layer, [N, G * Q, D].

        Args:
            queries: Queries of G groups, which do not see each other, [N, G * Q, D].
            position: Embedded positions of the queries, [N, G * Q, D].
            boxes: Reference boxes of the queries, [N, G * Q, 4].
            memory: Features of the map, [N, h * w, D].
            size: Height and width of the map, h and w.
            num_groups: Number of groups, G.
        """
        queries = self.norm_self(queries + self._mix_queries(queries, position, num_groups))
        seen = self.look(queries + position, boxes, memory, size)
        queries = self.norm_look(queries + seen)
        fed: Tensor = self.norm_feed(queries + self.outer(F.silu(self.inner(queries))))
        return fed

    def _mix_queries(self, queries: Tensor, position: Tensor, num_groups: int) -> Tensor:
        """Attend to the other queries of the group."""
        asked, keys = self.queries_and_keys(queries + position).chunk(2, -1)
        values = self.values(queries)
        asked, keys, values = (
            split_heads(x, _NUM_HEADS, num_groups) for x in (asked, keys, values)
        )
        mixed = F.scaled_dot_product_attention(asked, keys, values)
        return self.mix(mixed.transpose(1, 2).reshape(queries.shape))  # type: ignore[no-any-return]


def split_heads(tokens: Tensor, num_heads: int, num_groups: int = 1) -> Tensor:
    """Return tokens [N, G * L, D] as [N * G, heads, L, D / heads]."""
    num_images, length, width = tokens.shape
    shape = (num_images * num_groups, length // num_groups, num_heads, width // num_heads)
    return tokens.reshape(shape).transpose(1, 2)


class MLP(nn.Sequential):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers[:-1])


def embed_boxes(boxes: Tensor, width: int) -> Tensor:
    """Return sines and cosines of boxes [..., 4], `width` for each of the four numbers: [..., 4 * width]."""
    powers = torch.arange(width // 2, device=boxes.device, dtype=torch.float32) * (2 / width)
    angles = boxes.float().unsqueeze(-1) * (2 * math.pi * _TEMPERATURE**-powers)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def move_boxes(reference: Tensor, delta: Tensor) -> Tensor:
    """Move reference boxes by what a network says of them (re-parametrisation of LW-DETR, Chen et al., 2024).

    Args:
        reference: Center, width and height, [..., 4].
        delta: Shift of the center in units of width and height, and logarithm of the growth, [..., 4].
    """
    # Coordinates are kept in 32 bits: 16 would move a box by pixels.
    reference, delta = reference.float(), delta.float()
    center = delta[..., :2] * reference[..., 2:] + reference[..., :2]
    extent = delta[..., 2:].clamp(max=_MAX_LOG_GROWTH).exp() * reference[..., 2:]
    return torch.cat([center, extent], -1)

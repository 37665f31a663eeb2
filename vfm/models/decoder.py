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
        """Make the layers.

        Args:
            width: Of queries and memory; a multiple of 8.
            hidden: Of the feed-forward network.
        """
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
        """The queries after this layer, [N, G * Q, D].

        Args:
            queries: [N, G * Q, D].
            position: [N, G * Q, D], of the queries.
            boxes: [N, G * Q, 4], the queries' reference boxes.
            memory: [N, h * w, D].
            size: h and w.
            num_groups: G; groups do not see each other.
        """
        queries = self.norm_self(queries + self._among(queries, position, num_groups))
        seen = self.look(queries + position, boxes, memory, size)
        queries = self.norm_look(queries + seen)
        fed: Tensor = self.norm_feed(queries + self.outer(F.silu(self.inner(queries))))
        return fed

    def _among(self, queries: Tensor, position: Tensor, num_groups: int) -> Tensor:
        shape = queries.shape
        asked, keys = self.queries_and_keys(queries + position).chunk(2, -1)
        mixed = F.scaled_dot_product_attention(
            self._split(asked, num_groups),
            self._split(keys, num_groups),
            self._split(self.values(queries), num_groups),
        )
        return self.mix(mixed.transpose(1, 2).reshape(shape))  # type: ignore[no-any-return]

    def _split(self, tokens: Tensor, num_groups: int) -> Tensor:
        """[N, G * Q, D] to [N * G, heads, Q, D / heads]."""
        num_images, length, width = tokens.shape
        shape = (num_images * num_groups, length // num_groups, _NUM_HEADS, width // _NUM_HEADS)
        return tokens.reshape(shape).transpose(1, 2)


class MLP(nn.Sequential):
    """Linear layers with ReLU between them."""

    def __init__(self, widths: Sequence[int]) -> None:
        """Make the layers.

        Args:
            widths: Of the input, of what lies between, of the output.
        """
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        super().__init__(*layers[:-1])


def embed_boxes(boxes: Tensor, width: int) -> Tensor:
    """Sines and cosines of the four numbers of each box, [..., 4 * width].

    Args:
        boxes: [..., 4], shares of the image.
        width: Numbers for each of the four; even.
    """
    powers = torch.arange(width // 2, device=boxes.device, dtype=torch.float32) * (2 / width)
    angles = boxes.float().unsqueeze(-1) * (2 * math.pi * _TEMPERATURE**-powers)
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def move_boxes(reference: Tensor, delta: Tensor) -> Tensor:
    """Boxes from references and what a network says of them (re-parametrisation of LW-DETR, Chen et al., 2024).

    Args:
        reference: [..., 4], centre, width, height.
        delta: [..., 4], shift of the centre in units of width and height, logarithm of the growth.
    """
    # Coordinates are kept in 32 bits: 16 would move a box by pixels.
    reference, delta = reference.float(), delta.float()
    centre = delta[..., :2] * reference[..., 2:] + reference[..., :2]
    extent = delta[..., 2:].clamp(max=_MAX_LOG_GROWTH).exp() * reference[..., 2:]
    return torch.cat([centre, extent], -1)

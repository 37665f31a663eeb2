"""Deformable attention on one feature map (Zhu et al., 2021), in operations that every ONNX runtime has."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DeformableAttention(nn.Module):
    """Each query looks at a few points of a map, around its own box.

    N images, Q queries, D wide, M heads, of which D is a multiple, P points a head, a map of h x w.
    """

    def __init__(self, width: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_points = num_points
        self.offsets = nn.Linear(width, num_heads * num_points * 2)
        self.weights = nn.Linear(width, num_heads * num_points)
        self.values = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self._reset_weights()

    def forward(
        self, queries: Tensor, boxes: Tensor, memory: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Return what the queries see, [N, Q, D].

        Args:
            queries: Queries, [N, Q, D].
            boxes: Center, width and height of their boxes as fractions of the map, [N, Q, 4].
            memory: Features of the map row by row, [N, h * w, D].
            size: Height and width of the map, h and w.
        """
        num_images, num_queries, width = queries.shape
        each = (num_images, num_queries, self.num_heads, self.num_points)
        offsets = self.offsets(queries).view(*each, 2)
        weights = self.weights(queries).view(each).softmax(-1)
        center, extent = boxes[:, :, None, None, :2], boxes[:, :, None, None, 2:]
        points = center + offsets * extent * (0.5 / self.num_points)
        values = self.values(memory).unflatten(2, (self.num_heads, -1))
        # Exported, the points are gathered: TensorRT has given wrong values around GridSample without a word.
        look = gather_points if torch.compiler.is_exporting() else sample_points
        seen = look(values, points, weights, size)
        return self.out(seen.reshape(num_images, num_queries, width))  # type: ignore[no-any-return]

    def _reset_weights(self) -> None:
        """Let each head start by looking in a direction of its own, one step further with each point."""
        nn.init.zeros_(self.offsets.weight)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.num_points + 1).view(1, -1, 1)
        with torch.no_grad():
            self.offsets.bias.copy_((directions[:, None] * steps).flatten())
        for layer in (self.weights, self.values, self.out):
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.weights.weight)
        nn.init.xavier_uniform_(self.values.weight)
        nn.init.xavier_uniform_(self.out.weight)


def sample_points(values: Tensor, points: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Return weighted sums of bilinear samples, [N, Q, M, D], by torch's grid_sample; 0 outside of the map.

    Args:
        values: Values of each head, [N, h * w, M, D].
        points: Points to sample, x and y as fractions of the map, [N, Q, M, P, 2].
        weights: Weights of the points, [N, Q, M, P].
        size: Height and width of the map, h and w.
    """
    num_images, _, num_heads, width = values.shape
    maps = values.permute(0, 2, 3, 1).reshape(num_images * num_heads, width, *size)
    grid = (2 * points - 1).transpose(1, 2).flatten(0, 1)
    # In the precision of the coordinates: 16 bits would move a point by a place of the map.
    seen = F.grid_sample(
        maps.to(grid.dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False
    )
    mixed = (seen * weights.transpose(1, 2).flatten(0, 1)[:, None]).sum(-1)
    return mixed.view(num_images, num_heads, width, -1).permute(0, 3, 1, 2)


def gather_points(values: Tensor, points: Tensor, weights: Tensor, size: tuple[int, int]) -> Tensor:
    """Return what `sample_points` computes, from the four neighbors of each point."""
    height, width = size
    num_images, num_cells, num_heads, depth = values.shape
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    index, share = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = left + dx, top + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            near = (1 - (x - column).abs()) * (1 - (y - row).abs())
            share.append(weights * near * inside)
            index.append(row.clamp(0, height - 1) * width + column.clamp(0, width - 1))
    # A row of `table` is one head's values in one cell of the map, so that a gather copies whole rows.
    table = values.transpose(1, 2).reshape(-1, depth)
    first = torch.arange(num_images * num_heads, device=values.device) * num_cells
    rows_of_points = torch.cat(index, -1).long() + first.view(num_images, 1, num_heads, 1)
    rows = F.embedding(rows_of_points, table)
    return (torch.cat(share, -1).unsqueeze(-2) @ rows).squeeze(-2)

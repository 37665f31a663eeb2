"""How an image lies to the training images: what the exported graph computes of it, and what it is fitted with."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from vfm_runtime.errors import DataError

from vfm.types import Features


class ReferenceOutputs(nn.Module):
    """Coordinates of an image among the training images, and how far it lies from them.

    Of the vector p of an image (`vector_of`), with N images, D numbers and k directions:

        components = (p - mean) @ axes.T                                      [N, k]
        rest       = (p - mean) - (components / |axes|^2) @ axes              [N, D]
        distances  = sqrt((mean(components^2) + sum(rest^2) / residual) / 2)  [N]

    The axes are principal directions of the training vectors, each divided by the standard deviation along it, so that
    a component of 1 is one standard deviation; `rest` is what lies outside of them, and `residual` the mean of
    `sum(rest^2)` over the training images. Both halves of the distance are then 1 on average in training whatever k
    is: a Mahalanobis distance along the axes, beside the part of an image that no training image has (Wang et al.,
    2022).
    """

    mean: Tensor
    onto: Tensor
    back: Tensor

    def __init__(
        self, mean: NDArray[np.float32], axes: NDArray[np.float32], residual: float
    ) -> None:
        """Keep the numbers as float32, unless they cannot be meant.

        Args:
            mean: Of the training vectors, [D].
            axes: Orthogonal directions over the standard deviation along each, [k, D], k from 1 to D.
            residual: Mean of the squared length of what lies outside of the axes, above 0.

        Raises:
            ValueError: The shapes do not fit, or a number is not finite, an axis 0 or the residual not above 0.
        """
        super().__init__()
        mean, axes = np.asarray(mean, np.float32), np.asarray(axes, np.float32)
        _check(mean, axes, residual)
        squares = np.square(axes.astype(np.float64)).sum(1, keepdims=True)
        # Over the residual's root, so that nothing large is squared: 16 bits end at 65504.
        scale = float(residual) ** 0.5
        self.scale = 1 / scale
        self.register_buffer("mean", torch.from_numpy(mean.copy()), persistent=False)
        self.register_buffer("onto", torch.from_numpy(axes.T.copy()), persistent=False)
        back = (axes / squares).astype(np.float32)
        self.register_buffer("back", torch.from_numpy(back), persistent=False)

    def forward(self, vector: Tensor) -> dict[str, Tensor]:
        """`components`, float32 [N, k], and `distances`, float32 [N].

        Args:
            vector: [N, D], of `vector_of`.
        """
        centred = vector.float() - self.mean
        components = centred @ self.onto
        rest = (centred - components @ self.back) * self.scale
        squared = components.square().mean(-1) + rest.square().sum(-1)
        return {"components": components, "distances": (squared / 2).sqrt()}


def vector_of(features: Features, reads: Collection[str]) -> Tensor:
    """The one vector of each image that it is compared by, [N, D].

    Args:
        features: Of the backbone.
        reads: What the head reads of them: where the pooled vector is not among it, the backbone need not give one,
            and the mean of the tokens stands in.
    """
    return features.pooled if "pooled" in reads else features.tokens.mean(1)


def _check(mean: NDArray[np.float32], axes: NDArray[np.float32], residual: float) -> None:
    if mean.ndim != 1 or axes.ndim != 2 or not 1 <= len(axes) <= axes.shape[1] == len(mean):
        raise DataError(
            f"The reference's mean has shape {list(mean.shape)}, its axes {list(axes.shape)}. Give a mean [D] and "
            "axes [k, D], with k from 1 to D."
        )
    if not (np.isfinite(mean).all() and np.isfinite(axes).all() and np.isfinite(residual)):
        raise DataError(
            "The reference holds numbers that are not finite. Fit it on finite features."
        )
    if residual <= 0 or not np.square(axes).sum(1).all():
        raise DataError(
            f"The reference's residual is {residual}, its shortest axis {np.linalg.norm(axes, axis=1).min()} long. "
            "Both must be above 0: fit it on more images, with fewer axes."
        )

"""The target of a deepfake detector: real or fake, and the mask of what was forged."""

from __future__ import annotations

from typing import NamedTuple, Self

from torch import Tensor


class DeepfakeTarget(NamedTuple):
    """What N images of H x W pixels are to teach."""

    label: Tensor
    """int64 [N], 1 for fake, -1 where it is not known."""
    mask: Tensor
    """float32 [N, H, W], 0 to 1, how much of each pixel is forged; -1 everywhere where that is not known."""

    @property
    def loss_divisor(self) -> int:
        """Number of images."""
        return len(self.label)

    def select(self, position: int) -> Self:
        """Label and mask of one image."""
        part = slice(position, position + 1)
        return self._replace(label=self.label[part], mask=self.mask[part])

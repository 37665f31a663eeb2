"""The contract of all losses: sums by name over a batch, from a head's raw outputs and the batch's target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from vfm_runtime.errors import OptionError

from vfm.spec import Component
from vfm.types import Batch, Raw, select_image


class Loss(Component, nn.Module, ABC):
    """A loss that a task lowers. A loss of one's own is a class that derives from this one, in any file."""

    @abstractmethod
    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Weighted sums over a batch by name; training lowers their total over the target's `loss_divisor`.

        Args:
            raw: Outputs of the head.
            batch: The images that they are of; `vfm.types.require_target` gives its target in the type that the loss
                reads. In training, images and target may have been mixed.
        """

    def per_image(self, raw: Raw, batch: Batch) -> Tensor:
        """Loss of each image as if it were a batch alone, [N].

        Args:
            raw: Outputs of the head in evaluation, in each of which the first axis is that of the images.
            batch: N images, at least one.
        """
        alone = (
            self({name: values[i : i + 1] for name, values in raw.items()}, select_image(batch, i))
            for i in range(len(batch["image"]))
        )
        return torch.stack([sum_losses(losses) for losses in alone])


def check_weights(**weights: float) -> None:
    """Refuse a weight of a loss outside 0 to 100.

    Raises:
        OptionError: With its name.
    """
    for name, value in weights.items():
        if not 0 <= value <= 100:
            raise OptionError(
                f"{name} is {value}. Give a number from 0 to 100 (--model.loss.{name})."
            )


def sum_losses(losses: Mapping[str, Tensor]) -> Tensor:
    """Return the total of the sums that a loss gives."""
    return torch.stack(list(losses.values())).sum()

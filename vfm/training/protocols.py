"""Protocols: the members of a task that training's helpers use, so that they need to know no task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from vfm.models.backbone import Backbone
from vfm.models.heads import Head
from vfm.preprocess import Preprocess
from vfm.training.optim import Optim
from vfm.types import Batch, Raw


class FeatureModel(Protocol):
    """A head on the features of a backbone, in a Trainer."""

    backbone: Backbone
    head: Head
    preprocess: Preprocess

    @property
    def trainer(self) -> Trainer:
        """Trainer that the model is in."""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""


class LossModel(FeatureModel, Protocol):
    """A FeatureModel whose raw outputs have a loss."""

    training: bool
    optim: Optim

    def raw(self, batch: Batch) -> Raw:
        """Raw outputs of the head for a batch, whose features may be there already."""

    def loss(self, raw: Raw, batch: Batch) -> Tensor:
        """Sum of the losses of a batch."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters by name."""

    def train(self, mode: bool = True) -> Any:
        """Go to training mode."""

    def eval(self) -> Any:
        """Go to evaluation mode."""

"""The contract of all heads."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from vfm.renames import list_old_keys
from vfm.spec import Component
from vfm.types import FeatureInfo, Features, Raw


class LinearReading(NamedTuple):
    """How a head reads one vector of each image linearly: logits = unit(pooled - center) @ weight.T + bias."""

    weight: Tensor
    """[C, D]."""
    center: Tensor | None
    """[D]; None where the vector is not centered."""
    normalizes: bool
    """Whether the vector is brought to norm 1 before the weight."""


class Head(Component, nn.Module, ABC):
    """Answers from features.

    The constructor takes plain arguments only. The layers are made in `build`, when the width of the backbone and
    the number of labels are known: at the start of training from the data, or from the checkpoint.

    Attributes:
        labels: Label names in the order of the outputs; empty until `prepare`.
    """

    labels: tuple[str, ...] = ()
    uses: tuple[str, ...] = ("pooled", "tokens", "maps")
    """Fields of the features that `forward` reads. A head that uses no maps can be trained on stored features."""
    gives_logits: bool = False
    """Whether `forward` gives `logits` that `decode` makes scores of, so that a temperature can divide them."""
    needs_geometry: bool = False
    """Whether answers lie in the image, so that `decode` needs to know where the pixels came from."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for old, new in list_old_keys(cls).items():
            if old in cls.__dict__ and new not in cls.__dict__:
                text = f"{cls.__name__}.{old} is now {new}."
                warnings.warn(text, DeprecationWarning, stacklevel=2)
                setattr(cls, new, cls.__dict__[old])

    def prepare(self, info: FeatureInfo, labels: Sequence[str]) -> None:
        """Make the layers for these label names. Called once, by the task."""
        self.labels = tuple(labels)
        self.build(info, len(self.labels))

    @abstractmethod
    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make the layers for features of these sizes, and this number of labels."""

    def get_linear(self) -> LinearReading | None:
        """Return how the logits are read from the pooled vector alone; None of a head that does more."""
        return None

    @abstractmethod
    def forward(self, features: Features) -> Raw:
        """Return raw outputs by name, as a loss wants them."""

    @abstractmethod
    def decode(self, raw: Raw, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Return predictions by name from raw outputs; exported with the model, so made of tensor operations only.

        Args:
            raw: Named tensors that `forward` gave.
            geometry: Where each image lies in its original, float [N, 6]; for heads that need it.
        """

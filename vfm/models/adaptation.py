"""Adaptation: which weights of a pretrained model learn, and how what it adds merges away for export."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor, nn
from vfm_runtime.errors import VfmError

from vfm.spec import Component


class AdaptError(VfmError, ValueError):
    """A backbone cannot be adapted as asked."""


class Adaptation(Component, ABC):
    """Chooses the weights of a backbone's model that learn, and may add some.

    Subclass it and name the class: `--model.adapt mypkg.MyAdaptation`; the arguments of its constructor are its
    options, `--model.adapt.NAME`. One that adds layers also defines `merge`.
    """

    name: ClassVar[str] = ""
    """Short name on the command line; empty for one that is named by its class."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW that does well on most data; the fewer weights learn, the higher."""
    step_cost: float = 3.2
    """Time of a training step, in forward passes of the plain model: a backward pass costs two, less where weights are
    frozen."""
    group: str = "adapt"
    """Options group of the command line that its arguments were given in."""

    @abstractmethod
    def apply(self, model: nn.Module) -> None:
        """Freeze what does not learn in a pretrained model of timm, and add what learns beside it, in place.

        Raises:
            AdaptError: The model has no layers for it, or an option does not fit it.
        """

    def merge(self, model: nn.Module) -> None:
        """Replace the layers that `apply` added to a model, or to one inside it, by plain ones that compute the same.

        By default there are none.
        """

    def merge_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Do as `merge` for the tensors of a checkpoint by name, those of its head among them.

        Raises:
            AdaptError: It adds layers but does not say how their tensors merge.
        """
        if self.adds_layers:
            raise AdaptError(
                f"{self} adds layers, but does not say how a file with them becomes one without: it has no "
                "merge_tensors. Load the checkpoint as a task, call task.adaptation.merge(task.backbone.model), and "
                "save the state dict of task.backbone.model."
            )
        return dict(tensors)

    @property
    def adds_layers(self) -> bool:
        """Whether there is anything to merge."""
        return type(self).merge is not Adaptation.merge

    def format_option(self, name: str) -> str:
        """Return an option as it is typed, such as `--model.adapt.r`."""
        return f"--model.{self.group}.{name}"

    def __str__(self) -> str:
        return self.name or type(self).__name__


_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (lambda r: r >= 1, "1 or more"),
    "alpha": (lambda alpha: alpha > 0, "above 0"),
    "dropout": (lambda dropout: 0 <= dropout < 1, "from 0 to below 1"),
    "targets": (lambda targets: len(targets) > 0, "one name or more, or null"),
    "blocks": (lambda blocks: blocks >= 1, "1 or more"),
}


def check_options(group: str, options: Mapping[str, Any]) -> None:
    """Refuse options outside their range; None is the default of each.

    Raises:
        AdaptError: One is; the group of the command line, such as `adapt`, is named.
    """
    for name, value in options.items():
        is_good, expected = _RANGES[name]
        if value is not None and not is_good(value):
            raise AdaptError(
                f"{group}.{name} is {value}; it must be {expected}. Change --model.{group}.{name}."
            )

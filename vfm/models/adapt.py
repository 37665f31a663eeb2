"""Adaptations without layers of their own, and the short names of all: full, linear, ln, lora, effort and partial."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from timm.layers.norm import RmsNorm, RmsNorm2d
from timm.models._manipulate import group_with_matcher
from torch import nn

from vfm.models.adaptation import Adaptation, AdaptError, check_options
from vfm.models.adapters import Effort, LoRA
from vfm.spec import build

Adapt = Literal["full", "linear", "ln", "lora", "effort", "partial"]

_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.RMSNorm,
    RmsNorm,
    RmsNorm2d,
)


class FullFineTuning(Adaptation):
    """All weights learn."""

    name = "full"
    learning_rate = 1e-4

    def apply(self, model: nn.Module) -> None:
        """Leave all weights as they are: they learn."""


class LinearProbe(Adaptation):
    """No weight of the backbone learns, only the head, on features that stay as they were trained."""

    name = "linear"
    step_cost = 1.0

    def apply(self, model: nn.Module) -> None:
        """Freeze all weights."""
        model.requires_grad_(False)


class NormTuning(Adaptation):
    """The norm layers learn."""

    name = "ln"
    step_cost = 2.5

    def apply(self, model: nn.Module) -> None:
        """Freeze all weights but those of the norm layers."""
        model.requires_grad_(False)
        norms = [module for module in model.modules() if isinstance(module, _NORMS)]
        for module in norms:
            module.requires_grad_(True)
        if not norms:
            raise AdaptError(
                f"--model.adapt ln finds no norm layers in {type(model).__name__}. Take lora, partial or full."
            )


class PartialFineTuning(Adaptation):
    """The last blocks learn, as timm groups them for layer-wise learning rates, and the norm after them."""

    name = "partial"
    learning_rate = 1e-4

    def __init__(self, blocks: int = 2) -> None:
        """Set the options.

        Args:
            blocks: Number of the last blocks that learn.
        """
        check_options("adapt", {"blocks": blocks})
        self.blocks = blocks

    def apply(self, model: nn.Module) -> None:
        """Freeze all weights before the last blocks."""
        groups = group_with_matcher(model.named_parameters(), model.group_matcher(), reverse=True)  # type: ignore[operator]
        parameters = dict(model.named_parameters())
        # The final norm is a group of vectors alone; it learns with the blocks before it.
        blocks = sorted({groups[name] for name, p in parameters.items() if p.ndim > 1})
        if self.blocks > len(blocks):
            raise AdaptError(
                f"{self.format_option('blocks')} is {self.blocks}, but {type(model).__name__} has {len(blocks)}. "
                f"Give 1 to {len(blocks)}, or --model.adapt full."
            )
        for name, parameter in parameters.items():
            parameter.requires_grad_(groups[name] >= blocks[-self.blocks])


ADAPTATIONS: dict[str, type[Adaptation]] = {
    kind.name: kind
    for kind in (FullFineTuning, LinearProbe, NormTuning, LoRA, Effort, PartialFineTuning)
}
"""Adaptations of vfm by their short names."""


@dataclass(frozen=True)
class AdaptOptions:
    """What the short names `lora`, `effort` and `partial` may be told; null is the default of each."""

    r: int | None = None
    """Rank of LoRA's updates, 8 by default; for Effort the number of singular directions, 1 by default."""
    alpha: float | None = None
    """LoRA's updates weigh alpha / r; twice r by default."""
    dropout: float | None = None
    """Share of the inputs of LoRA's updates set to zero in training; 0 by default."""
    targets: list[str] | None = None
    """Last parts of the names of the layers that LoRA or Effort adapt, such as qkv. By default LoRA takes all linear
    layers and 1 x 1 convolutions, Effort the matrices of the attention."""
    blocks: int | None = None
    """How many of the last blocks `partial` trains, 2 by default."""

    def __post_init__(self) -> None:
        check_options("adapt_options", asdict(self))

    def to_arguments(self) -> dict[str, Any]:
        """Return the options that are not null, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def list_unused(self, how: Adaptation | str) -> list[str]:
        """List the options that are not null but that an adaptation does not take."""
        taken = _list_options(how) if isinstance(how, str) else set()
        return sorted(self.to_arguments().keys() - taken)


def resolve_adaptation(how: Adaptation | str, options: AdaptOptions = AdaptOptions()) -> Adaptation:
    """Return the adaptation that a short name and its options stand for; any other as it is.

    Raises:
        AdaptError: There is no such name.
    """
    if isinstance(how, Adaptation):
        return how
    if how not in ADAPTATIONS:
        raise AdaptError(
            f"There is no adaptation '{how}'. Choices: {', '.join(ADAPTATIONS)}, or an Adaptation of your own."
        )
    values = {k: v for k, v in options.to_arguments().items() if k in _list_options(how)}
    adaptation = ADAPTATIONS[how](**values)
    adaptation.group = "adapt_options"
    return adaptation


def read_adaptation(arguments: Mapping[str, Any]) -> Adaptation:
    """Return the adaptation of a checkpoint from the arguments of its task.

    Raises:
        SpecError: It is not one of vfm.
    """
    how = arguments.get("adapt", "full")
    if isinstance(how, Mapping):
        adaptation: Adaptation = build(how, base=Adaptation)
        return adaptation
    return resolve_adaptation(how, AdaptOptions(**(arguments.get("adapt_options") or {})))


def _list_options(name: str) -> set[str]:
    return set(inspect.signature(ADAPTATIONS[name]).parameters)

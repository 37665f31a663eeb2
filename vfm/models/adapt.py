"""Converters: which weights of a built backbone learn. They act from outside; no model knows of them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, get_args

from timm.layers.norm import RmsNorm, RmsNorm2d
from timm.models._manipulate import group_with_matcher
from torch import nn

from vfm.models.adapters import AdaptError, add_effort, add_lora
from vfm.models.backbone import Backbone

Adapt = Literal["full", "linear", "ln", "lora", "effort", "partial"]

LEARNING_RATES: dict[Adapt, float] = {
    "full": 1e-4,
    "linear": 1e-3,
    "ln": 1e-3,
    "lora": 5e-4,
    "effort": 1e-3,
    "partial": 1e-4,
}
"""Peak learning rates of AdamW that do well on most data; the fewer weights learn, the higher."""

_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.batchnorm._BatchNorm,
    nn.RMSNorm,
    RmsNorm,
    RmsNorm2d,
)
_TAKES: dict[Adapt, set[str]] = {
    "lora": {"r", "alpha", "dropout", "targets"},
    "effort": {"r", "targets"},
    "partial": {"blocks"},
}


@dataclass(frozen=True)
class AdaptOptions:
    """What `lora`, `effort` and `partial` may be told; null is the default of each."""

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
        ranges = {
            "r": (self.r is None or self.r >= 1, "1 or more"),
            "alpha": (self.alpha is None or self.alpha > 0, "above 0"),
            "dropout": (self.dropout is None or 0 <= self.dropout < 1, "from 0 to below 1"),
            "targets": (self.targets is None or len(self.targets) > 0, "one name or more, or null"),
            "blocks": (self.blocks is None or self.blocks >= 1, "1 or more"),
        }
        for name, (good, expected) in ranges.items():
            if not good:
                raise AdaptError(
                    f"adapt_options.{name} is {getattr(self, name)}; it must be {expected}. "
                    f"Change --model.adapt_options.{name}."
                )

    def without_effect(self, how: Adapt) -> list[str]:
        """Names of the options that are given but that an adaptation does not take."""
        given = {f.name for f in fields(self) if getattr(self, f.name) is not None}
        return sorted(given - _TAKES.get(how, set()))


def adapt(backbone: Backbone, how: Adapt, options: AdaptOptions = AdaptOptions()) -> None:
    """Choose the weights that learn.

    Args:
        backbone: Changed in place.
        how: `full`: all. `linear`: none, so that only the head learns, on features that stay as they were trained.
            `ln`: the norm layers. `lora`: low-rank updates beside all linear layers (Hu et al., 2021). `effort`: the
            smallest singular directions of the attention (Yan et al., 2025). `partial`: the last blocks, as timm
            groups them for layer-wise learning rates, and the norm after them.
        options: Of lora, effort and partial.

    Raises:
        AdaptError: The backbone has no layers for it, or an option does not fit it.
    """
    if how not in get_args(Adapt):
        raise AdaptError(f"There is no adaptation '{how}'. Choices: {', '.join(get_args(Adapt))}.")
    model = backbone.model
    if how == "full":
        return
    backbone.requires_grad_(False)
    if how == "ln":
        _train_norms(model)
    elif how == "partial":
        _train_last_blocks(model, options.blocks or 2)
    elif how == "lora":
        r = options.r or 8
        alpha, dropout = options.alpha or 2.0 * r, options.dropout or 0.0
        add_lora(model, r=r, alpha=alpha, dropout=dropout, targets=options.targets)
    elif how == "effort":
        add_effort(model, r=options.r or 1, targets=options.targets)
    backbone.train(backbone.training)  # what stays as it is now goes to evaluation mode


def _train_norms(model: nn.Module) -> None:
    norms = [module for module in model.modules() if isinstance(module, _NORMS)]
    for module in norms:
        module.requires_grad_(True)
    if not norms:
        raise AdaptError(
            f"--model.adapt ln finds no norm layers in {type(model).__name__}. Take lora, partial or full."
        )


def _train_last_blocks(model: nn.Module, num_blocks: int) -> None:
    groups = group_with_matcher(model.named_parameters(), model.group_matcher(), reverse=True)  # type: ignore[operator]
    parameters = dict(model.named_parameters())
    # The final norm is a group of vectors alone; it learns with the blocks before it.
    blocks = sorted({groups[name] for name, p in parameters.items() if p.ndim > 1})
    if num_blocks > len(blocks):
        raise AdaptError(
            f"--model.adapt_options.blocks is {num_blocks}, but {type(model).__name__} has {len(blocks)}. "
            f"Give 1 to {len(blocks)}, or --model.adapt full."
        )
    first = blocks[-num_blocks]
    for name, parameter in parameters.items():
        parameter.requires_grad_(groups[name] >= first)

"""Adapters: small trainable parts on a frozen model, which merge into plain weights. LoRA (by peft) and Effort."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vfm.models.adaptation import Adaptation, AdaptError, check_options

ADAPTER = "default"
"""Name that peft gives the only adapter of a model."""

_ATTENTION = r".*attn.*\.(qkv|q_proj|k_proj|v_proj|q|k|v|kv|proj|out_proj)"
_EFFORT = ("u", "s", "v", "u0", "s0", "v0")
"""Suffixes of the tensors of a split matrix: its directions as they learn, and as they were."""
_LORA_A = f".lora_A.{ADAPTER}.weight"


class LoRA(Adaptation):
    """Low-rank updates beside linear layers and 1 x 1 convolutions (Hu et al., 2021); only they learn."""

    name = "lora"
    learning_rate = 5e-4
    step_cost = 3.0

    def __init__(
        self,
        r: int = 8,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: list[str] | None = None,
    ) -> None:
        """Set the options.

        Args:
            r: Rank of the updates.
            alpha: The updates weigh alpha / r; twice r by default.
            dropout: Share of the updates' inputs set to zero in training.
            targets: Last parts of the names of the layers to adapt, such as qkv; all layers by default.
        """
        check_options("adapt", {"r": r, "alpha": alpha, "dropout": dropout, "targets": targets})
        self.r = r
        self.alpha = alpha
        self.dropout = dropout
        self.targets = targets

    def apply(self, model: nn.Module) -> None:
        """Put the updates beside the layers."""
        try:
            from peft import LoraConfig, inject_adapter_in_model
        except ImportError as error:
            raise AdaptError(
                f"LoRA needs peft: {error}. Install it with pip install 'vfm[lora]', "
                "or take another adaptation: --model.adapt ln, effort or partial."
            ) from error
        names = _match_layers(self, model, (nn.Linear, nn.Conv2d), self.targets)
        _use_layers(model)
        model.requires_grad_(False)
        config = LoraConfig(
            r=self.r,
            lora_alpha=2.0 * self.r if self.alpha is None else self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            target_modules=names,
        )
        inject_adapter_in_model(config, model, adapter_name=ADAPTER)

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """Add the updates to the weights that they stand beside."""
        for name in [name for name, module in model.named_modules() if hasattr(module, "lora_A")]:
            layer: Any = model.get_submodule(name)
            layer.merge(safe_merge=True)
            model.set_submodule(name, layer.get_base_layer())

    def merge_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Add the updates to the weights that they stand beside."""
        merged = {
            k.replace(".base_layer.", "."): v for k, v in tensors.items() if ".lora_" not in k
        }
        for name in (k.removesuffix(_LORA_A) for k in tensors if k.endswith(_LORA_A)):
            a, b = tensors[name + _LORA_A], tensors[f"{name}.lora_B.{ADAPTER}.weight"]
            weight = merged[f"{name}.weight"]
            scale = (2 * len(a) if self.alpha is None else self.alpha) / len(a)
            delta = b.float().flatten(1) @ a.float().flatten(1)
            merged[f"{name}.weight"] = weight + scale * delta.view_as(weight).to(weight.dtype)
        return merged


class Effort(Adaptation):
    """Only the smallest singular directions of the attention's matrices learn (Yan et al., 2025)."""

    name = "effort"
    step_cost = 3.0

    def __init__(self, r: int = 1, targets: list[str] | None = None) -> None:
        """Set the options.

        Args:
            r: Number of directions of each matrix.
            targets: Last parts of the names of the layers to adapt; all matrices of the attention by default.
        """
        check_options("adapt", {"r": r, "targets": targets})
        self.r = r
        self.targets = targets

    def apply(self, model: nn.Module) -> None:
        """Split the weights of the layers."""
        names = _match_layers(self, model, nn.Linear, self.targets, _ATTENTION)
        _use_layers(model)
        model.requires_grad_(False)
        for name in names:
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            model.set_submodule(name, EffortLinear(layer, self.r, option=self.format_option("r")))

    @torch.no_grad()
    def merge(self, model: nn.Module) -> None:
        """Put plain layers in the place of the split ones."""
        layers = [(n, m) for n, m in model.named_modules() if isinstance(m, EffortLinear)]
        for name, layer in layers:
            plain = nn.Linear(layer.in_features, layer.out_features, False, device="meta")
            change = _multiply(*_list_changes(layer.get_parts()))
            plain.weight = nn.Parameter(layer.weight.detach() + change.detach())
            plain.bias = layer.bias
            model.set_submodule(name, plain)

    def merge_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Put plain weights in the place of the split ones."""
        merged = dict(tensors)
        for name in (k.removesuffix(".effort_u") for k in tensors if k.endswith(".effort_u")):
            parts = {part: merged.pop(f"{name}.effort_{part}") for part in _EFFORT}
            merged[f"{name}.weight"] = merged[f"{name}.weight"] + _multiply(*_list_changes(parts))
        return merged


class EffortLinear(nn.Linear):
    """A linear layer of which only the smallest singular directions learn.

    The weight of a fused query-key-value layer is several square matrices, each with directions of its own.
    """

    def __init__(self, layer: nn.Linear, r: int, option: str = "--model.adapt.r") -> None:
        """Split the layer's weight, which is taken over, not copied; `option` sets `r`, for the error."""
        wide, high = layer.in_features, layer.out_features
        super().__init__(wide, high, bias=layer.bias is not None, device="meta")
        num_blocks = high // wide if high % wide == 0 else 1
        if not 1 <= r <= min(wide, high // num_blocks):
            raise AdaptError(
                f"Effort with r {r} does not fit a matrix of {high // num_blocks} x {wide}. "
                f"Give 1 to {min(wide, high // num_blocks)} ({option}); 1 is usual."
            )
        blocks = layer.weight.detach().float().view(num_blocks, -1, wide)
        u, s, v = torch.linalg.svd(blocks, full_matrices=False)
        self.weight, self.bias = layer.weight, layer.bias
        start = {"u": u[:, :, -r:], "s": s[:, -r:], "v": v[:, -r:]}
        for name, part in start.items():
            self.register_parameter(f"effort_{name}", nn.Parameter(part.clone()))
            # Kept, as another machine would not find the same: the smallest singular values lie close together.
            self.register_buffer(f"effort_{name}0", part.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output; the change is applied in its factors, which is cheaper than their product."""
        u, s, v = _list_changes(self.get_parts())
        inner = torch.einsum("...i,bri->...br", x, v) * s
        change = torch.einsum("...br,bor->...bo", inner, u).flatten(-2)
        return F.linear(x, self.weight, self.bias) + change

    def get_parts(self) -> dict[str, Tensor]:
        """Return the tensors of the directions by their suffix."""
        return {name: getattr(self, f"effort_{name}") for name in _EFFORT}


def _list_changes(parts: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the directions as learned, less what they were: factors of what has been added to the weight."""
    u = torch.cat([parts["u"], parts["u0"]], dim=2)
    s = torch.cat([parts["s"], -parts["s0"]], dim=1)
    return u, s, torch.cat([parts["v"], parts["v0"]], dim=1)


def _multiply(u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    return ((u * s[:, None]) @ v).flatten(0, 1)


def _match_layers(
    adaptation: Adaptation,
    model: nn.Module,
    kinds: type[nn.Module] | tuple[type[nn.Module], ...],
    targets: Sequence[str] | None,
    pattern: str = ".*",
) -> list[str]:
    """List the layers to adapt by name: those that end in a target, or whose name matches the pattern.

    Raises:
        AdaptError: There are none.
    """
    candidates = [
        name
        for name, module in model.named_modules()
        if isinstance(module, kinds)
        # Of convolutions only pointwise ones are matrices.
        and getattr(module, "kernel_size", (1, 1)) == (1, 1)
        and getattr(module, "groups", 1) == 1
    ]
    if targets is None:
        chosen = [name for name in candidates if re.fullmatch(pattern, name)]
    else:
        chosen = [n for n in candidates if any(n == t or n.endswith("." + t) for t in targets)]
    if not chosen:
        endings = sorted({name.rpartition(".")[2] for name in candidates})
        wanted = "its own choice" if targets is None else f"targets {list(targets)}"
        raise AdaptError(
            f"--model.adapt {adaptation} finds no layer in {type(model).__name__} for {wanted}. "
            f"Names of its layers end in: {', '.join(endings) or 'nothing that fits'} "
            f"({adaptation.format_option('targets')})."
        )
    return chosen


def _use_layers(model: nn.Module) -> None:
    """Have attention call its layer where it would read the weight past it, as Eva, BEiT and Swin-V2 do."""
    for module in model.modules():
        if hasattr(module, "qkv_bias_separate"):
            setattr(module, "qkv_bias_separate", True)  # noqa: B010 - its type is not known

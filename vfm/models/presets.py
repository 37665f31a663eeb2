"""Presets: backbones to begin with, what each is good for, its size and its cost; the table is `presets.json`.

`python -m vfm.models.presets` measures sizes and costs anew, after the table or timm has changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import timm
import torch
from timm.data import resolve_model_data_config
from timm.layers import config as timm_config, set_fused_attn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

Use = Literal["classification", "detection", "deepfake", "retrieval", "zero-shot"]

_FILE = Path(__file__).with_name("presets.json")


class Size(NamedTuple):
    """What a model weighs and costs."""

    parameters: int
    """Parameters without those of a classifier."""
    gflops: float
    """1e9 additions and multiplications for one image at the model's own input size, attention counted."""
    width: int
    """Width of an image's embedding."""
    patch: int
    """Pixels along one side of a cell of the last feature map."""
    image_size: int
    """Side of the input in pixels."""


class _SkippedBatchNorms(TorchFunctionMode):
    """Batch norms that pass their input on: nothing is counted in them, and torch takes longest over their shapes."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return args[0] if func is functional.batch_norm else func(*args, **(kwargs or {}))


def measure(name: str) -> Size:
    """Measure a model of timm from its shapes alone: no weights are made, so the largest takes a second."""
    fused = timm_config.use_fused_attn()
    # torch's counter sees no operations inside fused attention: a ViT-B would seem 4 % cheaper, at 518 px 23 %.
    set_fused_attn(False)
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, num_classes=0).eval().requires_grad_(False)
            height, width = resolve_model_data_config(model)["input_size"][1:]
            image = torch.zeros(1, 3, height, width)
        with FlopCounterMode(display=False) as counter, _SkippedBatchNorms():
            model(image)
    finally:
        set_fused_attn(bool(fused))
    return Size(
        parameters=sum(p.numel() for p in model.parameters()),
        gflops=round(counter.get_total_flops() / 1e9, 2),
        width=int(getattr(model, "head_hidden_size", model.num_features)),
        patch=int(model.feature_info[-1]["reduction"]),
        image_size=height,
    )


class Preset(NamedTuple):
    """A model of timm that is a good choice for something."""

    name: str
    """Name in timm, with its tag of weights."""
    uses: tuple[Use, ...]
    note: str
    size: Size


def read_presets() -> list[Preset]:
    """Read the table."""
    rows = json.loads(_FILE.read_text(encoding="utf-8"))
    return [
        Preset(row["name"], tuple(row["uses"]), row["note"], Size(**row["size"])) for row in rows
    ]


PRESETS = read_presets()


def write_sizes() -> None:
    """Measure every preset, and write the table."""
    rows = [preset._asdict() | {"size": measure(preset.name)._asdict()} for preset in PRESETS]
    lines = [f"  {json.dumps(row)}" for row in rows]
    _FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    write_sizes()

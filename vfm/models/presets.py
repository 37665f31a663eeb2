"""Backbones to begin with: what each is good for. Sizes and costs lie in `presets.json`, which this module writes.

`python -m vfm.models.presets` measures them anew, after the table or timm has changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from vfm.models.measure import Size, measure

Use = Literal["classification", "detection", "deepfake", "retrieval", "zero-shot"]
USES: tuple[Use, ...] = get_args(Use)

SIZES_FILE = Path(__file__).with_name("presets.json")


class Preset(NamedTuple):
    """A model of timm that is a good choice for something."""

    name: str
    """With its tag of weights."""
    uses: tuple[Use, ...]
    note: str


_EMBED: tuple[Use, ...] = ("classification", "retrieval", "detection", "deepfake")
_TEXT: tuple[Use, ...] = ("zero-shot", "retrieval", "classification")
_DENSE: tuple[Use, ...] = ("detection",)
_TUNE: tuple[Use, ...] = ("classification",)
_BOTH: tuple[Use, ...] = ("classification", "detection")

PRESETS = (
    Preset(
        "vit_small_patch14_reg4_dinov2.lvd142m", _EMBED, "general features, small: where to begin"
    ),
    Preset(
        "vit_base_patch14_reg4_dinov2.lvd142m", _EMBED, "general features: the default with a GPU"
    ),
    Preset("vit_large_patch14_reg4_dinov2.lvd142m", _EMBED, "general features, best of the three"),
    Preset(
        "vit_base_patch14_reg1_tipsv2.webli",
        (*_EMBED, "zero-shot"),
        "dense features, aligned with text",
    ),
    Preset(
        "vit_large_patch14_reg1_tipsv2.webli",
        (*_EMBED, "zero-shot"),
        "dense features, aligned with text",
    ),
    Preset("vit_pe_core_tiny_patch16_384.fb", _TEXT, "aligned with text, for small machines"),
    Preset("vit_pe_core_small_patch16_384.fb", _TEXT, "aligned with text"),
    Preset("vit_pe_core_base_patch16_224.fb", _TEXT, "aligned with text"),
    Preset("vit_pe_core_large_patch14_336.fb", (*_TEXT, "deepfake"), "aligned with text, large"),
    Preset("vit_pe_spatial_tiny_patch16_512.fb", _DENSE, "dense features, for small machines"),
    Preset("vit_pe_spatial_small_patch16_512.fb", _DENSE, "dense features: small detectors"),
    Preset("vit_pe_spatial_base_patch16_512.fb", _DENSE, "dense features"),
    Preset("vit_base_patch16_siglip_224.v2_webli", _TEXT, "SigLIP 2: many languages"),
    Preset("vit_base_patch16_siglip_384.v2_webli", _TEXT, "SigLIP 2 at a larger size"),
    Preset("vit_so400m_patch16_siglip_384.v2_webli", _TEXT, "SigLIP 2, best zero-shot of these"),
    Preset("eva02_tiny_patch14_336.mim_in22k_ft_in1k", _TUNE, "fine-tunes well, tiny"),
    Preset("eva02_small_patch14_336.mim_in22k_ft_in1k", _TUNE, "fine-tunes well, small"),
    Preset("eva02_base_patch14_448.mim_in22k_ft_in22k_in1k", _TUNE, "88.7 % on ImageNet"),
    Preset("eva02_large_patch14_448.mim_m38m_ft_in22k_in1k", _TUNE, "90.1 % on ImageNet"),
    Preset("tiny_vit_5m_224.dist_in22k_ft_in1k", _BOTH, "fast on a CPU; fine-tune it"),
    Preset("tiny_vit_11m_224.dist_in22k_ft_in1k", _BOTH, "fast; fine-tune it"),
    Preset("tiny_vit_21m_224.dist_in22k_ft_in1k", _BOTH, "the best small one to fine-tune"),
    Preset("davit_tiny.msft_in1k", _BOTH, "pyramid of features, small"),
    Preset("davit_base.msft_in1k", _BOTH, "pyramid of features"),
    Preset(
        "davit_base_fl.msft_florence2", _DENSE, "image tower of Florence-2 base: a ready pyramid"
    ),
    Preset(
        "davit_huge_fl.msft_florence2", _DENSE, "image tower of Florence-2 large: a ready pyramid"
    ),
    Preset("convnext_tiny.fb_in22k_ft_in1k", _BOTH, "convolutions: any input size, quantises well"),
    Preset("convnext_base.fb_in22k_ft_in1k", _BOTH, "convolutions: any input size, quantises well"),
    Preset(
        "vit_small_patch16_dinov3.lvd1689m", _EMBED, "strongest small features; mind the licence"
    ),
    Preset("vit_base_patch16_dinov3.lvd1689m", _EMBED, "strongest features; mind the licence"),
    Preset("vit_large_patch16_dinov3.lvd1689m", _EMBED, "strongest features; mind the licence"),
    Preset("convnext_tiny.dinov3_lvd1689m", _BOTH, "DINOv3 in convolutions; mind the licence"),
)


def read_sizes() -> dict[str, Size]:
    """Size and cost of every preset, as measured once."""
    stored = json.loads(SIZES_FILE.read_text(encoding="utf-8"))
    return {name: Size(**values) for name, values in stored.items()}


def write_sizes() -> None:
    """Measure every preset, and write the file."""
    rows = {preset.name: measure(preset.name)._asdict() for preset in PRESETS}
    lines = [f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items()]
    SIZES_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    write_sizes()

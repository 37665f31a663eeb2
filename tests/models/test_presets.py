"""Presets: they exist, their figures are those of timm's models, and attention is counted."""

from typing import get_args

import pytest
import timm
import torch
from timm.layers import config as timm_config

from vfm.models.licenses import describe_license, find_terms
from vfm.models.presets import PRESETS, Use, measure

USES = get_args(Use)
NAMES = [preset.name for preset in PRESETS]


def test_every_preset_has_weights_in_timm_and_says_what_it_is_for():
    assert len(set(NAMES)) == len(NAMES)
    assert set(NAMES) <= set(timm.list_pretrained())
    for preset in PRESETS:
        assert preset.uses
        assert set(preset.uses) <= set(USES)
        assert preset.note
    assert set(USES) == {use for preset in PRESETS for use in preset.uses}


def test_the_families_are_there():
    wanted = (
        "reg4_dinov2",
        "tipsv2",
        "lingbot",
        "radio_v4",
        "qwen3",
        "pe_core",
        "pe_spatial",
        "siglip",
        "eva02",
        "tiny_vit",
    )
    for family in (*wanted, "davit_tiny", "davit_base_fl", "davit_huge_fl", "convnext", "dinov3"):
        assert any(family in name for name in NAMES), family


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(preset, id=preset.name, marks=[pytest.mark.slow] * (number % 6 > 0))
        for number, preset in enumerate(PRESETS)
    ],
)
def test_the_kept_figures_are_those_of_the_model(preset):
    assert preset.size == measure(preset.name)


def test_attention_is_counted():
    """A ViT-B/16 by hand, in multiplications and additions, without biases, norms and softmax."""
    tokens, width = 197, 768
    linear = tokens * (4 * width * width + 8 * width * width)
    attention = 2 * tokens * tokens * width
    patches = 196 * 16 * 16 * 3 * width
    flops = 2 * (12 * (linear + attention) + patches)
    assert measure("vit_base_patch16_224").gflops == pytest.approx(flops / 1e9, abs=0.01)
    assert measure("vit_base_patch16_224").gflops == pytest.approx(35.13, abs=0.01)


def test_counting_leaves_timm_as_it_was():
    before = timm_config.use_fused_attn()
    measure("vit_tiny_patch16_224")
    assert timm_config.use_fused_attn() == before
    assert timm.create_model("vit_tiny_patch16_224").cls_token.device == torch.device("cpu")


@pytest.mark.parametrize(
    ("licence", "commercial", "quiet"),
    [
        ("apache-2.0", True, True),
        ("mit", True, True),
        ("dinov3-license", True, False),
        ("fair-noncommercial-research-license", False, False),
        ("cc-by-nc-4.0", False, False),
        ("apple-amlr", False, False),
        ("something-new", False, False),
        (None, False, False),
    ],
)
def test_what_licences_allow(licence, commercial, quiet):
    assert find_terms(licence).commercial is commercial
    text = describe_license("a_model", licence)
    assert (text is None) is quiet
    if text:
        assert text.startswith(f"Licence of the weights of a_model: {licence or 'none stated'}")
        assert ("not cleared for commercial use" in text) is not commercial


def test_what_timm_calls_unknown_or_is_new_is_not_cleared():
    found = {timm.get_pretrained_cfg(n).license for n in timm.list_pretrained()} - {None}
    unknown = {name for name in found if "not known to vfm" in find_terms(name).duties}
    assert "unknown" in unknown
    assert not any(find_terms(name).commercial for name in unknown)
    assert len(unknown) < 6

"""Weights that were trained with another activation than the model has."""

import json

import pytest
import timm
import torch

from vfm.models.activations import find_mismatch
from vfm.models.backbone import Backbone
from vfm.models.weights import LoadReport

CLIP = "vit_base_patch32_clip_224"
QUICK = "vit_base_patch32_clip_quickgelu_224"


def make_report(source="timm:x", **more):
    return LoadReport(str(source), 1, 1, **more)


@pytest.fixture(scope="module")
def models():
    return {name: timm.create_model(f"{name}.openai", depth=1) for name in (CLIP, QUICK)}


def test_notes_of_timm_are_heeded(models):
    fetched = make_report(fetched=True)
    text = find_mismatch(models[CLIP], f"{CLIP}.openai", fetched)
    assert "computes GELU, and its weights were trained with QuickGELU, says timm's note" in text
    assert f"Use --model.backbone {QUICK}.openai; a model that was trained with" in text
    assert find_mismatch(models[QUICK], f"{QUICK}.openai", fetched) is None
    plain = timm.create_model("test_vit")
    assert find_mismatch(plain, "test_vit", fetched) is None
    # A file under a name with a tag is of that tag, as for its licence.
    assert find_mismatch(models[CLIP], f"{CLIP}.openai", make_report()) is not None
    assert find_mismatch(models[CLIP], CLIP, make_report()) is None


@pytest.mark.parametrize(
    ("config", "warned"),
    [
        ({"vision_config": {"hidden_act": "quick_gelu"}}, CLIP),
        ({"model_type": "clip"}, CLIP),
        ({"model_cfg": {"embed_dim": 8, "quick_gelu": True}}, CLIP),
        ({"pretrained_cfg": {"notes": ["natively QuickGELU, use another"]}}, CLIP),
        ({"model_type": "clip", "vision_config": {"hidden_act": "gelu"}}, QUICK),
        ({"hidden_act": "relu"}, None),
        ([], None),
    ],
)
def test_the_config_beside_a_file_is_heeded(models, tmp_path, config, warned):
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = make_report(tmp_path / "model.safetensors")
    warnings = {name: find_mismatch(model, name, report) for name, model in models.items()}
    assert {name for name, text in warnings.items() if text} == ({warned} if warned else set())
    assert all(f"says {tmp_path / 'config.json'}" in text for text in warnings.values() if text)


def test_a_checkpoint_of_vfm_names_its_backbone(models, tmp_path):
    path = tmp_path / "best.ckpt"
    entry = {"model": {"class_path": "x", "init_args": {"backbone": QUICK}}}
    torch.save({"state_dict": models[QUICK].state_dict(), "vfm": entry}, path)
    settings = {"weights": str(path), "arguments": {"depth": 1}, "min_coverage": 0.5}
    assert f"(of {QUICK})" in Backbone(CLIP, **settings).warning
    assert Backbone(QUICK, **settings).warning is None
    assert Backbone(CLIP, pretrained=False, arguments={"depth": 1}).warning is None

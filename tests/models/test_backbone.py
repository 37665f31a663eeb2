from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from vfm.models.backbone import Backbone, BackboneError
from vfm.models.weights import WeightsError

VIT = ("vit_tiny_patch16_224", {"embed_dim": 32, "depth": 2, "num_heads": 2})
DAVIT = (
    "davit_tiny",
    {
        "depths": (1, 1, 1, 1),
        "embed_dims": (16, 32, 64, 128),
        "num_heads": (1, 2, 4, 8),
        "window_size": 2,
    },
)
SWIN = (
    "swin_tiny_patch4_window7_224",
    {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 4), "window_size": 2},
)
# Name, arguments, size, widths of pooled and tokens, last grid.
CASES: list[tuple[str, dict[str, Any], int, int, int, int]] = [
    (*VIT, 32, 32, 32, 2),
    ("test_vit", {}, 64, 64, 64, 4),
    ("test_vit2", {}, 64, 64, 64, 4),
    (*DAVIT, 64, 128, 128, 2),
    (*SWIN, 64, 128, 128, 2),
    ("test_resnet", {}, 64, 96, 96, 2),
    ("test_efficientnet", {}, 64, 256, 64, 2),
    ("mobilenetv3_small_050", {}, 64, 1024, 288, 2),
]


def made(name: str, size: int, arguments: dict[str, Any], **more: Any) -> Backbone:
    torch.manual_seed(0)
    return Backbone(name, pretrained=False, image_size=size, arguments=arguments, **more).eval()


@pytest.mark.parametrize(
    ("name", "arguments", "size", "width", "token_width", "grid"), CASES, ids=[c[0] for c in CASES]
)
def test_features(
    name: str, arguments: dict[str, Any], size: int, width: int, token_width: int, grid: int
) -> None:
    backbone = made(name, size, arguments)
    assert backbone.info.width == width
    assert backbone.info.token_width == token_width
    assert backbone.preprocess.size == (size, size)
    images = torch.randn(3, 3, size, size)
    with torch.inference_mode():
        features = backbone(images)
        expected = backbone.model(images)
    assert features.pooled.shape == (3, width)
    torch.testing.assert_close(features.pooled, expected)
    assert features.pooled.std() > 0
    assert features.maps[-1].shape == (3, token_width, grid, grid)
    assert features.tokens.shape == (3, grid * grid, token_width)
    for y in range(grid):
        for x in range(grid):
            place = features.maps[-1][:, :, y, x]
            assert torch.equal(features.tokens[:, y * grid + x], place)


def test_tokens_stand_where_the_image_is() -> None:
    """A change in one patch of a convolution's field moves the tokens there most."""
    backbone = made("test_resnet", 64, {})
    image = torch.zeros(1, 3, 64, 64)
    changed = image.clone()
    changed[:, :, :16, 48:] = 3.0
    with torch.inference_mode():
        moved = (backbone(changed).tokens - backbone(image).tokens).norm(dim=-1)[0]
    assert int(moved.argmax()) == 1  # upper right of a grid of 2 x 2


def test_class_token_is_not_among_the_tokens() -> None:
    backbone = made(VIT[0], 32, VIT[1])
    with torch.inference_mode():
        images = torch.randn(1, 3, 32, 32)
        everything = backbone.model.forward_features(images)
        features = backbone(images)
    assert everything.shape[1] == 5
    torch.testing.assert_close(features.tokens, everything[:, 1:])
    torch.testing.assert_close(features.pooled, everything[:, 0])


def test_the_fit_can_be_chosen_and_the_rest_is_timms() -> None:
    backbone = made("mobilenetv3_small_050", 64, {}, fit="letterbox")
    config = timm.get_pretrained_cfg("mobilenetv3_small_050")
    assert backbone.preprocess.fit == "letterbox"
    assert backbone.preprocess.mean == tuple(config.mean)
    assert backbone.preprocess.std == tuple(config.std)
    assert backbone.preprocess.crop_fraction == config.crop_pct


def test_drop_path_reaches_the_model() -> None:
    rates = {
        module.drop_prob
        for module in made(VIT[0], 32, VIT[1], drop_path=0.25).modules()
        if isinstance(module, timm.layers.DropPath)
    }
    assert max(rates) == pytest.approx(0.25)


def test_a_random_start_has_no_report_and_no_licence() -> None:
    backbone = made("test_vit", 32, {})
    assert backbone.report is None
    assert backbone.license is None


def test_unknown_name_lists_near_ones() -> None:
    with pytest.raises(BackboneError) as caught:
        Backbone("vit_smal_patch16_224", pretrained=False)
    text = str(caught.value)
    assert text.startswith(f"timm {timm.__version__} has no model 'vit_smal_patch16_224'.")
    assert "vit_small_patch16_224" in text
    assert "timm.list_models" in text


def test_a_name_like_no_other_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"has no model 'qqqqqqqqqqqq'\. List names"):
        Backbone("qqqqqqqqqqqq", pretrained=False)


def test_unknown_tag_lists_the_tags() -> None:
    with pytest.raises(BackboneError) as caught:
        Backbone("vit_tiny_patch16_224.nonsense", pretrained=False)
    text = str(caught.value)
    assert "'vit_tiny_patch16_224' has no weights tagged 'nonsense'" in text
    assert "augreg_in21k_ft_in1k" in text
    assert "Give 'vit_tiny_patch16_224' alone" in text


def test_wrong_argument_is_named() -> None:
    with pytest.raises(BackboneError) as caught:
        Backbone("test_vit", pretrained=False, arguments={"colour": "red"})
    text = str(caught.value)
    assert "'test_vit' does not take one of the arguments ['colour']" in text
    assert "--model.backbone_args" in text


def test_no_pretrained_weights() -> None:
    name = next(n for n in timm.list_models("*tiny*") if not timm.get_pretrained_cfg(n).has_weights)
    with pytest.raises(WeightsError) as caught:
        Backbone(name)
    text = str(caught.value)
    assert f"timm has no pretrained weights for '{name}'" in text
    assert "--model.pretrained false" in text


def test_offline_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        Backbone("test_vit")
    text = str(caught.value)
    assert "The weights of 'test_vit' are not on this machine" in text
    assert "HF_HUB_OFFLINE forbids to fetch them" in text
    assert f"copy the folder models--timm--test_vit.r160_in1k to {tmp_path}" in text
    assert "/timm/test_vit.r160_in1k/resolve/main/model.safetensors" in text
    assert "--model.weights" in text


def test_a_folder_of_timm_is_a_backbone_at_another_size(tmp_path: Path) -> None:
    model = timm.create_model(VIT[0], num_classes=0, **VIT[1])
    timm.models.save_for_hf(
        model, tmp_path, model_config={"num_classes": 0}, model_args=VIT[1], safe_serialization=True
    )
    backbone = Backbone(f"local-dir:{tmp_path}", pretrained=False, image_size=32).eval()
    assert backbone.preprocess.size == (32, 32)
    with torch.inference_mode():
        assert backbone(torch.randn(1, 3, 32, 32)).pooled.shape == (1, 32)


@pytest.mark.parametrize(
    ("name", "arguments", "strides"),
    [
        ("vit_tiny_patch16_224", {"embed_dim": 48, "depth": 8, "num_heads": 3}, (16, 16, 16, 16)),
        ("vit_tiny_patch16_224", {"embed_dim": 48, "depth": 2, "num_heads": 3}, (16, 16)),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, (8, 16, 32)),
        ("efficientnet_b0", {}, (8, 16, 32)),
        ("resnet10t", {}, (8, 16, 32)),
    ],
)
def test_maps_for_dense_heads(name, arguments, strides):
    backbone = Backbone(name, pretrained=False, image_size=64, arguments=arguments)
    backbone.select_outputs(("maps",))
    features = backbone.train()(torch.randn(2, 3, 64, 64))
    assert backbone.info.map_strides == strides
    shapes = [tuple(m.shape) for m in features.maps]
    expected = zip(backbone.info.map_widths, strides, strict=True)
    assert shapes == [(2, width, 64 // stride, 64 // stride) for width, stride in expected]
    sum(m.square().sum() for m in features.maps).backward()
    # Weights without a gradient would stop a training on several GPUs.
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []


def test_means_of_maps():
    backbone = Backbone("resnet10t", pretrained=False, image_size=64)
    images = torch.randn(2, 3, 64, 64)
    backbone.select_outputs(("pooled", "map_means"))
    features = backbone.eval()(images)
    assert features.map_means.shape == (2, sum(backbone.info.map_widths))
    parts = features.map_means.split(list(backbone.info.map_widths), dim=1)
    for level, part in zip(features.maps, parts, strict=True):
        torch.testing.assert_close(part, level.mean(dim=(2, 3)))
    backbone.select_outputs(("pooled",))
    assert backbone(images).map_means.numel() == 0


def test_evenly_spaced_blocks_of_a_plain_vit():
    backbone = Backbone("vit_tiny_patch16_224", pretrained=False)
    backbone.select_outputs(("maps",))
    assert backbone._indices == [2, 5, 8, 11]


def test_height_and_width():
    backbone = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=(64, 96))
    assert backbone.preprocess.size == (64, 96)
    assert backbone(torch.randn(1, 3, 64, 96)).maps[-1].shape[2:] == (4, 6)


def test_stages_are_counted_from_the_stem() -> None:
    assert made("test_resnet", 64, {}).count_fine_stages() == 2
    backbone = made(VIT[0], 32, VIT[1])
    # Patches of 16 pixels are not fine; each block is a stage.
    assert backbone.count_fine_stages() == 0
    backbone.freeze_stages(2)
    learning = {
        name.split(".")[0] for name, p in backbone.model.named_parameters() if p.requires_grad
    }
    assert learning == {"blocks", "norm"}
    assert not any(p.requires_grad for p in backbone.model.blocks[0].parameters())
    message = r"freeze_at is 9, but 'vit_tiny_patch16_224' has 3 stages with its stem\. Give 0 to 3 \(--model"
    with pytest.raises(BackboneError, match=message):
        backbone.freeze_stages(9)

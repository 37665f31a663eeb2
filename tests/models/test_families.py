"""One contract for every family of backbones: features, learning, checkpoint, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

import vfm
from tests.image_folders import write_image_folder
from vfm.data import SyntheticData
from vfm.models.backbone import Backbone
from vfm.models.heads import AttentionPoolHead, MLPHead
from vfm.tasks import ClassificationTask, Optim


class Family(NamedTuple):
    name: str
    size: int
    arguments: dict[str, Any]


PLAIN = {"embed_dim": 48, "depth": 2, "num_heads": 3}
STAGES = {"embed_dims": (16, 24, 32, 40), "depths": (1, 1, 1, 1)}
SWIN = {"depths": (1, 1), "num_heads": (1, 2)}
# Real architectures of timm, made small; random weights.
FAMILIES = [
    Family("vit_tiny_patch16_224", 32, PLAIN),  # class token
    Family("vit_small_patch14_reg4_dinov2", 28, PLAIN),  # DINOv2: class and register tokens
    Family("vit_base_patch16_siglip_224", 32, PLAIN),  # SigLIP: attention pool, no class token
    Family("eva02_tiny_patch14_224", 28, PLAIN),  # EVA-02: rotary positions, SwiGLU
    Family("vit_small_patch16_dinov3", 32, PLAIN),  # DINOv3: rotary positions, registers
    Family("vit_small_patch16_lingbot", 32, PLAIN),  # LingBot: rotary positions, registers
    Family("vit_so400m_patch16_radio_v4", 32, PLAIN),  # C-RADIOv4: several class tokens
    Family("qwen3_vit_88m", 32, PLAIN),  # Qwen3: absolute and rotary positions, no final norm
    Family("davit_tiny", 64, STAGES | {"num_heads": (1, 2, 2, 4)}),
    Family("davit_base_fl", 64, STAGES | {"num_heads": (1, 2, 2, 4)}),  # the tower of Florence-2
    Family("focalnet_tiny_srf", 64, {}),
    Family("swin_tiny_patch4_window7_224", 64, {"embed_dim": 24, "window_size": 4} | SWIN),
    Family("convnext_atto", 64, {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}),
    Family("tiny_vit_5m_224", 64, STAGES | {"num_heads": (1, 2, 2, 4), "window_sizes": (7, 7, 7, 7)}),
    Family("test_efficientnet", 32, {}),
    Family("mobilenetv3_small_050", 32, {}),
    Family("test_resnet", 32, {}),
    Family("fastvit_t8", 64, {"layers": (1, 1, 1, 1), "embed_dims": (16, 32, 64, 128)}),
]  # fmt: skip
LARGE = "focalnet_tiny_srf"
"""timm makes it no smaller: 28 million weights, saved after each epoch."""
SLOW = (
    LARGE,
    "davit_base_fl",
    "swin_tiny_patch4_window7_224",
    "tiny_vit_5m_224",
    "mobilenetv3_small_050",
    "fastvit_t8",
)
"""Tested with what is slow; each has a sister that always is."""
LABELS = ("class_0", "class_1", "class_2")


@pytest.fixture(
    params=[
        pytest.param(family, id=family.name, marks=[pytest.mark.slow] * (family.name in SLOW))
        for family in FAMILIES
    ]
)
def family(request: pytest.FixtureRequest) -> Family:
    torch.manual_seed(0)
    return request.param  # type: ignore[no-any-return]


def task(family: Family, **changes: Any) -> ClassificationTask:
    rate = 5e-4 if family.name == LARGE else 2e-3
    settings: dict[str, Any] = {"optim": Optim(lr=rate, warmup_ratio=0.0)}
    return ClassificationTask(
        family.name,
        pretrained=False,
        image_size=family.size,
        backbone_args=family.arguments,
        **(settings | changes),
    )


def shapes(family: Family) -> SyntheticData:
    return SyntheticData(
        num_classes=3, num_images=48, image_size=family.size, batch_size=8, augment="none"
    )


def trainer(root: Path, **changes: Any) -> Trainer:
    return Trainer(
        default_root_dir=root,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **changes,
    )


def test_features_have_the_shapes_that_are_promised(family: Family) -> None:
    backbone = Backbone(
        family.name, pretrained=False, image_size=family.size, arguments=family.arguments
    ).eval()
    assert backbone.preprocess.size == (family.size, family.size)
    with torch.no_grad():
        features = backbone(torch.randn(2, 3, family.size, family.size))
    assert features.pooled.shape == (2, backbone.info.width)
    height, width = features.maps[-1].shape[-2:]
    assert features.tokens.shape == (2, height * width, backbone.info.token_width)
    assert features.maps[-1].shape[1] == backbone.info.token_width
    tokens = features.maps[-1].flatten(2).transpose(1, 2)
    assert torch.equal(tokens, features.tokens)
    assert torch.isfinite(features.pooled).all()
    # An image's features are its own, in a batch as alone.
    with torch.no_grad():
        image = torch.randn(3, 3, family.size, family.size)
        torch.testing.assert_close(
            backbone(image).pooled[1:2], backbone(image[1:2]).pooled, atol=1e-4, rtol=1e-4
        )


def test_places_lie_where_they_are_in_the_image(family: Family) -> None:
    """A change in a corner of the image changes that corner of the map more than the opposite one."""
    backbone = Backbone(
        family.name, pretrained=False, image_size=4 * family.size, arguments=family.arguments
    ).eval()
    image = torch.randn(1, 3, 4 * family.size, 4 * family.size)
    changed = image.clone()
    changed[:, :, -family.size :, : family.size] += 3
    with torch.no_grad():
        difference = (backbone(changed).maps[-1] - backbone(image).maps[-1]).abs().sum(1)[0]
    half = len(difference) // 2
    assert difference[-half:, :half].max() > 1.2 * difference[:half, -half:].max()


def test_it_learns_and_comes_back_from_its_checkpoint(family: Family, tmp_path: Path) -> None:
    made = task(family)
    first = trainer(tmp_path, max_epochs=1, limit_val_batches=0, enable_checkpointing=False)
    first.fit(made, datamodule=shapes(family))
    before = float(first.callback_metrics["train/loss"])
    run = trainer(tmp_path, max_epochs=8, num_sanity_val_steps=0)
    run.fit(made, datamodule=shapes(family))
    assert float(run.callback_metrics["train/loss"]) < 0.8 * before
    again = ClassificationTask.load(tmp_path / "checkpoints" / "last.ckpt")
    pixels = torch.randint(0, 256, (3, family.size, family.size, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(again.answer(pixels)["scores"], made.eval().answer(pixels)["scores"])


def test_channels_last_trains_alike(tmp_path: Path) -> None:
    losses = []
    for channels_last in (False, "auto"):
        torch.manual_seed(0)
        made = task(Family("test_efficientnet", 32, {}), channels_last=channels_last)
        run = trainer(tmp_path, max_epochs=1, limit_val_batches=0, enable_checkpointing=False)
        run.fit(made, datamodule=shapes(FAMILIES[0]))
        losses.append(float(run.callback_metrics["train/loss"]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize("option", [{"adapt": "linear"}, {"optim": Optim(layer_decay=0.5)}])
def test_switches_work_on_every_family(
    family: Family, option: dict[str, Any], tmp_path: Path
) -> None:
    made = task(family, head=MLPHead(hidden=8), **option)
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0, enable_checkpointing=False)
    run.fit(made, datamodule=shapes(family))
    groups = run.optimizers[0].param_groups
    learning = {id(p) for g in groups for p in g["params"]}
    assert learning == {id(p) for p in made.parameters() if p.requires_grad}
    if "adapt" in option:
        assert learning == {id(p) for p in made.head.parameters()}
    else:
        assert len({g["lr"] for g in groups}) > 1


@pytest.mark.slow
def test_bundle_answers_as_the_model(family: Family, tmp_path: Path) -> None:
    made = task(family, head=AttentionPoolHead(num_heads=1))
    run = trainer(tmp_path, max_epochs=1, num_sanity_val_steps=0)
    run.fit(made, datamodule=shapes(family))
    images = write_image_folder(tmp_path / "images", images_per_class=12, size=[(40, 30), (64, 90)])
    model = vfm.load(tmp_path / "checkpoints" / "last.ckpt", device="cpu")
    assert isinstance(model, vfm.Model)
    parity = model.export(tmp_path / "bundle", images=images)
    assert parity.passed
    assert parity.max_difference < 1e-4
    assert np.isfinite(parity.max_difference)

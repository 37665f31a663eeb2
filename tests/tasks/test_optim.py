from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from vfm.models.backbone import Backbone
from vfm.models.heads import LinearHead
from vfm.training.lr_schedule import build_schedule, compute_learning_rate_factor
from vfm.training.optim import Optim, build_optimizer

ARGUMENTS = {"embed_dim": 32, "depth": 2, "num_heads": 2}


def parts(name: str = "vit_tiny_patch16_224") -> tuple[nn.Module, nn.Module]:
    arguments = ARGUMENTS if name.startswith("vit") else None
    backbone = Backbone(name, pretrained=False, image_size=32, arguments=arguments)
    head = LinearHead()
    head.prepare(backbone.info, ("a", "b"))
    return backbone.model, head


def decays(adamw: torch.optim.Optimizer, *modules: nn.Module) -> dict[str, float]:
    by_id = {id(p): g["weight_decay"] for g in adamw.param_groups for p in g["params"]}
    return {
        name: by_id[id(p)]
        for module in modules
        for name, p in module.named_parameters()
        if id(p) in by_id
    }


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_efficientnet", "test_convnext"])
def test_matrices_decay_and_nothing_else(name: str) -> None:
    backbone, head = parts(name)
    found = decays(build_optimizer(backbone, head, Optim(weight_decay=0.1)), backbone, head)
    exempt = backbone.no_weight_decay() if hasattr(backbone, "no_weight_decay") else set()
    shapes = {n: p.ndim for m in (backbone, head) for n, p in m.named_parameters()}
    assert found.keys() == shapes.keys()
    for parameter, decay in found.items():
        expected = 0.1 if shapes[parameter] >= 2 and parameter not in exempt else 0.0
        assert decay == expected, parameter


def test_a_vits_embeddings_do_not_decay() -> None:
    backbone, head = parts()
    found = decays(build_optimizer(backbone, head, Optim(weight_decay=0.1)), backbone, head)
    for parameter in (
        "pos_embed",
        "cls_token",
        "norm.weight",
        "blocks.0.norm1.bias",
        "blocks.1.attn.qkv.bias",
        "linear.bias",
    ):
        assert found[parameter] == 0.0, parameter
    for parameter in ("patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "linear.weight"):
        assert found[parameter] == 0.1, parameter


def test_every_trainable_weight_once() -> None:
    backbone, head = parts()
    backbone.patch_embed.requires_grad_(False)
    adamw = build_optimizer(backbone, head, Optim(lr=3e-4, betas=(0.8, 0.95)))
    given = [id(p) for group in adamw.param_groups for p in group["params"]]
    trainable = [
        id(p) for module in (backbone, head) for p in module.parameters() if p.requires_grad
    ]
    assert len(given) == len(set(given))
    assert set(given) == set(trainable)
    assert id(backbone.patch_embed.proj.weight) not in given
    assert {group["lr"] for group in adamw.param_groups} == {3e-4}
    assert {group["betas"] for group in adamw.param_groups} == {(0.8, 0.95)}


def test_a_frozen_backbone_leaves_the_head() -> None:
    backbone, head = parts()
    backbone.requires_grad_(False)
    adamw = build_optimizer(backbone, head, Optim())
    assert sum(len(group["params"]) for group in adamw.param_groups) == 2
    assert all(group["params"] for group in adamw.param_groups)


def test_schedule() -> None:
    optim = Optim(warmup_ratio=0.1, min_lr_ratio=0.02)
    factors = [compute_learning_rate_factor(step, 100, optim) for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.02 + 0.98 / 2)
    assert factors[100] == pytest.approx(0.02)
    assert all(a < b for a, b in pairwise(factors[:11]))
    assert all(a > b for a, b in pairwise(factors[10:]))
    assert compute_learning_rate_factor(500, 100, optim) == pytest.approx(0.02)


def test_schedule_without_warmup_starts_at_its_peak() -> None:
    optim = Optim(warmup_ratio=0, min_lr_ratio=0)
    assert compute_learning_rate_factor(0, 50, optim) == 1.0
    assert 0 < compute_learning_rate_factor(49, 50, optim) < 0.01
    assert compute_learning_rate_factor(0, 1, optim) == 1.0


def test_the_backbone_learns_later_and_less() -> None:
    optim = Optim(
        lr=1e-2, backbone_factor=0.1, freeze_ratio=0.5, warmup_ratio=0.0, min_lr_ratio=1.0
    )
    adamw = build_optimizer(*parts(), optim)
    rates = build_schedule(adamw, 10, optim)
    seen = []
    for _ in range(10):
        by_part = {group["part"]: group["lr"] for group in adamw.param_groups}
        seen.append((by_part["backbone"], by_part["head"]))
        adamw.step()
        rates.step()
    assert seen[:5] == [(0.0, 1e-2)] * 5
    assert seen[5:] == [(pytest.approx(1e-3), pytest.approx(1e-2))] * 5


def test_final_of_one_is_constant() -> None:
    optim = Optim(warmup_ratio=0, min_lr_ratio=1)
    assert {compute_learning_rate_factor(step, 20, optim) for step in range(20)} == {1.0}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("lr", 0, "above 0"),
        ("lr", -1e-3, "above 0"),
        ("lr", float("nan"), "above 0"),
        ("weight_decay", -0.1, "0 or more"),
        ("backbone_factor", 0.0, "above 0, up to 10"),
        ("freeze_ratio", 1.0, "from 0 to below 1"),
        ("warmup_ratio", 1, "from 0 to below 1"),
        ("warmup_ratio", -0.1, "from 0 to below 1"),
        ("min_lr_ratio", 1.1, "from 0 to 1"),
        ("max_grad_norm", 0, "above 0, or null"),
    ],
)
def test_ranges(name: str, value: float, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"optim\.{name} is {value}; it must be {expected}") as e:
        Optim(**{name: value})
    assert f"Change --model.optim.{name}." in str(e.value)


@pytest.mark.parametrize("betas", [(0.9, 1.0), (-0.1, 0.9), (0.9,)])
def test_bad_betas_are_refused_at_once(betas: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"optim\.betas"):
        Optim(betas=betas)  # type: ignore[arg-type]


def test_a_list_of_betas_is_a_tuple() -> None:
    assert Optim(betas=[0.8, 0.9]).betas == (0.8, 0.9)  # type: ignore[arg-type]
    assert Optim(max_grad_norm=None).max_grad_norm is None


def rates(adamw: torch.optim.Optimizer, *modules: nn.Module) -> dict[str, float]:
    by_id = {id(p): g["lr"] for g in adamw.param_groups for p in g["params"]}
    return {name: by_id[id(p)] for m in modules for name, p in m.named_parameters()}


def test_earlier_layers_learn_more_slowly() -> None:
    backbone, head = parts()
    found = rates(build_optimizer(backbone, head, Optim(lr=1.0, layer_decay=0.5)), backbone, head)
    assert found["linear.weight"] == found["linear.bias"] == found["norm.weight"] == 1.0
    assert found["blocks.1.mlp.fc1.weight"] == found["blocks.1.norm1.bias"] == 1.0
    assert found["blocks.0.mlp.fc1.weight"] == found["blocks.0.norm1.bias"] == 0.5
    assert found["patch_embed.proj.weight"] == found["cls_token"] == 0.25


def test_layer_decay_exempts_from_weight_decay_what_it_should() -> None:
    backbone, head = parts()
    plain = decays(build_optimizer(backbone, head, Optim(weight_decay=0.1)), backbone, head)
    layered = build_optimizer(backbone, head, Optim(weight_decay=0.1, layer_decay=0.7))
    assert decays(layered, backbone, head) == plain


def test_layer_decay_lasts_through_the_schedule() -> None:
    backbone, head = parts()
    optim = Optim(lr=1.0, layer_decay=0.5, warmup_ratio=0.2)
    adamw = build_optimizer(backbone, head, optim)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda step: compute_learning_rate_factor(step, 10, optim)
    )
    for _ in range(5):
        adamw.step()
        schedule.step()
        found = rates(adamw, backbone, head)
        assert found["blocks.0.mlp.fc1.weight"] == pytest.approx(0.5 * found["linear.weight"])


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"layer_decay": 0.0},
            r"optim\.layer_decay is 0\.0; it must be above 0, at most 1, null or auto",
        ),
        ({"ema": 1.0}, r"optim\.ema is 1\.0; it must be between 0 and 1, or null"),
    ],
)
def test_new_values_out_of_range(values: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Optim(**values)

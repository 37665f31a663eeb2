"""Every adaptation on every family: what learns, and that it merges away."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from vfm.models.adapt import ADAPTATIONS, AdaptOptions, read_adaptation, resolve_adaptation
from vfm.models.adaptation import Adaptation, AdaptError
from vfm.models.adapters import Effort, EffortLinear, LoRA
from vfm.models.backbone import Backbone

SMALL_VIT = {"embed_dim": 32, "depth": 3, "num_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": SMALL_VIT,
    "eva02_tiny_patch14_224": SMALL_VIT,
    "vit_small_patch16_dinov3": SMALL_VIT,
    "beit_base_patch16_224": SMALL_VIT,
    "vit_base_patch16_siglip_224": SMALL_VIT,
    "davit_tiny": {
        "embed_dims": [16, 32, 48, 64],
        "depths": [1, 1, 1, 1],
        "num_heads": [2, 2, 2, 2],
    },
    "convnext_atto": {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
    "tiny_vit_5m_224": {
        "embed_dims": [16, 32],
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_sizes": [7, 7],
    },
    "test_efficientnet": {},
}
WITH_ATTENTION = [n for n in FAMILIES if n not in ("convnext_atto", "test_efficientnet")]
SIZES = {"eva02_tiny_patch14_224": 56, "tiny_vit_5m_224": 112}


def backbone(name: str, **more: Any) -> Backbone:
    torch.manual_seed(0)
    size = SIZES.get(name, 64)
    made = Backbone(name, pretrained=False, image_size=size, arguments=FAMILIES[name], **more)
    for parameter in made.parameters():
        if parameter.ndim == 1:  # so that no layer scale or gate of a random start hides a layer
            nn.init.normal_(parameter, 0.5, 0.2)
    return made


def adapt(made: Backbone, how: Any, options: AdaptOptions = AdaptOptions()) -> Adaptation:
    adaptation = resolve_adaptation(how, options)
    made.adapt(adaptation)
    return adaptation


def has_adapters(made: Backbone) -> bool:
    return any(isinstance(m, EffortLinear) or hasattr(m, "lora_A") for m in made.modules())


def images(made: Backbone, number: int = 4) -> torch.Tensor:
    return torch.randn(number, 3, *made.preprocess.size, generator=torch.manual_seed(1))


def learning(made: Backbone) -> dict[str, nn.Parameter]:
    return {name: p for name, p in made.model.named_parameters() if p.requires_grad}


def one_step(made: Backbone, lr: float = 0.05) -> None:
    made.train()
    solver = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], lr)
    pooled = made(images(made)).pooled
    (pooled * torch.linspace(-1, 1, pooled.shape[1])).sum().backward()
    solver.step()
    made.eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_lora_starts_equal_learns_everywhere_and_merges(name: str) -> None:
    plain = backbone(name).eval()
    adapted = copy.deepcopy(plain)
    adaptation = adapt(adapted, "lora", AdaptOptions(r=4))
    pictures = images(plain)
    with torch.no_grad():
        before = plain(pictures).pooled
        assert torch.allclose(adapted.eval()(pictures).pooled, before, atol=1e-5)
    assert learning(adapted)
    assert all(".lora_" in n for n in learning(adapted))
    one_step(adapted)
    # Each update must have had a gradient: attention that reads a weight past its layer would leave it out.
    unmoved = [n for n, p in learning(adapted).items() if ".lora_B." in n and not p.any()]
    assert not unmoved
    merged = copy.deepcopy(adapted)
    adaptation.merge(merged)
    assert has_adapters(adapted)
    assert not has_adapters(merged)
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]
    with torch.no_grad():
        after = adapted(pictures).pooled
        assert not torch.allclose(after, before, atol=1e-4)
        assert torch.allclose(merged(pictures).pooled, after, atol=1e-5, rtol=1e-5)
    tensors = read_adaptation({"adapt": "lora", "adapt_options": {"alpha": None}}).merge_tensors(
        adapted.state_dict()
    )
    assert tensors.keys() == merged.state_dict().keys()
    for key, value in merged.state_dict().items():
        assert torch.allclose(tensors[key], value, atol=1e-6), key


@pytest.mark.parametrize("name", WITH_ATTENTION)
@pytest.mark.parametrize("r", [1, 3])
def test_effort_starts_equal_learns_little_and_merges(name: str, r: int) -> None:
    plain = backbone(name).eval()
    adapted = copy.deepcopy(plain)
    adaptation = adapt(adapted, "effort", AdaptOptions(r=r))
    pictures = images(plain)
    with torch.no_grad():
        before = plain(pictures).pooled
        assert torch.allclose(adapted.eval()(pictures).pooled, before, atol=1e-5)
    layers = [m for m in adapted.modules() if isinstance(m, EffortLinear)]
    assert layers
    expected = sum(
        r * (m.out_features // m.in_features * (2 * m.in_features + 1))
        if m.out_features % m.in_features == 0
        else r * (m.in_features + m.out_features + 1)
        for m in layers
    )
    assert sum(p.numel() for p in learning(adapted).values()) == expected
    one_step(adapted)
    merged = copy.deepcopy(adapted)
    adaptation.merge(merged)
    assert [type(m) for m in merged.modules()] == [type(m) for m in plain.modules()]
    with torch.no_grad():
        after = adapted(pictures).pooled
        assert not torch.equal(after, before)
        assert torch.allclose(merged(pictures).pooled, after, atol=1e-5, rtol=1e-5)
    tensors = read_adaptation({"adapt": "effort"}).merge_tensors(adapted.state_dict())
    assert tensors.keys() == merged.state_dict().keys()


def test_effort_takes_the_smallest_directions_of_each_block() -> None:
    layer = nn.Linear(6, 18)
    found = EffortLinear(layer, 2)
    for block in range(3):
        singular = torch.linalg.svdvals(layer.weight[6 * block : 6 * block + 6].detach())
        assert torch.allclose(found.effort_s[block], singular[-2:], atol=1e-6)
    assert found.weight is layer.weight
    assert not found.weight.requires_grad or layer.weight.requires_grad


def test_effort_of_a_vit_large_trains_what_the_paper_says() -> None:
    with torch.device("meta"):
        layers = [nn.Linear(1024, 3072), nn.Linear(1024, 1024)]
    count = 0
    for layer in layers:
        real = nn.Linear(layer.in_features, layer.out_features)
        count += sum(
            p.numel() for n, p in EffortLinear(real, 1).named_parameters() if "effort" in n
        )
    assert 24 * count == 196_704


@pytest.mark.parametrize("name", FAMILIES)
def test_ln_trains_norm_layers_alone(name: str) -> None:
    made = backbone(name)
    adapt(made, "ln")
    names = learning(made)
    assert names
    assert all(p.ndim == 1 for p in names.values())
    modules = dict(made.model.named_modules())
    kinds = {type(modules[n.rpartition(".")[0]]).__name__.lower() for n in names}
    assert all("norm" in kind for kind in kinds), kinds


@pytest.mark.parametrize("name", FAMILIES)
def test_partial_trains_the_end(name: str) -> None:
    made = backbone(name)
    adapt(made, "partial", AdaptOptions(blocks=1))
    flags = [p.requires_grad for p in made.model.parameters() if p.ndim > 1]
    assert any(flags)
    assert not flags[0]
    first = flags.index(True)
    assert all(flags[first:])
    pooled = made(images(made)).pooled.sum()
    pooled.backward()


def test_partial_of_a_vit_is_its_last_blocks_and_the_norm() -> None:
    made = backbone("vit_tiny_patch16_224")
    adapt(made, "partial")
    groups = {".".join(n.split(".")[:2]) for n in learning(made)}
    assert groups == {"blocks.1", "blocks.2", "norm.weight", "norm.bias"}


def test_linear_and_full() -> None:
    made = backbone("vit_tiny_patch16_224")
    adapt(made, "full")
    assert all(p.requires_grad for p in made.parameters())
    assert not made.frozen
    adapt(made, "linear")
    assert made.frozen
    assert not made.train().training


@pytest.mark.parametrize("how", ["linear", "lora", "partial", "ln"])
def test_frozen_batch_norms_keep_their_statistics(how: Any) -> None:
    made = backbone("test_efficientnet")
    adapt(made, how, AdaptOptions())
    made.train()
    before = {k: v.clone() for k, v in made.named_buffers() if k.endswith("running_mean")}
    made(images(made))
    moved = [k for k, v in made.named_buffers() if k in before and not torch.equal(v, before[k])]
    assert bool(moved) == (how in ("partial", "ln"))
    assert len(moved) < len(before) or how == "ln"


def test_the_fewer_weights_learn_the_higher_the_rate() -> None:
    rates = {name: kind.learning_rate for name, kind in ADAPTATIONS.items()}
    assert rates["full"] <= rates["partial"] < rates["lora"]
    assert rates["lora"] < rates["linear"]


@pytest.mark.parametrize(
    ("name", "how", "options", "message"),
    [
        (
            "vit_tiny_patch16_224",
            "lora",
            {"targets": ["query"]},
            r"lora finds no layer in VisionTransformer for targets \['query'\]\. "
            r"Names of its layers end in: fc1, fc2, proj, qkv \(--model\.adapt_options\.targets\)\.",
        ),
        ("convnext_atto", "effort", {}, r"effort finds no layer in ConvNeXt for its own choice"),
        (
            "vit_tiny_patch16_224",
            "effort",
            {"r": 33},
            r"Effort with r 33 does not fit a matrix of 32 x 32\. Give 1 to 32",
        ),
        (
            "vit_tiny_patch16_224",
            "partial",
            {"blocks": 9},
            r"adapt_options\.blocks is 9, but VisionTransformer has 4\. Give 1 to 4",
        ),
    ],
)
def test_what_does_not_fit_is_said(name: str, how: Any, options: Any, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        adapt(backbone(name), how, AdaptOptions(**options))


@pytest.mark.parametrize(
    ("option", "value"),
    [("r", 0), ("alpha", 0.0), ("dropout", 1.0), ("targets", []), ("blocks", 0)],
)
def test_options_outside_their_range_are_refused(option: str, value: Any) -> None:
    with pytest.raises(
        AdaptError, match=f"adapt_options.{option} is .*Change --model.adapt_options"
    ):
        AdaptOptions(**{option: value})


def test_no_norm_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    made = backbone("vit_tiny_patch16_224")
    made.model = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(AdaptError, match=r"ln finds no norm layers in Sequential\. Take lora"):
        adapt(made, "ln")


def test_lora_without_peft_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(AdaptError, match=r"LoRA needs peft.*pip install 'vfm\[lora\]'"):
        adapt(backbone("vit_tiny_patch16_224"), "lora")


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "test_efficientnet"])
@pytest.mark.parametrize("how", ["full", "lora"])
def test_gradient_checkpointing_keeps_less_and_changes_nothing(name: str, how: Any) -> None:
    kept, gradients = [], []
    for checkpointing in (False, True):
        made = backbone(name, grad_checkpointing=checkpointing)
        adapt(made, how, AdaptOptions())
        saved: set[int] = set()
        size = [0]

        def pack(t: torch.Tensor, saved: set[int] = saved, size: list[int] = size) -> torch.Tensor:
            if t.data_ptr() not in saved and not isinstance(t, nn.Parameter):
                saved.add(t.data_ptr())
                size[0] += t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = made.train()(images(made)).pooled.sum()
        loss.backward()
        kept.append(size[0])
        gradients.append({n: p.grad for n, p in learning(made).items() if p.grad is not None})
    assert kept[1] < 0.7 * kept[0], kept
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][key], atol=1e-4, rtol=1e-3), key


@pytest.mark.parametrize(
    ("how", "options", "same"),
    [
        ("lora", AdaptOptions(r=4, alpha=2.0, targets=["qkv"]), LoRA(4, 2.0, targets=["qkv"])),
        ("lora", AdaptOptions(), LoRA()),
        ("effort", AdaptOptions(r=3, alpha=1.0), Effort(3)),
    ],
)
def test_a_short_name_is_the_component_with_its_options(how: str, options: Any, same: Any) -> None:
    assert resolve_adaptation(how, options).spec == same.spec
    assert resolve_adaptation(same) is same
    assert read_adaptation({"adapt": same.spec, "adapt_options": {"r": None}}).spec == same.spec


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("lora", "r", 0),
        ("lora", "alpha", 0.0),
        ("lora", "dropout", 1.0),
        ("effort", "targets", []),
        ("partial", "blocks", 0),
    ],
)
def test_arguments_outside_their_range_are_refused(kind: str, option: str, value: Any) -> None:
    with pytest.raises(AdaptError, match=f"^adapt.{option} is .*Change --model.adapt.{option}"):
        ADAPTATIONS[kind](**{option: value})


def test_an_unknown_name_lists_the_choices() -> None:
    with pytest.raises(
        AdaptError, match=r"no adaptation 'lorra'\. Choices: full, linear, ln, lora"
    ):
        resolve_adaptation("lorra")


@pytest.mark.parametrize(
    ("adaptation", "message"),
    [
        (LoRA(targets=["query"]), r"lora finds no layer .*\(--model\.adapt\.targets\)\."),
        (Effort(33), r"Give 1 to 32 \(--model\.adapt\.r\)"),
        (ADAPTATIONS["partial"](9), r"^--model\.adapt\.blocks is 9, but"),
    ],
)
def test_the_remedy_names_the_option_that_was_given(adaptation: Any, message: str) -> None:
    with pytest.raises(AdaptError, match=message):
        backbone("vit_tiny_patch16_224").adapt(adaptation)

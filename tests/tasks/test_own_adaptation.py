"""An adaptation of a user's: trained, saved, loaded with trust, exported merged."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vfm
from tests.image_folders import write_image_folder
from tests.tasks.tiny import VIT
from vfm.bundle.export import export
from vfm.cli import main
from vfm.models.adapt import AdaptOptions
from vfm.models.adaptation import Adaptation
from vfm.models.backbone import Backbone
from vfm.models.weights import WeightsError
from vfm.spec import SpecError
from vfm.tasks import BaseTask, ClassificationTask

CODE = '''
import torch
from torch import nn

from vfm import Adaptation


class Scaled(nn.Module):
    def __init__(self, layer, start):
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.full((layer.out_features,), start))

    def forward(self, x):
        return self.layer(x) * self.scale


class ScaleTuning(Adaptation):
    """Learns a factor for each output of the layers of a name (as in IA3)."""

    learning_rate = 2e-3

    def __init__(self, target: str = "qkv", start: float = 1.0) -> None:
        self.target = target
        self.start = start

    def apply(self, model):
        model.requires_grad_(False)
        for name, layer in list(model.named_modules()):
            if name.endswith("." + self.target):
                model.set_submodule(name, Scaled(layer, self.start))

    def merge(self, model):
        for name, module in list(model.named_modules()):
            if isinstance(module, Scaled):
                layer, scale = module.layer, module.scale.detach()
                layer.weight = nn.Parameter(layer.weight.detach() * scale[:, None])
                layer.bias = nn.Parameter(layer.bias.detach() * scale)
                model.set_submodule(name, layer)
'''


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("own")
    (root / "scaling.py").write_text(CODE, encoding="utf-8")
    sys.path.insert(0, str(root))
    sys.modules.pop("scaling", None)
    model = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=32, arguments=VIT)
    torch.save(model.model.state_dict(), root / "start.pth")
    options = {
        "--model": "ClassificationTask",
        "--model.backbone": "vit_tiny_patch16_224",
        "--model.weights": str(root / "start.pth"),
        "--model.image_size": "32",
        "--model.backbone_args": '{"embed_dim": 32, "depth": 2, "num_heads": 2}',
        "--model.adapt": "scaling.ScaleTuning",
        "--model.adapt.start": "0.75",
        "--data": "SyntheticData",
        "--data.num_images": "32",
        "--data.num_workers": "0",
        "--trainer.max_steps": "1",
        "--trainer.accelerator": "cpu",
        "--trainer.default_root_dir": str(root / "runs"),
        "--trainer.enable_progress_bar": "false",
        "--trainer.enable_model_summary": "false",
    }
    assert main(["fit", *(word for pair in options.items() for word in pair)]) == 0
    (path,) = root.rglob("best.ckpt")
    yield path
    sys.path.remove(str(root))
    sys.modules.pop("scaling", None)


def test_it_learns_with_its_own_rate_and_is_rebuilt(checkpoint: Path) -> None:
    task = BaseTask.load(checkpoint, trust=["scaling"])
    assert task.spec["init_args"]["adapt"] == {
        "class_path": "scaling.ScaleTuning",
        "init_args": {"target": "qkv", "start": 0.75},
    }
    assert task.optim.lr == 2e-3
    learning = {n: p for n, p in task.backbone.named_parameters() if p.requires_grad}
    assert learning.keys() == {f"model.blocks.{i}.attn.qkv.scale" for i in range(2)}
    assert all(bool((p != 0.75).any()) for p in learning.values())


def test_its_adapter_file_holds_what_it_learned(checkpoint: Path) -> None:
    adapter = checkpoint.with_name("adapter.safetensors")
    task, same = (BaseTask.load(p, trust=["scaling"]) for p in (checkpoint, adapter))
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(task(pixels)["logits"], same(pixels)["logits"])


def test_it_is_not_loaded_without_trust(checkpoint: Path) -> None:
    with pytest.raises(SpecError, match=r"'scaling\.ScaleTuning'.*trust=\['scaling'\]"):
        BaseTask.load(checkpoint)


def test_it_is_merged_into_the_graph_and_stays_in_the_task(
    checkpoint: Path, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    bundle = tmp_path / "bundle"
    images = write_image_folder(tmp_path / "images", num_classes=2, images_per_class=20)
    export(checkpoint, images=images, out=bundle, trust=["scaling"])
    names = {i.name for i in onnx.load(bundle / "model.onnx").graph.initializer}
    assert names
    assert not any("scale" in name for name in names)
    model = vfm.load(checkpoint, device="cpu", trust=["scaling"])
    image = next(images.rglob("*.png"))
    agreement = model.predict(image).compare(vfm.load(bundle, device="cpu").predict(image))
    assert agreement.difference < 1e-4
    assert not agreement.changed
    assert any(name.endswith(".scale") for name, _ in model.task.backbone.named_parameters())


def test_its_checkpoint_is_no_weights_file_until_it_is_merged(
    checkpoint: Path, tmp_path: Path
) -> None:
    settings = {"pretrained": False, "image_size": 32, "arguments": VIT}
    with pytest.raises(WeightsError, match=r"not part of vfm.*task\.adaptation\.merge"):
        Backbone("vit_tiny_patch16_224", weights=str(checkpoint), **settings)
    task = BaseTask.load(checkpoint, trust=["scaling"])
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = task.backbone(image).pooled
    task.adaptation.merge(task.backbone.model)
    torch.save(task.backbone.model.state_dict(), tmp_path / "merged.pth")
    plain = Backbone("vit_tiny_patch16_224", weights=str(tmp_path / "merged.pth"), **settings)
    with torch.no_grad():
        assert torch.allclose(plain.eval()(image).pooled, before, atol=1e-5)


class Frozen(Adaptation):
    """Nothing learns."""

    def apply(self, model: torch.nn.Module) -> None:
        model.requires_grad_(False)


def test_options_without_effect_are_said(recwarn: pytest.WarningsRecorder) -> None:
    ClassificationTask(
        "vit_tiny_patch16_224",
        pretrained=False,
        backbone_args=VIT,
        adapt=Frozen(),
        adapt_options=AdaptOptions(r=2),
        drop_path=0.1,
    )
    texts = [str(w.message) for w in recwarn if "has no effect" in str(w.message)]
    assert [text.partition(" has")[0] for text in texts] == [
        "--model.adapt_options.r",
        "--model.drop_path",
    ]
    assert all("--model.adapt Frozen" in text for text in texts)

"""A head, a loss and an adaptation of the user's: trained by the command line, loaded with trust, exported merged."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import vfm
from tests.image_folders import write_image_folder
from tests.tasks.tiny import VIT, fit, shapes, trainer, vit
from vfm.bundle.export import export
from vfm.cli import main
from vfm.losses import DetectionLoss, Loss
from vfm.models.adapt import AdaptOptions
from vfm.models.adaptation import Adaptation
from vfm.models.backbone import Backbone
from vfm.models.weights import WeightsError
from vfm.spec import SpecError
from vfm.tasks import BaseTask, ClassificationTask
from vfm.tasks.labels import LabelError
from vfm.types import Labels, require_target

HEAD = '''
from torch import nn

from vfm import ClassificationHead


class MyHead(ClassificationHead):
    """Two layers on the mean of the tokens."""

    def __init__(self, hidden: int = 16, act: str = "GELU") -> None:
        super().__init__()
        self.hidden = hidden
        self.act = act

    def build(self, info, num_labels):
        self.first = nn.Linear(info.token_width, self.hidden)
        self.last = nn.Linear(self.hidden, num_labels)

    def forward(self, features):
        hidden = getattr(nn, self.act)()(self.first(features.tokens))
        return {"logits": self.last(hidden.mean(1))}
'''
LOSS = '''
from torch.nn import functional as F

from vfm import Loss
from vfm.types import Labels, require_target


class MyLoss(Loss):
    """Cross-entropy, and a penalty of large logits."""

    def __init__(self, penalty: float = 0.1) -> None:
        super().__init__()
        self.penalty = penalty

    def forward(self, raw, batch):
        labels = require_target(batch, Labels, self)
        return {
            "entropy": F.cross_entropy(raw["logits"], labels.label, reduction="sum"),
            "penalty": self.penalty * raw["logits"].square().sum(),
        }
'''
ADAPTATION = '''
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
CODE = {"mypkg": HEAD, "myloss": LOSS, "scaling": ADAPTATION}
TRUST = [*CODE]
SPECS = {
    "head": {"class_path": "mypkg.MyHead", "init_args": {"hidden": 8, "act": "GELU"}},
    "loss": {"class_path": "myloss.MyLoss", "init_args": {"penalty": 0.5}},
    "adapt": {
        "class_path": "scaling.ScaleTuning",
        "init_args": {"target": "qkv", "start": 0.75},
    },
}
SIZES = [(40, 31), (17, 63), (32, 32), (55, 20), (9, 11)]


def forget() -> None:
    for name in CODE:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    return write_image_folder(root, num_classes=2, images_per_class=20, size=SIZES)


@pytest.fixture(scope="module")
def checkpoint(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trained by the command line, with all three."""
    root = tmp_path_factory.mktemp("own")
    for name, text in CODE.items():
        (root / f"{name}.py").write_text(text, encoding="utf-8")
    sys.path.insert(0, str(root))
    forget()
    model = Backbone("vit_tiny_patch16_224", pretrained=False, image_size=32, arguments=VIT)
    torch.save(model.model.state_dict(), root / "start.pth")
    options = {
        "--model": "ClassificationTask",
        "--model.backbone": "vit_tiny_patch16_224",
        "--model.weights": str(root / "start.pth"),
        "--model.image_size": "32",
        "--model.backbone_args": json.dumps(VIT),
        "--model.head": "mypkg.MyHead",
        "--model.head.hidden": "8",
        "--model.loss": "myloss.MyLoss",
        "--model.loss.penalty": "0.5",
        "--model.adapt": "scaling.ScaleTuning",
        "--model.adapt.start": "0.75",
        "--data": "FolderData",
        "--data.root": str(images),
        "--data.num_workers": "0",
        "--data.batch_size": "16",
        "--trainer.max_epochs": "1",
        "--trainer.log_every_n_steps": "1",
        "--trainer.accelerator": "cpu",
        "--trainer.default_root_dir": str(root / "runs"),
        "--trainer.enable_progress_bar": "false",
        "--trainer.enable_model_summary": "false",
    }
    assert main(["fit", *(word for pair in options.items() for word in pair)]) == 0
    (path,) = root.rglob("best.ckpt")
    yield path
    sys.path.remove(str(root))
    forget()


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, images: Path) -> Path:
    out = checkpoint.parent / "bundle"
    with pytest.raises(SpecError, match="whose code is not part of vfm"):
        export(checkpoint, images=images, out=out)
    assert not out.exists()
    assert export(checkpoint, images=images, out=out, trust=TRUST) == out
    return out


@pytest.mark.parametrize("part", SPECS)
def test_the_checkpoint_names_each_part(checkpoint: Path, part: str) -> None:
    entry = torch.load(checkpoint, weights_only=True)["vfm"]
    assert entry["model"]["init_args"][part] == SPECS[part]
    assert BaseTask.load(checkpoint, trust=TRUST).spec["init_args"][part] == SPECS[part]


@pytest.mark.parametrize("load", [BaseTask.load, vfm.load])
@pytest.mark.parametrize("part", SPECS)
def test_loading_asks_for_trust_in_each(checkpoint: Path, load: object, part: str) -> None:
    forget()
    with pytest.raises(SpecError, match="whose code is not part of vfm"):
        load(checkpoint)  # type: ignore[operator]
    assert not sys.modules.keys() & CODE.keys()
    path = SPECS[part]["class_path"]
    module = path.partition(".")[0]
    with pytest.raises(SpecError) as caught:
        load(checkpoint, trust=[name for name in CODE if name != module])  # type: ignore[operator]
    text = str(caught.value)
    assert f"'{path}', whose code is not part of vfm" in text
    assert f"trust=['{module}'] in Python, --trust {module} on the command line" in text
    assert module not in sys.modules


def test_a_trusted_checkpoint_comes_back(checkpoint: Path) -> None:
    task = BaseTask.load(checkpoint, trust=TRUST)
    assert type(task.head).__name__ == "MyHead"
    assert type(task.criterion).__name__ == "MyLoss"
    assert task.head.hidden == 8
    assert task.head.first.weight.shape == (8, 32)
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert torch.equal(task.head.last.weight, stored["head.last.weight"])


def test_the_command_line_asks_for_trust_too(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["test", "--ckpt_path", str(checkpoint), "--trainer.default_root_dir", str(tmp_path)]
    words += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    words += ["--trust", "myloss", "--trust", "scaling"]
    assert main(words) == 1
    assert "--trust mypkg" in capsys.readouterr().err
    assert main([*words, "--trust", "mypkg"]) == 0
    results = json.loads((checkpoint.parent / "results.json").read_text(encoding="utf-8"))
    assert results["test"]["num_samples"] == 4


def test_the_bundle_agrees_and_needs_no_code_of_the_user(
    checkpoint: Path, bundle: Path, images: Path
) -> None:
    parity = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    assert parity["passed"] is True
    assert parity["num_images"] == 40
    assert parity["top1_changes"] == 0
    forget()
    files = sorted(images.rglob("*.png"))[::5]
    exported = vfm.load(bundle)
    assert not sys.modules.keys() & CODE.keys()
    model = vfm.load(checkpoint, trust=TRUST)
    for ours, theirs in zip(model.predict(files), exported.predict(files), strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)


def test_the_terms_of_the_loss_are_logged(checkpoint: Path) -> None:
    with (checkpoint.parents[1] / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {"train/entropy", "train/penalty", "val/loss"} <= set(rows[0])
    assert any(float(row["val/loss"]) > 0 for row in rows if row["val/loss"])


def test_the_adaptation_learns_with_its_own_rate(checkpoint: Path) -> None:
    task = BaseTask.load(checkpoint, trust=TRUST)
    assert task.optim.lr * task.optim.backbone_factor == pytest.approx(2e-3)
    learning = {n: p for n, p in task.backbone.named_parameters() if p.requires_grad}
    assert learning.keys() == {f"model.blocks.{i}.attn.qkv.scale" for i in range(2)}
    assert all(bool((p != 0.75).any()) for p in learning.values())


def test_the_adapter_file_holds_what_was_learned(checkpoint: Path) -> None:
    adapter = checkpoint.with_name("adapter.safetensors")
    task, same = (BaseTask.load(path, trust=TRUST) for path in (checkpoint, adapter))
    pixels = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(task(pixels)["logits"], same(pixels)["logits"])


def test_the_adaptation_is_merged_into_the_graph_and_stays_in_the_task(
    checkpoint: Path, bundle: Path, images: Path
) -> None:
    names = {i.name for i in onnx.load(bundle / "model.onnx").graph.initializer}
    assert names
    assert not any("scale" in name for name in names)
    model = vfm.load(checkpoint, device="cpu", trust=TRUST)
    image = next(images.rglob("*.png"))
    agreement = model.predict(image).compare(vfm.load(bundle, device="cpu").predict(image))
    assert agreement.difference < 1e-4
    assert not agreement.changed
    assert any(name.endswith(".scale") for name, _ in model.task.backbone.named_parameters())


def test_a_checkpoint_is_no_weights_file_until_its_adaptation_is_merged(
    checkpoint: Path, tmp_path: Path
) -> None:
    settings = {"pretrained": False, "image_size": 32, "arguments": VIT}
    with pytest.raises(WeightsError, match=r"not part of vfm.*task\.adaptation\.merge"):
        Backbone("vit_tiny_patch16_224", weights=str(checkpoint), **settings)
    task = BaseTask.load(checkpoint, trust=TRUST)
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


class Squares(Loss):
    """The squares of the logits: each image has its own, though it only says their sum."""

    def forward(self, raw: Any, batch: Any) -> dict[str, torch.Tensor]:
        require_target(batch, Labels, self)
        return {"squares": raw["logits"].square().sum()}


def test_the_loss_of_each_image_is_that_of_a_batch_of_one() -> None:
    logits = torch.randn(4, 3)
    batch: Any = {
        "image": torch.zeros(4, 2, 2, 3),
        "target": Labels(torch.zeros(4, dtype=torch.int64)),
        "index": torch.arange(4),
        "name": list("abcd"),
        "skipped": [],
    }
    losses = Squares().per_image({"logits": logits}, batch)
    torch.testing.assert_close(losses, logits.square().sum(1))


def test_class_weights_need_a_loss_that_takes_them(tmp_path: Path) -> None:
    with pytest.raises(
        LabelError,
        match=r"Squares takes no class_weights, which are balanced\. Derive it from vfm\.Cl",
    ):
        fit(tmp_path, vit(loss=Squares(), class_weights="balanced"))


def test_a_loss_of_another_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="DetectionLoss reads Objects, but the data gives Labels"):
        trainer(tmp_path).fit(vit(loss=DetectionLoss()), datamodule=shapes())


def test_all_losses_have_one_base() -> None:
    named = [vfm.CrossEntropy, vfm.FocalLoss, vfm.BinaryCrossEntropy, vfm.AsymmetricLoss]
    assert all(issubclass(loss, vfm.ClassificationLoss) for loss in named)
    assert all(issubclass(k, vfm.Loss) for k in (*named, vfm.DetectionLoss, vfm.DeepfakeLoss))

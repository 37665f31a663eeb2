from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import vfm
from tests.image_folders import write_image_folder
from vfm.bundle.export import export
from vfm.cli import main
from vfm.spec import SpecError
from vfm.tasks import BaseTask

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
SIZES = [(40, 31), (17, 63), (32, 32), (55, 20), (9, 11)]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    return write_image_folder(root, num_classes=2, images_per_class=20, size=SIZES)


@pytest.fixture(scope="module")
def checkpoint(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trained by the command line with a head of the user's."""
    root = tmp_path_factory.mktemp("own")
    (root / "mypkg.py").write_text(HEAD, encoding="utf-8")
    sys.path.insert(0, str(root))
    sys.modules.pop("mypkg", None)
    options = {
        "--model": "ClassificationTask",
        "--model.backbone": "vit_tiny_patch16_224",
        "--model.pretrained": "false",
        "--model.image_size": "32",
        "--model.backbone_args": '{"embed_dim": 32, "depth": 2, "num_heads": 2}',
        "--model.head": "mypkg.MyHead",
        "--model.head.hidden": "8",
        "--data": "FolderData",
        "--data.root": str(images),
        "--data.num_workers": "0",
        "--data.batch_size": "16",
        "--trainer.max_epochs": "1",
        "--trainer.accelerator": "cpu",
        "--trainer.default_root_dir": str(root / "runs"),
        "--trainer.enable_progress_bar": "false",
        "--trainer.enable_model_summary": "false",
    }
    assert main(["fit", *(word for pair in options.items() for word in pair)]) == 0
    (path,) = root.rglob("best.ckpt")
    yield path
    sys.path.remove(str(root))
    sys.modules.pop("mypkg", None)


def test_the_checkpoint_names_the_head(checkpoint: Path) -> None:
    entry = torch.load(checkpoint, weights_only=True)["vfm"]
    assert entry["model"]["init_args"]["head"] == {
        "class_path": "mypkg.MyHead",
        "init_args": {"hidden": 8, "act": "GELU"},
    }


@pytest.mark.parametrize("load", [BaseTask.load, vfm.load])
def test_loading_asks_for_trust(checkpoint: Path, load: object) -> None:
    sys.modules.pop("mypkg", None)
    with pytest.raises(SpecError) as caught:
        load(checkpoint)  # type: ignore[operator]
    text = str(caught.value)
    assert "'mypkg.MyHead', whose code is not part of vfm" in text
    assert "trust=['mypkg'] in Python, --trust mypkg on the command line" in text
    assert "mypkg" not in sys.modules


def test_a_trusted_head_comes_back(checkpoint: Path) -> None:
    task = BaseTask.load(checkpoint, trust=["mypkg"])
    assert type(task.head).__name__ == "MyHead"
    assert task.head.hidden == 8
    assert task.head.first.weight.shape == (8, 32)
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert torch.equal(task.head.last.weight, stored["head.last.weight"])


def test_the_command_line_asks_for_trust_too(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["test", "--ckpt_path", str(checkpoint), "--trainer.default_root_dir", str(tmp_path)]
    words += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    assert main(words) == 1
    assert "--trust mypkg" in capsys.readouterr().err
    assert main([*words, "--trust", "mypkg"]) == 0
    results = json.loads((checkpoint.parent / "results.json").read_text(encoding="utf-8"))
    assert results["test"]["num_samples"] == 4


def test_it_is_exported_and_agrees(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(SpecError, match="mypkg"):
        export(checkpoint, images=images, out=out)
    assert not out.exists()
    assert export(checkpoint, images=images, out=out, trust=["mypkg"]) == out
    parity = json.loads((out / "parity.json").read_text(encoding="utf-8"))
    assert parity["passed"] is True
    assert parity["num_images"] == 40
    assert parity["top1_changes"] == 0
    sys.modules.pop("mypkg", None)
    files = sorted(images.rglob("*.png"))[::5]
    bundle = vfm.load(out)
    assert "mypkg" not in sys.modules  # a bundle needs no code of the user's
    model = vfm.load(checkpoint, trust=["mypkg"])
    for ours, theirs in zip(model.predict(files), bundle.predict(files), strict=True):
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-3)

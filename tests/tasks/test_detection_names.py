"""DetectionHead was the DETR; it is the contract now, and what names the old one goes on as DetrHead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.tasks.test_detection import scenes, task
from tests.tasks.tiny import stored, trainer
from vfm.cli import main
from vfm.models.heads import DetectionHead, DetrHead, Head
from vfm.spec import SpecError, build
from vfm.tasks import BaseTask

WORDS = ["fit", "--model", "DetectionTask", "--model.backbone", "test_vit"]
WORDS += ["--data", "DetectionData", "--data.root", "DetectionHead"]
OLD = "vfm.models.heads.detection.DetectionHead"


def resolved(words: list[str], capsys: Any) -> dict[str, Any]:
    assert main([*WORDS, *words, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize(
    "words",
    [
        ["--model.head", "DetectionHead"],
        ["--model.head=DetectionHead"],
        ["--model.head", OLD],
        ["--model.head=vfm.DetectionHead"],
    ],
)
def test_words_of_earlier_versions(words: list[str], capsys: Any) -> None:
    with pytest.warns(DeprecationWarning, match=r"DetectionHead is now \S*DetrHead\."):
        config = resolved([*words, "--model.head.size", "small"], capsys)
    head = config["model"]["init_args"]["head"]
    assert head["class_path"].endswith(".DetrHead")
    assert head["init_args"]["size"] == "small"
    assert config["data"]["init_args"]["root"] == "DetectionHead"  # a folder may be called so


@pytest.mark.parametrize("written", ["DetectionHead", "vfm.DetectionHead", OLD])
@pytest.mark.parametrize("bare", [True, False])
def test_recipes_of_earlier_versions(written: str, bare: bool, tmp_path: Path, capsys: Any) -> None:
    head = written if bare else {"class_path": written, "init_args": {"size": "small"}}
    recipe = {"model": {"class_path": "DetectionTask", "init_args": {"head": head}}}
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(recipe))
    with pytest.warns(DeprecationWarning, match="DetectionHead is now"):
        config = resolved(["--config", str(path)], capsys)
    head = config["model"]["init_args"]["head"]
    assert head["class_path"].endswith(".DetrHead")
    assert head["init_args"]["size"] == ("nano" if bare else "small")


def test_arguments_of_the_usual_head_and_loss_need_no_name(capsys: Any) -> None:
    words = ["--model.head.size", "small", "--model.loss.distance", "3"]
    model = resolved(words, capsys)["model"]["init_args"]
    assert model["head"]["class_path"].endswith(".DetrHead")
    assert model["head"]["init_args"]["size"] == "small"
    assert model["loss"]["class_path"].endswith(".DetectionLoss")
    assert model["loss"]["init_args"]["distance"] == 3


def test_another_head_is_refused_by_the_contract(capsys: Any) -> None:
    assert main([*WORDS, "--model.head", "LinearHead"]) != 0
    said = capsys.readouterr().err
    assert "--model.head is 'LinearHead', but there is no such DetectionHead." in said
    assert "Choices: DenseHead, DetrHead" in said


def test_checkpoints_of_earlier_versions(tmp_path: Path) -> None:
    made = trainer(tmp_path, limit_train_batches=1, limit_val_batches=1)
    made.fit(task(), datamodule=scenes())
    path = tmp_path / "checkpoints" / "last.ckpt"
    content = stored(path)
    content["vfm"]["model"]["init_args"]["head"]["class_path"] = OLD
    content["vfm"]["head"]["class_path"] = OLD
    torch.save(content, tmp_path / "old.ckpt")
    with pytest.warns(DeprecationWarning, match=r"is now vfm\.models\.heads\.detr\.DetrHead"):
        loaded = BaseTask.load(tmp_path / "old.ckpt")
    assert type(loaded.head) is DetrHead
    assert loaded.head.shape.num_queries == 20


class Centres(DetectionHead):
    """A head of the user's: an object of one size around every pixel of the last map."""

    uses = ("maps",)

    def build(self, info: Any, num_labels: int) -> None:
        self.layer = torch.nn.Conv2d(info.map_widths[-1], num_labels, 1)

    def forward(self, features: Any) -> dict[str, torch.Tensor]:
        logits = self.layer(features.maps[-1])
        rows, columns = logits.shape[-2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        side = torch.full((rows, columns), 0.2)
        boxes = torch.stack([(x + 0.5) / columns, (y + 0.5) / rows, side, side], -1)
        boxes = boxes.flatten(0, 1).expand(len(logits), -1, -1)
        return {"logits": logits.flatten(2).transpose(1, 2), "boxes": boxes}

    def decode(self, raw: Any, geometry: Any = None) -> dict[str, torch.Tensor]:
        return DetrHead.decode(self, raw, geometry)  # type: ignore[arg-type]


def test_a_head_of_another_kind_trains_with_the_same_loss(tmp_path: Path) -> None:
    made = trainer(tmp_path, limit_train_batches=2)
    made.fit(task(head=Centres()), datamodule=scenes())
    assert 0 <= float(made.callback_metrics["val/AP"]) <= 1
    assert {"train/classes", "train/distance", "train/overlap"} <= set(made.callback_metrics)


def test_the_contract_makes_no_head() -> None:
    with pytest.raises(TypeError, match="abstract"):
        DetectionHead()  # type: ignore[abstract]
    assert issubclass(DetrHead, DetectionHead)
    with pytest.warns(DeprecationWarning, match="is now"):
        assert type(build({"class_path": OLD, "init_args": {}}, base=Head)) is DetrHead
    with pytest.raises(SpecError, match="is not a DetectionHead"):
        build({"class_path": "vfm.models.heads.LinearHead", "init_args": {}}, base=DetectionHead)

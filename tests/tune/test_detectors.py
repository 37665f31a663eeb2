"""`vfm tune` on images with boxes: a table of backbones, the best detector finished, a recipe that makes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import vfm
from tests.data.boxes_written import write
from vfm.cli import main
from vfm.training.planning import Plan, TimedTrial
from vfm.tune import detectors

TINY = ["--backbone", "test_vit,test_efficientnet", "--pretrained", "false", "--image-size", "64"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("tune"), "coco")


@pytest.mark.slow
def test_backbones_are_compared_and_the_best_is_finished(
    scenes: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def plan(trial: TimedTrial, seconds: float) -> Plan:
        assert trial.steps
        assert 0 < seconds < 600
        return Plan(2, 1, 60.0, 4, batch_size=4, learning_rate=5e-4)

    monkeypatch.setattr(detectors, "plan_training", plan)
    out = tmp_path / "out"
    assert main(["tune", str(scenes), *TINY, "--minutes", "10", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    rows = results["tune"]["backbones"]
    assert [row["backbone"] for row in rows] == ["test_vit", "test_efficientnet"]
    best = max(rows, key=lambda row: row["AP"])
    assert results["tune"]["chosen"] == best["backbone"]
    assert results["val"]["AP"] == best["AP"]
    assert f"The best AP on the val split: {best['backbone']}." in text
    assert f"vfm export {out / 'model.ckpt'} --images {scenes} -o bundle" in text
    picture = next(scenes.rglob("*.png"))
    assert vfm.load(out / "model.ckpt").predict(picture).to_dict()["task"] == "detection"
    page = (out / "report.html").read_text()
    assert "AP50 with its 95 % interval over images" in page
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["model"]["init_args"]["optim"]["lr"] == 5e-4
    assert recipe["data"]["init_args"]["batch_size"] == 4
    words = ["fit", "--config", str(out / "recipe.yaml"), "--trainer.fast_dev_run", "1"]
    assert main([*words, "--trainer.default_root_dir", str(tmp_path)]) == 0


def test_options_of_labels_are_refused(scenes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(scenes), *TINY, "--key-column", "patient"]) == 1
    assert "--key-column is for images with labels, and" in capsys.readouterr().err


def test_the_optimizer_is_that_of_the_recipe() -> None:
    path = Path(__file__).parents[2] / "recipes/detection/small_data.yaml"
    arguments = yaml.safe_load(path.read_text())["model"]["init_args"]
    assert dict(detectors.OPTIM) == arguments["optim"]
    assert arguments["head"] == {"class_path": "DenseHead"}
    for name in ("norm_stats", "lp_ft"):
        assert arguments[name] == detectors.TASK[name]

"""`vfm tune`: a table, a JSON file, and a recipe that runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.image_folders import write_image_folder
from vfm.cli import main
from vfm.data import FolderData
from vfm.data.auto import SampledData, SourceError, draw, open_data

TINY = ["--backbone", "test_vit", "--pretrained", "false", "--image_size", "32", "--fit", "squash"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("tune") / "images", images_per_class=24)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))


def test_every_adaptation_is_tried_and_the_recipe_trains(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = [
        "tune",
        str(images),
        *TINY,
        "--minutes",
        "0.5",
        "--num_images",
        "24",
        "--out",
        str(out),
    ]
    assert main(words) == 0, capsys.readouterr().err
    text = capsys.readouterr().out
    names = ["kNN", "linear", "ln", "lora", "full"]
    for name in names:
        assert f"\n{name} " in text
    assert "A small ViT does not always win on a tiny set" in text
    found = json.loads((out / "tune.json").read_text())
    assert [trial["name"] for trial in found["trials"]] == names
    for trial in found["trials"]:
        assert 0 <= trial["low"] <= trial["score"] <= trial["high"] <= 1
        assert trial["seconds"] > 0
        assert trial["ms"] > 0
    sizes = {trial["name"]: trial["size_mib"] for trial in found["trials"]}
    assert sizes["kNN"] == 0 < sizes["linear"] < sizes["ln"] < sizes["lora"] < sizes["full"]
    best = max(found["trials"][1:], key=lambda trial: trial["score"])
    assert found["winner"] == best["name"]
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["model"]["init_args"]["adapt"] == best["name"]
    fit = ["fit", "--config", str(out / "recipe.yaml"), "--trainer.fast_dev_run", "true"]
    assert main([*fit, "--trainer.enable_progress_bar", "false"]) == 0, capsys.readouterr().err


def test_too_little_time_is_said(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", str(images), *TINY, "--minutes", "0.0001"]) == 1
    text = capsys.readouterr().err
    assert "The time is enough for 0 images of 3 classes" in text
    assert "Give --minutes " in text


def test_what_is_no_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"does not exist\. Give a folder of class folders"):
        open_data(tmp_path / "nothing")
    (tmp_path / "text.txt").write_text("")
    with pytest.raises(SourceError, match=r"is a file of another kind"):
        open_data(tmp_path / "text.txt")


def test_a_sample_has_every_class_alike(images: Path) -> None:
    data = SampledData(FolderData(images), num_train=10, num_val=6)
    data.setup("fit")
    labels = [record.label for record in data.records["train"]]
    assert sorted(labels.count(c) for c in range(3)) == [3, 3, 4]
    assert len(data.records["val"]) == 6
    whole = FolderData(images)
    whole.setup("fit")
    assert draw(whole.records["train"], 10_000, 0) == whole.records["train"]
    assert draw(whole.records["train"], 5, 0) != draw(whole.records["train"], 5, 1)

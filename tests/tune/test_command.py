"""`vfm tune`: a ladder, a finished model that answers, a page, a recipe that makes the same, a bundle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import vfm
from tests.image_folders import deepen_images, write_image_folder
from vfm.cli import main
from vfm.metrics import Interval
from vfm.training.selection import Gain
from vfm.tune import finetuned
from vfm.tune.command import choose_way
from vfm.tune.ways import UntriedWay, Way

TINY = ["--backbone", "test_vit", "--pretrained", "false", "--image_size", "32", "--fit", "squash"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("tune") / "images", images_per_class=8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_fine_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if trainings took too long, however fast the machine."""
    monkeypatch.setattr(finetuned.FineTuner, "expect_seconds", lambda *_: 1000.0)


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["tune", *words]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.usefixtures("no_fine_tuning")
def test_frozen_heads_answer_in_seconds(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    text = run(capsys, str(images), *TINY, "--minutes", "0.5", "--out", str(out))
    for name in ("nearest mean", "LDA, shrunk", "1-nearest-neighbors", "5-nearest-neighbors"):
        assert f"\n{name}" in text
    for name in ("all weights (full)", "the norm layers (ln)"):
        assert f"\nfine-tuning of {name}  " in text
    assert text.count("not tried: one fold and the final fit would need --minutes") == 3
    assert "Whether fine-tuning pays is not known: it was not tried." in text
    assert f"Next: vfm export {out / 'model.ckpt'} --images {images} -o bundle" in text
    results = json.loads((out / "results.json").read_text())["cross-validation"]
    assert results["num_images"] == results["num_samples"] == 24
    for way in results["ways"]:
        assert 0 <= way["low"] <= way["value"] <= way["high"] <= 1
        assert way["folds"] == [8, 8]
    # A slow machine leaves out more.
    assert {way["name"] for way in results["not_tried"]} >= {"full", "ln", "lora"}
    assert results["chosen"] == results["ways"][0]["name"]
    page = (out / "report.html").read_text()
    assert results["chosen"] in page
    assert "Most confident mistakes" in page
    # The finished model answers, and has learned from all images.
    model = vfm.load(out / "model.ckpt", device="cpu")
    paths = sorted(images.rglob("*.png"))
    right = [model.predict(path).label == path.parent.name for path in paths]
    assert np.mean(right) >= results["accuracy"]["value"]
    # The recipe learns from the same images.
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert recipe["model"]["init_args"]["adapt"] == "linear"
    fit = ["fit", "--config", str(out / "recipe.yaml"), "--trainer.default_root_dir"]
    runs = tmp_path / "runs"
    assert main([*fit, str(runs), "--trainer.enable_progress_bar", "false"]) == 0
    assert (runs / "0" / "splits.csv").read_text().count(",train") == 24
    again = vfm.load(runs / "0" / "checkpoints" / "best.ckpt", device="cpu").task.head
    assert again.spec == model.task.head.spec


@pytest.mark.usefixtures("no_fine_tuning")
def test_images_of_12_bits_are_learned_as_those_of_8(images: Path, tmp_path: Path) -> None:
    deep, out = deepen_images(images, tmp_path / "deep"), tmp_path / "out"
    words = [str(deep), *TINY, "--minutes", "0.5", "--out", str(out), "--bit-depth", "12"]
    assert main(["tune", *words]) == 0
    model = vfm.load(out / "model.ckpt", device="cpu")
    assert yaml.safe_load((out / "recipe.yaml").read_text())["data"]["init_args"]["bit_depth"] == 12
    for path in sorted(deep.rglob("*.png"))[:3]:
        plain = images / path.relative_to(deep)
        assert np.array_equal(model.preprocess(path), model.preprocess(plain))
        assert model.preprocess(path).max() > 100


@pytest.mark.slow
def test_from_a_folder_to_a_proven_bundle(
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A tenth of the steps in five times the minutes: every fold fits on a busy machine too.
    for name in ("_STEPS", "_FEW_STEPS", "_FEWEST_STEPS"):
        monkeypatch.setattr(finetuned, name, getattr(finetuned, name) // 10)
    out, bundle = tmp_path / "out", tmp_path / "bundle"
    words = (str(images), *TINY, "--minutes", "10", "--out", str(out), "--export", str(bundle))
    text = run(capsys, *words)
    assert "parity on" in text
    results = json.loads((out / "results.json").read_text())["cross-validation"]
    full = next(way for way in results["ways"] if way["name"] == "full")
    assert full["folds"] == [3, 3]
    assert full["gain"]["low"] <= full["gain"]["value"] <= full["gain"]["high"]
    assert results["minutes"] < 10
    one = next(images.rglob("*.png"))
    answers = [vfm.load(path, device="cpu").predict(one) for path in (out / "model.ckpt", bundle)]
    assert answers[0].label == answers[1].label
    assert "cross-validation | accuracy" in (bundle / "card.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("no_fine_tuning")
def test_many_classes_of_two_images_beside_a_stated_test_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = ("train", "val", "test")
    root = write_image_folder(tmp_path / "i", num_classes=20, images_per_class=1, splits=splits)
    out = tmp_path / "out"
    text = run(capsys, str(root), *TINY, "--minutes", "5", "--out", str(out))
    assert "40 images of 20 classes to learn from" in text
    assert f"Next: vfm test --ckpt_path {out / 'model.ckpt'}" in text
    assert main(["test", "--ckpt_path", str(out / "model.ckpt")]) == 0
    results = json.loads((out / "results.json").read_text())
    assert results["test"]["num_samples"] == 20
    assert "cross-validation" in results


@pytest.mark.slow
@pytest.mark.usefixtures("no_fine_tuning")
def test_two_backbones_on_several_labels_and_keys_of_a_table(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.name for path in images.iterdir())
    # A second label for every other image; neighbors in the list share a key.
    rows = [
        f"{path},{path.parent.name}" + f"|{names[0]}" * (i % 2) + f",k{i // 2}"
        for i, path in enumerate(sorted(images.rglob("*.png")))
    ]
    table, out = tmp_path / "images.csv", tmp_path / "out"
    table.write_text("\n".join(["path,kinds,patient", *rows]) + "\n")
    words = [*TINY, "--minutes", "5", "--out", str(out)]
    words[1] = "test_vit,test_convnext"
    columns = ("--label-column", "kinds", "--label-separator", "|", "--key-column", "patient")
    text = run(capsys, str(table), *words, *columns)
    assert "ms an image" in text
    assert "\ntest_vit " in text
    assert "\ntest_convnext " in text
    assert "expect a mAP of" in text
    results = json.loads((out / "results.json").read_text())["cross-validation"]
    assert [row["backbone"] for row in results["backbones"]] == ["test_vit", "test_convnext"]
    assert results["mAP"]["low"] <= results["mAP"]["value"] <= results["mAP"]["high"]
    assert vfm.load(out / "model.ckpt", device="cpu").task.multilabel
    assert main(["tune", str(images), *words, "--weights", "one.pth"]) == 1
    assert "--backbone names 2 backbones, --weights 1 files" in capsys.readouterr().err
    assert main(["tune", str(images), *TINY, "--key-column", "patient"]) == 1
    assert "--key_column names a column of a table, but" in capsys.readouterr().err


def test_no_time_for_the_features_is_said(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tune", str(images), *TINY, "--minutes", "0.00001"]) == 1
    text = capsys.readouterr().err
    assert "The features of 24 images would take" in text
    assert "Give --minutes 0." in text


def test_an_existing_bundle_is_refused_before_any_work(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "file").touch()
    assert main(["tune", str(images), *TINY, "--export", str(tmp_path / "bundle")]) == 1
    shown = capsys.readouterr()
    assert "a bundle never changes once written" in shown.err
    assert shown.out == ""


def make_way(name: str, value: float, error: float | None = None) -> Way:
    interval = Interval(value, value - 0.1, value + 0.1)
    gain = None if error is None else Gain(Interval(value - 0.8, 0, 0), error)
    return Way(name, interval, 60, (1, 3), 1.0, 224, gain, 300 * (error is not None))


def test_fine_tuning_is_taken_where_it_is_better_by_more_than_chance() -> None:
    frozen = make_way("frozen", 0.8)
    untried = UntriedWay("lora", "no time", 3.0)
    assert choose_way(frozen, [make_way("full", 0.9, 0.03), untried]).name == "full"
    assert choose_way(frozen, [make_way("full", 0.82, 0.12), untried]).name == "frozen"
    assert (
        choose_way(frozen, [make_way("full", 0.7, 0.03), make_way("ln", 0.84, 0.02)]).name == "ln"
    )
    assert choose_way(frozen, [untried]).name == "frozen"

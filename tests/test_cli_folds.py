"""Cross-validation by one option of `vfm fit`: the folds, what they say together, and the model of all images."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import vfm
from tests.image_folders import write_image_folder
from tests.tasks.tiny import require_equal, stored
from vfm.cli import main
from vfm.cli.folds import FoldJob, choose_options
from vfm.tasks import ClassificationTask

RECIPE = """
model:
  class_path: ClassificationTask
  init_args: {backbone: test_vit, pretrained: false, image_size: 32, backbone_args: {depth: 1}}
data:
  class_path: FolderData
  init_args: {root: images, num_workers: 0, batch_size: 4, augment: light, test_fraction: 0.2}
trainer: {max_epochs: 2, enable_progress_bar: false, enable_model_summary: false}
"""
FIT = ["fit", "--config", "ok.yaml"]
FOLDS = ["--data.folds", "3"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "ok.yaml").write_text(RECIPE)
    write_image_folder(tmp_path / "images", images_per_class=10)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def read_out_of_fold(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())["out_of_fold"]


class CutError(Exception):
    pass


def cut_in(monkeypatch: pytest.MonkeyPatch, name: str, epoch: int = 1) -> None:
    """Make training fail where it comes to an epoch in a folder of this name."""

    def fail(task: Any) -> None:
        if task.trainer.log_dir.rstrip("/").endswith(name) and task.current_epoch == epoch:
            raise CutError(name)

    monkeypatch.setattr(ClassificationTask, "on_train_epoch_start", fail, raising=False)


@pytest.mark.slow
def test_folds_judge_all_images_and_one_model_learns_from_all(folder, monkeypatch, capsys):
    two = ["--data.folds", "2"]
    assert main([*FIT, *two]) == 0
    printed = capsys.readouterr().out
    run = Path("runs/0")
    rows = read_table(run / "out_of_fold.csv")
    splits = {row["path"]: row["split"] for row in read_table(run / "splits.csv")}
    assert Counter(splits.values()) == {"train": 24, "test": 6}
    assert [row["path"] for row in rows] == sorted(p for p, s in splits.items() if s == "train")
    for fold in range(2):
        held_out = [row for row in rows if row["fold"] == str(fold)]
        of_fold = read_table(run / f"fold_{fold}" / "splits.csv")
        assert {r["path"] for r in held_out} == {r["path"] for r in of_fold if r["split"] == "val"}
        assert Counter(row["true"] for row in held_out) != {}
        model = vfm.load(run / f"fold_{fold}" / "checkpoints" / "last.ckpt", device="cpu")
        for row in held_out[:3]:
            (best,) = model.predict(f"images/{row['path']}").top(1)
            assert best[0] == row["label"]
            assert best[1] == pytest.approx(float(row["score"]), abs=1e-4)
    results = read_out_of_fold(run)
    right = np.mean([row["label"] == row["true"] for row in rows])
    accuracy = results["accuracy"]
    assert accuracy["value"] == pytest.approx(right)
    assert 0 <= accuracy["low"] <= right <= accuracy["high"] <= 1
    assert [row["num_samples"] for row in results["folds"]] == [12, 12]
    assert np.mean([row["accuracy"] for row in results["folds"]]) == pytest.approx(right)
    page = (run / "report_out_of_fold.html").read_text()
    assert "By fold" in page
    assert f"Out of fold: accuracy {right:.4f} (95 % interval " in printed
    best = run / "checkpoints" / "best.ckpt"
    assert f"Best checkpoint: {best}\nNext: vfm test --ckpt_path {best}" in printed
    data = stored(best)["vfm"]["data"]
    assert {s: n["images"] for s, n in data["splits"]["splits"].items()} == {"train": 24, "test": 6}
    assert main(["test", "--ckpt_path", str(best), "--trainer.enable_progress_bar", "false"]) == 0
    assert set(json.loads((best.parent / "results.json").read_text())) == {"out_of_fold", "test"}

    # Cut in a fold, then in the last training, and gone on with: the end is the same.
    again = ["--trainer.default_root_dir", "cut", "--ckpt_path", "last"]
    for name in ("cut/0/fold_1", "cut/0"):
        cut_in(monkeypatch, name)
        assert main([*FIT, *two, *again]) == 1
        if name == "cut/0/fold_1":
            times = {p: p.stat().st_mtime_ns for p in Path("cut/0/fold_0").rglob("*")}
    cut_in(monkeypatch, "nowhere")
    assert main(["fit", *again]) == 0
    assert "Going on with the folds in cut/0" in capsys.readouterr().out
    assert times == {p: p.stat().st_mtime_ns for p in Path("cut/0/fold_0").rglob("*")}
    for name in ("fold_1/checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        require_equal(*(stored(Path(root) / "0" / name)["state_dict"] for root in ("runs", "cut")))
    assert read_table(Path("cut/0/out_of_fold.csv")) == rows

    # What does not go on with it is said.
    cut_in(monkeypatch, "cut/1/fold_0", epoch=0)
    assert main([*FIT, *FOLDS, *again, "--model.optim.lr", "0.07"]) == 1
    assert "No folds in cut are of a run like this one" in capsys.readouterr().out
    assert main([*FIT, "--data.folds", "4", *again]) == 2
    assert "cut/0 has 2 folds, not 4. Give --data.folds 2, or start" in capsys.readouterr().err
    Path("images", rows[0]["path"]).unlink()
    assert main(["fit", *again]) == 2
    message = "The images of fold 0 are not those of when it was trained: files were added, removed"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--data.folds 1", "folds is 1. Give 2 or more, such as 5"),
        ("--data.folds 3 --data.fold 3", "fold is 3. Choices: 0 to 2, since there are 3 folds."),
        ("--data.fold 3", "fold is 3, but nothing says of how many. Give folds too"),
        ("--data.folds 25", "folds is 25, but there are only 24 images to learn from: each fold"),
        (
            "--data.folds 3 --ckpt_path a.ckpt",
            "a.ckpt is of one training, and --data.folds 3 makes",
        ),
        (
            "--data.folds 3 --trainer.devices 2",
            "one device, not on 2 of 1 nodes. Give --trainer.dev",
        ),
        ("--data.folds 3 --trainer.logger false", "keeps the logs of each fold in a folder of its"),
    ],
)
def test_what_does_not_go_with_folds_is_said(words, message, folder, capsys):
    assert main([*FIT, *words.split()]) in (1, 2)
    assert message in capsys.readouterr().err


def test_fast_dev_run_tries_one_fold(folder):
    assert main([*FIT, *FOLDS, "--trainer.fast_dev_run", "true"]) == 0
    assert not Path("runs").exists()


def test_patience_gives_the_median_length_of_the_folds(tmp_path, capsys):
    contents = [
        {"states_val": False, "chosen": True, "facts": {"epochs": epochs, "steps": 10 * epochs}}
        for epochs in (3, 9, 4)
    ]
    no_val = ["--data.fold=null", "--trainer.limit_val_batches=0"]
    job = FoldJob(tmp_path, 3, [{"trainer": {"max_epochs": 20}}], [])
    assert choose_options(job, contents) == [*no_val, "--trainer.max_epochs=4"]
    assert "best after 3, 9, 4 epochs: the median, 4, it is." in capsys.readouterr().out
    job = job._replace(words=["--trainer.max_steps=200"])
    assert choose_options(job, contents) == [*no_val, "--trainer.max_steps=40"]
    assert choose_options(job, [content | {"chosen": False} for content in contents]) == no_val


@pytest.mark.slow
def test_a_stated_val_split_validates_the_model_of_all_other_images(folder):
    root = write_image_folder("stated", images_per_class=4, splits=("train", "val"))
    assert main([*FIT, "--data.root", str(root), *FOLDS, "--model.patience", "1"]) == 0
    run = Path("runs/0")
    assert read_out_of_fold(run)["num_samples"] == 12
    entry = stored(run / "checkpoints" / "best.ckpt")["vfm"]["data"]["splits"]["splits"]
    assert {split: part["images"] for split, part in entry.items()} == {"train": 12, "val": 12}


@pytest.mark.slow
def test_heads_that_are_solved_have_folds(folder):
    linear = ["--model.adapt", "linear", "--data.augment", "none"]
    assert main([*FIT, *FOLDS, *linear]) == 0
    results = read_out_of_fold(Path("runs/0"))
    assert results["num_samples"] == 24
    assert results["accuracy"]["value"] > 0.5
    for fold in range(3):
        of_fold = stored(Path(f"runs/0/fold_{fold}/checkpoints/last.ckpt"))["vfm"]["data"]["splits"]
        assert [of_fold["splits"][s]["images"] for s in ("train", "val", "test")] == [16, 8, 6]


@pytest.mark.slow
def test_several_labels_have_folds(folder):
    images = sorted(Path("images").rglob("*.png"))
    lines = [f"{p},{'|'.join(('a', 'b', 'c')[: 1 + i % 3])}" for i, p in enumerate(images)]
    Path("table.csv").write_text("\n".join(["path,label", *lines]))
    Path("table.yaml").write_text(
        RECIPE.replace("FolderData", "TableData")
        .replace("root: images", "table: table.csv, label_separator: '|'")
        .replace("image_size: 32", "image_size: 32, multilabel: true")
    )
    assert main(["fit", "--config", "table.yaml", *FOLDS]) == 0
    results = read_out_of_fold(Path("runs/0"))
    assert results["num_samples"] == 24
    assert 0 < results["mAP"]["low"] < results["mAP"]["value"]
    truth = {row["true"] for row in read_table(Path("runs/0/out_of_fold.csv"))}
    assert truth == {"a", "a|b", "a|b|c"}


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "metric"), [("detection", "AP50"), ("deepfake", "video_auc")])
def test_other_tasks_have_folds(recipe, metric, folder):
    path = Path(__file__).parents[1] / "recipes" / "debug" / f"{recipe}.yaml"
    quiet = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", "--config", str(path), "--data.folds", "2", *quiet]) == 0
    run = Path("runs/0")
    results = read_out_of_fold(run)
    assert metric in results
    assert [row["fold"] for row in results["folds"]] == [0, 1]
    assert sum(row["num_samples"] for row in results["folds"]) == results["num_samples"]
    assert set(read_table(run / "out_of_fold.csv")[0]) >= {"path", "label", "score", "fold"}
    assert (run / "report_out_of_fold.html").is_file()
    assert (run / "checkpoints" / "best.ckpt").is_file()


@pytest.mark.slow
def test_a_killed_process_is_gone_on_with(folder):
    command = [sys.executable, "-c", "from vfm.cli import main; main()", *FIT, *FOLDS]
    words = ["--trainer.max_epochs", "6", "--ckpt_path", "last"]
    whole = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert "Out of fold: accuracy" in whole.stdout, whole.stderr
    words += ["--trainer.default_root_dir", "cut"]
    process = subprocess.Popen([*command, *words], start_new_session=True)
    while not Path("cut/0/fold_1/checkpoints/last.ckpt").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path("cut/0/fold_1/held_out.pt").exists()
    rest = subprocess.run([*command, *words], capture_output=True, text=True, check=False)
    assert "Going on with the folds in cut/0" in rest.stdout, rest.stderr
    ends = [stored(Path(root) / "0/checkpoints/best.ckpt") for root in ("runs", "cut")]
    require_equal(*(end["state_dict"] for end in ends))
    first, second = (read_out_of_fold(Path(root) / "0") for root in ("runs", "cut"))
    assert first["accuracy"] == second["accuracy"]

"""Linear heads on a frozen backbone are solved: on all images, judged out of fold, and kept as any other head is."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vfm_runtime.errors import DataError, OptionError

from tests.image_folders import write_image_folder
from tests.tasks.tiny import fit, require_equal, shapes, stored, vit
from vfm.bundle.export import export
from vfm.cli import main
from vfm.data import FolderData, TableData
from vfm.losses import FocalLoss
from vfm.models.heads import LinearHead, NeighborsHead, VotingHead
from vfm.tasks import ClassificationTask
from vfm.tasks.checkpoint import Checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_image_folder(tmp_path / "images", images_per_class=8)


def open_folder(root: Path, **changes: Any) -> FolderData:
    return FolderData(root, batch_size=8, num_workers=0, **({"augment": "none"} | changes))


def read_out_of_fold(root: Path) -> dict[str, Any]:
    results = json.loads((root / "checkpoints" / "results.json").read_text())
    assert set(results) == {"out_of_fold"}
    return dict(results["out_of_fold"])


def test_drawn_validation_images_are_learned_from_and_the_split_says_so(
    tmp_path: Path, images: Path
) -> None:
    run = fit(tmp_path, vit(adapt="linear"), open_folder(images), max_epochs=7)
    assert run.current_epoch == 1
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("*.ckpt")) == [
        "best.ckpt",
        "last.ckpt",
    ]
    data = stored(tmp_path / "checkpoints" / "best.ckpt")["vfm"]["data"]
    with Path(data["spec"]["init_args"]["split_file"]).open() as file:
        splits = [row["split"] for row in csv.DictReader(file)]
    assert (splits.count("train"), splits.count("val"), splits.count("test")) == (21, 0, 3)
    results = read_out_of_fold(tmp_path)
    assert results["num_samples"] == 21
    assert results["accuracy"]["low"] <= results["accuracy"]["value"] <= results["accuracy"]["high"]
    assert (tmp_path / "checkpoints" / "report_out_of_fold.html").is_file()
    logged = float(run.callback_metrics["out_of_fold/accuracy"])
    assert logged == pytest.approx(results["accuracy"]["value"])


def test_data_that_draws_its_splits_anew_draws_no_validation_images(tmp_path: Path) -> None:
    fit(tmp_path, vit(adapt="linear"))
    spec = stored(tmp_path / "checkpoints" / "best.ckpt")["vfm"]["data"]["spec"]
    again = shapes(folds=spec["init_args"]["folds"])
    again.setup()
    assert {split: len(records) for split, records in again.records.items()} == {
        "train": 72,
        "test": 24,
    }


def test_a_stated_val_split_judges(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("val", 3)):
        write_image_folder(tmp_path / "images" / split, images_per_class=count)
    run = fit(tmp_path, vit(adapt="linear"), open_folder(tmp_path / "images"))
    assert read_out_of_fold(tmp_path)["num_samples"] == 18
    assert "val/accuracy" in run.callback_metrics


def test_a_resumed_run_solves_the_same_head(tmp_path: Path, images: Path) -> None:
    fit(tmp_path, vit(adapt="linear"), open_folder(images))
    last = tmp_path / "checkpoints" / "last.ckpt"
    before = ClassificationTask.load(last)
    task = vit(adapt="linear")
    data = open_folder(images, split_file=tmp_path / "splits.csv")
    fit(tmp_path / "on", task, data, ckpt_path=str(last))
    require_equal(before.head.state_dict(), task.head.state_dict())


def test_a_run_of_steps_goes_on_with_a_solved_head(tmp_path: Path, images: Path) -> None:
    fit(tmp_path, vit(adapt="linear", cache_features=False), open_folder(images), max_epochs=2)
    last = tmp_path / "checkpoints" / "last.ckpt"
    data = open_folder(images, split_file=tmp_path / "splits.csv")
    run = fit(tmp_path / "on", vit(adapt="linear"), data, ckpt_path=str(last), max_epochs=5)
    assert run.current_epoch == 1
    assert read_out_of_fold(tmp_path / "on")["num_samples"] == 18
    assert "val/accuracy" in run.callback_metrics


def test_a_trial_run_passes(tmp_path: Path, images: Path) -> None:
    fit(tmp_path, vit(adapt="linear"), open_folder(images), fast_dev_run=True)


@pytest.mark.parametrize("votes", [False, True])
def test_neighbors_are_stored(tmp_path: Path, images: Path, votes: bool) -> None:
    head: Any = NeighborsHead(k=3)
    if votes:
        head = VotingHead([LinearHead(solver="lda"), LinearHead(), NeighborsHead(reads="both")])
    task = vit(adapt="linear", head=head)
    fit(tmp_path, task, open_folder(images))
    assert read_out_of_fold(tmp_path)["num_samples"] == 21
    again = ClassificationTask.load(tmp_path / "checkpoints" / "best.ckpt")
    references = again.head.heads[2].references if votes else again.head.references
    assert len(references) == 21
    if votes:
        assert again.head.temperatures[2] != 1
    pixels = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    torch.testing.assert_close(again.answer(pixels), task.eval().answer(pixels))


@pytest.mark.parametrize(
    ("head", "options", "text"),
    [
        (NeighborsHead, {"augment": "light"}, "does not go with --data.augment light"),
        (NeighborsHead, {"adapt": "full"}, "but the backbone learns. Give --model.adapt linear."),
    ],
)
def test_neighbors_need_features_that_stay_as_they_are(
    tmp_path: Path, images: Path, head: Any, options: dict[str, Any], text: str
) -> None:
    task = vit(adapt=options.pop("adapt", "linear"), head=head())
    with pytest.raises(OptionError, match=text):
        fit(tmp_path, task, open_folder(images, **options))


def test_another_loss_is_trained_by_steps_and_says_so(
    tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        run = fit(tmp_path, vit(adapt="linear", loss=FocalLoss()), open_folder(images))
    assert "The head is trained by steps, since --model.loss FocalLoss is set." in caplog.text
    assert len(run.optimizers) == 1
    assert "out_of_fold/accuracy" not in run.callback_metrics


def write_table(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def list_rows(images: Path) -> list[dict[str, Any]]:
    return [
        {"path": f"{path.parent.name}/{path.name}", "label": path.parent.name}
        for path in sorted(images.rglob("*.png"))
    ]


def test_groups_are_not_divided_even_where_a_fold_lacks_a_class(
    tmp_path: Path, images: Path
) -> None:
    rows = [row | {"key": row["label"]} for row in list_rows(images)]
    for number, row in enumerate(rows):
        # All images of the first class in one group: no head of other folds knows it.
        row["key"] = row["key"] if row["label"] == rows[0]["label"] else str(number % 6)
    data = TableData(
        write_table(tmp_path, rows),
        root=images,
        key_column="key",
        augment="none",
        batch_size=8,
        num_workers=0,
        val_fraction=0,
        test_fraction=0,
    )
    task = vit(adapt="linear")
    fit(tmp_path, task, data)
    results = read_out_of_fold(tmp_path)
    assert results["num_samples"] == 24
    assert results["per_class"][0]["recall"] == 0


def test_several_labels_also_one_that_every_image_has(tmp_path: Path, images: Path) -> None:
    rows = [
        {
            "path": row["path"],
            "a": int("0" in row["label"]),
            "b": int("1" in row["label"] or number % 5 == 0),
            "all": 1,
        }
        for number, row in enumerate(list_rows(images))
    ]
    data = TableData(
        write_table(tmp_path, rows),
        root=images,
        label_column=["a", "b", "all"],
        augment="none",
        batch_size=8,
        num_workers=0,
        test_fraction=0,
    )
    task = vit(adapt="linear", multilabel=True, class_weights="balanced")
    fit(tmp_path, task, data)
    assert read_out_of_fold(tmp_path)["num_samples"] == 24
    pixels = torch.randint(0, 256, (5, 32, 32, 3), dtype=torch.uint8)
    assert (task.eval().answer(pixels)["scores"][:, 2] > 0.5).all()


def test_one_image_of_a_class_and_classes_with_fewer_images_than_folds(tmp_path: Path) -> None:
    for label, count in (("a", 1), ("b", 2), ("c", 9)):
        source = write_image_folder(tmp_path / f"s_{label}", images_per_class=9)
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for number, path in enumerate(sorted(source.rglob("*.png"))[:count]):
            path.rename(folder / f"{label}{number}.png")
    data = open_folder(tmp_path / "images", val_fraction=0, test_fraction=0)
    fit(tmp_path, vit(adapt="linear"), data)
    results = read_out_of_fold(tmp_path)
    assert results["num_samples"] == 12
    assert results["per_class"][0]["recall"] == 0


def test_equal_images_under_two_labels_are_said(tmp_path: Path, images: Path) -> None:
    first, second = (sorted((images / f"class_{k}").iterdir())[0] for k in range(2))
    second.write_bytes(first.read_bytes())
    data = open_folder(images, val_fraction=0, test_fraction=0)
    text = (
        "1 training images are equal to others with another label, such as class_1/.* to class_0/"
    )
    with pytest.warns(UserWarning, match=text):
        fit(tmp_path, vit(adapt="linear"), data)


def test_one_class_is_refused(tmp_path: Path) -> None:
    data = shapes()
    data.setup("fit")
    data.records = {"train": [r for r in data.records["train"] if r.label == 0]}
    with pytest.raises(
        DataError, match=r"All 16 training images are of the class '.*'. Give images"
    ):
        fit(tmp_path, vit(adapt="linear"), data)


@pytest.mark.slow
def test_a_thousand_classes_of_two_images_take_seconds() -> None:
    from vfm.heads_on_features import solve_linear

    generator = np.random.default_rng(0)
    means = generator.normal(size=(1000, 32))
    target = np.repeat(np.arange(1000), 2)
    features = means[target] + 0.5 * generator.normal(size=(2000, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solved = solve_linear(features, target, np.arange(2000) % 2)
    assert solved.metric > 0.3


@pytest.fixture
def solved(tmp_path: Path) -> Path:
    """A checkpoint of a head that was solved on 54 images; none is left for validation, 6 for the test."""
    images = write_image_folder(tmp_path / "images", images_per_class=20, size=(40, 30))
    fit(tmp_path, vit(adapt="linear"), open_folder(images))
    return tmp_path / "checkpoints" / "best.ckpt"


def test_it_is_calibrated_on_out_of_fold_scores(
    solved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(solved)]) == 0
    assert "Taking the out-of-fold scores of 54 training images." in capsys.readouterr().out
    written = json.loads((solved.parent / "calibration.json").read_text())
    assert written["num_images"] == 54
    assert written["rules"]["temperature"] == pytest.approx(1, abs=0.3)


@pytest.mark.slow
def test_an_export_calibrates_and_measures_without_validation_images(
    solved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"images": tmp_path / "images", "out": tmp_path / "bundle", "num_images": 4}
    export(solved, calibrate=True, fp16=True, **options)
    assert "The test images stand in." in caplog.text
    card = (tmp_path / "bundle" / "card.md").read_text()
    assert "out_of_fold | accuracy" in card
    assert "fitted on 54 validation images" in card


def test_validation_says_that_no_image_was_left(
    solved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "--ckpt_path", str(solved)]) == 1
    said = capsys.readouterr().err
    assert "There are no val images; found: 54 train, 6 test." in said
    assert "its metrics are under 'out_of_fold' in results.json" in said


def test_scores_of_another_training_are_not_taken(solved: Path, tmp_path: Path) -> None:
    with np.load(solved.parent / "out_of_fold.npz") as file:
        arrays = dict(file) | {"fingerprint": "another"}
    np.savez(solved.parent / "out_of_fold.npz", **arrays)
    assert Checkpoint.open(solved).out_of_fold is None

"""Several labels an image, from a table to the bundle."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import vfm_runtime
from PIL import Image

import vfm
from tests.tasks.tiny import shapes, stored, trainer, vit
from vfm.data import TableData
from vfm.losses import AsymmetricLoss
from vfm.tasks import BaseTask, ClassificationTask, Optim
from vfm.tasks.labels import LabelError

NAMES = ("blue", "green", "red")


def write_stripes(root: Path, seed: int = 0) -> Path:
    """Pictures with a stripe of each colour that applies."""
    root.mkdir(exist_ok=True)
    random = np.random.default_rng(seed)
    rows = []
    for number in range(120):
        image = random.integers(0, 60, (32, 36, 3), dtype=np.uint8)
        applying = [k for k in range(3) if random.random() < 0.4]
        for k in applying:
            image[:, 12 * k : 12 * k + 12, 2 - k] = 230
        Image.fromarray(image).save(root / f"{number:03d}.png")
        labels = "|".join(NAMES[k] for k in applying)
        split = "train" if number < 80 else "val" if number < 100 else "test"
        rows.append((f"{number:03d}.png", labels, split, "north" if number % 2 else "south"))
    with (root / "images.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split", "site"), *rows])
    return root / "images.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_stripes(tmp_path_factory.mktemp("stripes"))


def stripes(table: Path, **changes) -> TableData:
    settings = {"label_separator": "|", "allow_no_label": True, "group_columns": ["site"]}
    settings |= {"batch_size": 16, "num_workers": 0, "augment": "none"}
    return TableData(table, **(settings | changes))


def task(**changes) -> ClassificationTask:
    return vit(multilabel=True, optim=Optim(lr=5e-3), fit="squash", **changes)


@pytest.fixture(scope="module")
def run(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    made = trainer(root, max_epochs=30, check_val_every_n_epoch=5)
    made.fit(task(), datamodule=stripes(table))
    made.test(task(), datamodule=stripes(table), ckpt_path="best", verbose=False)
    return root / "checkpoints"


def test_it_learns_and_says_so(run: Path) -> None:
    results = json.loads((run / "results.json").read_text())["test"]
    assert results["num_samples"] == 20
    assert results["mAP"]["value"] > 0.9
    assert [row["label"] for row in results["per_class"]] == list(NAMES)
    assert {row["group"] for row in results["groups"]["site"]} == {"north", "south"}
    assert sum(row["num_samples"] for row in results["groups"]["site"]) == 20
    assert "confusion_matrix" not in results
    page = (run / "report_test.html").read_text()
    assert "Mean average precision" in page
    assert "By site" in page
    assert (run / "curves_test.png").is_file()


def test_best_is_chosen_by_mean_average_precision(run: Path) -> None:
    assert BaseTask.load(run / "best.ckpt").monitor == "val/mAP"
    callbacks = stored(run / "best.ckpt")["callbacks"]
    assert any("val/mAP" in name for name in callbacks)


def test_bundle_answers_as_the_model(run: Path, table: Path, tmp_path: Path) -> None:
    model = vfm.load(run / "best.ckpt", device="cpu")
    parity = model.export(tmp_path / "bundle", images=table.parent)
    assert parity.passed
    bundle = vfm_runtime.load(tmp_path / "bundle", device="cpu")
    assert bundle.contract.task == "multilabel"
    paths = sorted(table.parent.glob("*.png"))[100:]
    answers = bundle.predict(paths)
    for ours, theirs in zip(model.predict(paths), answers, strict=True):
        assert ours.multilabel
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
    sums = [answer.scores.sum() for answer in answers]
    assert np.ptp(sums) > 0.3  # independent: they do not sum to 1
    found = [[label for label, _ in answer.applying()] for answer in answers]
    assert [] in found
    assert any(len(labels) > 1 for labels in found)


def test_predictions_are_written(run: Path, table: Path, tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.predict(
        ClassificationTask.load(run / "best.ckpt"),
        datamodule=stripes(table),
        return_predictions=False,
    )
    with (tmp_path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120
    for row in rows:
        scores = [float(s) for s in row["score"].split("|") if s]
        assert len(scores) == len([name for name in row["label"].split("|") if name])
        assert all(score >= 0.5 for score in scores)
        assert scores == sorted(scores, reverse=True)


def test_another_loss(table: Path, tmp_path: Path) -> None:
    made = trainer(tmp_path, max_epochs=8)
    made.fit(task(loss=AsymmetricLoss(), class_weights="balanced"), datamodule=stripes(table))
    assert made.callback_metrics["val/mAP"] > 0.6


def test_the_task_and_the_data_must_agree(table: Path, tmp_path: Path) -> None:
    with pytest.raises(
        LabelError, match=r"The data has several labels an image.*--model\.multilabe"
    ):
        trainer(tmp_path).fit(vit(), datamodule=stripes(table))
    with pytest.raises(
        LabelError, match=r"The data has one label an image, the task has multilabel T"
    ):
        trainer(tmp_path).fit(task(), datamodule=shapes())


def test_testing_on_data_of_the_other_kind(run: Path, tmp_path: Path) -> None:
    text = r"trained with several labels an image, this data has one\. Give data of the same kind"
    with pytest.raises(LabelError, match=text):
        trainer(tmp_path).test(
            ClassificationTask.load(run / "best.ckpt"), datamodule=shapes(), verbose=False
        )


def test_data_that_says_nothing_of_a_label(run: Path, table: Path, tmp_path: Path) -> None:
    poorer = table.with_name("poorer.csv")
    poorer.write_text(table.read_text().replace("green", "red").replace("red|red", "red"))
    text = r"The data says nothing of 1 labels of the model: \['green'\]\. Add their columns"
    with pytest.raises(LabelError, match=text):
        trainer(tmp_path).test(
            ClassificationTask.load(run / "best.ckpt"),
            datamodule=stripes(poorer),
            verbose=False,
        )

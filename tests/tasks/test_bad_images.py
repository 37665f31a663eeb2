from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

import vfm
from tests.image_folders import write_image_folder
from vfm.data import FolderData
from vfm.preprocess import Preprocess
from vfm.tasks import ClassificationTask, Optim
from vfm.training.callbacks import UnreadableFilesError

NUM_TRAIN = 101  # of each of two classes; two bad files are just below 1 %


def vit(lr: float = 3e-3) -> ClassificationTask:
    return ClassificationTask(
        "vit_tiny_patch16_224",
        pretrained=False,
        image_size=16,
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 1},
        optim=Optim(lr=lr),
    )


def trainer(root: Path, **changes: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        max_epochs=1,
        default_root_dir=root,
        **changes,
    )


def spoil(path: Path, how: str) -> None:
    """Make a file unreadable: a JPEG without its second half, no bytes at all, or text."""
    if how == "truncated":
        Image.effect_noise((64, 64), 80).convert("RGB").save(path, format="JPEG")
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    else:
        path.write_bytes(b"" if how == "empty" else b"<html>404 not found</html>")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("template")
    sizes = [(16, 16), (12, 20), (9, 8)]
    for split, count in (("train", NUM_TRAIN), ("val", 3), ("test", 6)):
        write_image_folder(
            root,
            num_classes=2,
            images_per_class=count,
            size=sizes,
            splits=[split],
            seed=len(split),
        )
    return root


@pytest.fixture
def root(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "images"))


@pytest.fixture(scope="module")
def trained(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    data = FolderData(template, num_workers=0, augment="none")
    trainer(root).fit(vit(), datamodule=data)
    return root / "checkpoints" / "last.ckpt"


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("batch_size", [1, 64])
def test_few_bad_files_are_left_out_and_listed(root: Path, tmp_path: Path, batch_size: int) -> None:
    """With a batch of one, every file of a batch is unreadable."""
    bad = {"train/class_0/0003.png": "truncated", "train/class_1/0100.png": "empty"}
    for name, how in bad.items():
        spoil(root / name, how)
    data = FolderData(root, num_workers=0, augment="none", batch_size=batch_size)
    task = vit()
    made = trainer(tmp_path)
    with pytest.warns(UserWarning, match="2 files of 'train' could not be read"):
        made.fit(task, datamodule=data)
    batches = -(-2 * NUM_TRAIN // batch_size)
    assert made.global_step == batches
    assert all(torch.isfinite(p).all() for p in task.parameters())
    rows = table(tmp_path / "skipped_train.csv")
    assert [row["file"] for row in rows] == sorted(bad)
    assert "truncated" in rows[0]["reason"]
    assert "empty" in rows[1]["reason"]
    assert task.skipped.files["train"].keys() == bad.keys()
    assert not (tmp_path / "skipped_val.csv").exists()


def test_a_bad_batch_is_no_lesson(root: Path, tmp_path: Path) -> None:
    """The loss of an epoch is the mean over readable images."""
    spoil(root / "train/class_0/0003.png", "text")
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        data = FolderData(root, num_workers=0, augment="none", batch_size=1)
        made = trainer(tmp_path, limit_val_batches=0, enable_checkpointing=False)
        made.fit(vit(lr=1e-30), datamodule=data)
        losses.append(float(made.callback_metrics["train/loss_epoch"]))
        (root / "train/class_0/0003.png").unlink(missing_ok=True)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("split", ["train", "val"])
def test_many_bad_files_end_training(root: Path, tmp_path: Path, split: str) -> None:
    names = [f"{split}/class_0/{i:04d}.png" for i in range(3)]
    for name, how in zip(names, ("truncated", "empty", "text"), strict=True):
        spoil(root / name, how)
    data = FolderData(root, num_workers=0, augment="none", batch_size=64)
    with pytest.raises(UnreadableFilesError) as caught:
        trainer(tmp_path).fit(vit(), datamodule=data)
    text = str(caught.value)
    total = {"train": 2 * NUM_TRAIN, "val": 6}[split]
    assert f"of {total} files of '{split}' cannot be read, more than 1%:" in text
    assert any(f"  {name}: " in text for name in names)
    assert "Mend or remove these files" in text


def test_test_results_count_and_list_them(root: Path, tmp_path: Path, trained: Path) -> None:
    checkpoint = Path(shutil.copy(trained, tmp_path / "last.ckpt"))
    names = ["test/class_0/0001.png", "test/class_1/0000.png", "test/class_1/0005.png"]
    for name, how in zip(names, ("truncated", "empty", "text"), strict=True):
        spoil(root / name, how)
    data = FolderData(root, num_workers=0, batch_size=4)
    out = tmp_path / "out"
    trainer(out).test(ClassificationTask.load(checkpoint), datamodule=data)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["test"]
    assert results["num_skipped"] == 3
    assert sorted(results["skipped"]) == names
    assert all(results["skipped"].values())
    assert results["num_samples"] == 9
    assert [row["file"] for row in table(out / "skipped_test.csv")] == names
    matrix = torch.tensor(results["confusion_matrix"])
    assert matrix.sum(1).tolist() == [5, 4]
    good = [
        p for p in sorted((root / "test").rglob("*.png")) if str(p.relative_to(root)) not in names
    ]
    answers = vfm.load(checkpoint).predict(good)
    right = sum(a.label == p.parent.name for a, p in zip(answers, good, strict=True))
    assert results["accuracy"]["value"] == pytest.approx(right / 9)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_predictions_have_a_row_for_each_file(
    root: Path, tmp_path: Path, trained: Path, batch_size: int
) -> None:
    folder = root / "test"
    bad = {"class_0/0001.png": "truncated", "class_1/0000.png": "empty", "class_1/0005.png": "text"}
    for name, how in bad.items():
        spoil(folder / name, how)
    data = FolderData(folder, num_workers=0, batch_size=batch_size)
    trainer(tmp_path).predict(ClassificationTask.load(trained), datamodule=data)
    rows = {row["path"]: row for row in table(tmp_path / "predictions.csv")}
    files = sorted(folder.rglob("*.png"))
    assert sorted(rows) == [path.relative_to(folder).as_posix() for path in files]
    model = vfm.load(trained)
    for path in files:
        name = path.relative_to(folder).as_posix()
        row = rows[name]
        if name in bad:
            assert (row["label"], row["score"]) == ("", "")
            assert row["error"]
        else:
            answer = model.predict(path)
            assert row["label"] == answer.label
            assert float(row["score"]) == pytest.approx(answer.score, abs=2e-6)
            assert row["error"] == ""


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_sample_takes_the_place_of_another(root: Path, split: str) -> None:
    spoil(root / split / "class_0" / "0002.png", "empty")
    spoil(root / split / "class_1" / "0001.png", "text")
    data = FolderData(root, num_workers=0, augment="none", batch_size=4)
    data.preprocess = Preprocess(size=(16, 16))
    data.setup("fit")
    loader = data.train_dataloader() if split == "train" else data.test_dataloader()
    batches = list(loader)
    found = torch.cat([batch["index"] for batch in batches]).tolist()
    names = [name for batch in batches for name in batch["name"]]
    skipped = [name for batch in batches for name, _ in batch["skipped"]]
    records = data.records[split]
    bad = {f"{split}/class_0/0002.png", f"{split}/class_1/0001.png"}
    assert sorted(skipped) == sorted(bad)
    expected = [i for i, record in enumerate(records) if record.name not in bad]
    assert sorted(found) == expected
    for index, name in zip(found, names, strict=True):
        assert records[index].name == name
    for batch in batches:
        assert len(batch["image"]) + len(batch["skipped"]) <= 4
        labels = [records[i].label for i in batch["index"].tolist()]
        assert batch["target"].label.tolist() == labels

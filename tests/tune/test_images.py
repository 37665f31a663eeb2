"""Images that `vfm tune` learns from: all that have labels but the test's, their folds, what is said of bad ones."""

from __future__ import annotations

import csv
import logging
import shutil
from pathlib import Path

import pytest
from vfm_runtime.errors import DataError

from tests.image_folders import write_image_folder
from vfm.data import FolderData
from vfm.data.auto import SelectedData, draw_indices
from vfm.tune.images import open_pool


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_image_folder(tmp_path_factory.mktemp("pool") / "images", images_per_class=8)


def test_no_image_is_held_back_but_those_of_a_stated_test(images: Path, tmp_path: Path) -> None:
    assert len(open_pool(images, num_images=100, seed=0).indices) == 24
    root = write_image_folder(tmp_path, images_per_class=4, splits=("train", "val", "test"))
    pool = open_pool(root, num_images=100, seed=0)
    assert sorted({record.name.split("/")[0] for record in pool.records}) == ["train", "val"]
    assert len(pool.data.records["test"]) == 12
    # What a checkpoint remembers reads the same: all of them to learn from, and the test.
    spec = pool.data.keep_split(tmp_path)
    again = FolderData(**spec["init_args"])
    again.setup()
    assert {split: len(records) for split, records in again.records.items()} == {
        "train": 24,
        "test": 12,
    }


def test_of_many_images_as_many_of_each_class_are_drawn(
    images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pool = open_pool(images, num_images=10, seed=0)
    assert sorted(pool.target.tolist().count(c) for c in range(3)) == [3, 3, 4]
    assert "Of the 24 labelled images 10 are taken" in caplog.text
    assert draw_indices(pool.data.records["train"], 100, 0) == list(range(24))
    assert draw_indices(pool.data.records["train"], 5, 0) != draw_indices(
        pool.data.records["train"], 5, 1
    )


def test_folds_are_stratified_and_keep_equal_images_together(images: Path, tmp_path: Path) -> None:
    root = tmp_path / "copies"
    shutil.copytree(images, root)
    folder = next(path for path in sorted(root.iterdir()) if path.is_dir())
    for number in range(8):
        shutil.copy(folder / "0000.png", folder / f"copy-{number}.png")
    pool = open_pool(root, num_images=100, seed=0)
    folds = pool.draw_folds(4, 0)
    names = [f"{folder.name}/0000.png", *(f"{folder.name}/copy-{i}.png" for i in range(8))]
    first = [i for i, record in enumerate(pool.records) if record.name in names]
    assert len(first) == 9
    assert len(set(folds[first])) == 1
    others = [i for i in range(len(folds)) if pool.target[i] == 2]
    assert sorted((folds[others] == k).sum() for k in range(4)) == [2, 2, 2, 2]


def test_equal_images_under_two_labels_are_said(images: Path, tmp_path: Path) -> None:
    root = tmp_path / "unlike"
    shutil.copytree(images, root)
    first, second, *_ = sorted(path for path in root.iterdir() if path.is_dir())
    shutil.copy(first / "0000.png", second / "same.png")
    with pytest.warns(UserWarning, match="are exact copies of images with another label"):
        pool = open_pool(root, num_images=100, seed=0)
    assert len(pool.indices) == 25


def test_a_class_of_one_image_is_said(
    images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = tmp_path / "single"
    shutil.copytree(images, root)
    (root / "rare").mkdir()
    shutil.copy(next(images.rglob("0003.png")), root / "rare" / "one.png")
    with caplog.at_level(logging.WARNING):
        pool = open_pool(root, num_images=100, seed=0)
    assert "1 of 4 classes have one image, such as 'rare'" in caplog.text
    assert len(pool.draw_folds(5, 0)) == 25


def test_one_class_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "only").mkdir()
    shutil.copytree(sorted(p for p in images.iterdir() if p.is_dir())[0], tmp_path / "only" / "cat")
    with pytest.raises(DataError, match=r"has only one class, 'cat'\. A classifier"):
        open_pool(tmp_path / "only", num_images=100, seed=0)
    table = tmp_path / "table.csv"
    rows = [("path", "label"), *((f"only/cat/{i:04d}.png", "cat") for i in range(8))]
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(DataError, match="has only one class, 'cat'"):
        open_pool(table, num_images=100, seed=0)


def test_selected_data_learns_from_some_and_answers_for_others(images: Path) -> None:
    whole = FolderData(images, val_fraction=0.0, test_fraction=0.0)
    # The last class is in no image that is learned from.
    data = SelectedData(whole, range(16), [16, 23])
    data.setup("fit")
    assert len(data.records["train"]) == 16
    assert [r.name for r in data.records["predict"]] == [
        whole.records["train"][i].name for i in (16, 23)
    ]
    assert data.labels == whole.labels

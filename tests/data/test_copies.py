"""Exact copies of images never lie on both sides of a split that is drawn."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from vfm.data import DetectionData, FolderData, TableData
from vfm.data.copies import MOST_FILES, find_copies

COUNT, COPIED = 20, 10


def write_images(root, folders):
    """Images in folders; the first ones of each have a copy that is called as a browser calls a second download."""
    for k, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        for number in range(COUNT):
            path = root / folder / f"x{number}.png"
            Image.new("RGB", (32, 32), (k * 90, number * 9, 40)).save(path)
            if number < COPIED:
                path.with_name(f"x{number} (1).png").write_bytes(path.read_bytes())
    return root


def check_sides(data, total):
    splits = {r.name.replace(" (1)", ""): split for split, rs in data.records.items() for r in rs}
    for split, records in data.records.items():
        for record in records:
            assert splits[record.name.replace(" (1)", "")] == split
    assert sum(map(len, data.records.values())) == total
    assert all(len(data.records[split]) > 1 for split in ("train", "val", "test"))


OPTIONS = {"val_fraction": 0.2, "test_fraction": 0.2}


def test_folders_and_their_folds(tmp_path):
    root = write_images(tmp_path, ["cat", "dog"])
    data = FolderData(root, **OPTIONS)
    with pytest.warns(UserWarning, match=r"20 of 60 images of .* are exact copies of others"):
        data.setup()
    check_sides(data, 60)
    folds = data.draw_folds(3)
    fold_of = {r.name: fold for r, fold in zip(data.records["train"], folds, strict=True)}
    assert all(fold_of[name.replace(" (1)", "")] == fold for name, fold in fold_of.items())


def test_tables(tmp_path):
    root = write_images(tmp_path, ["cat", "dog"])
    lines = [f"{p.relative_to(root).as_posix()},{p.parent.name}" for p in root.rglob("*.png")]
    (root / "t.csv").write_text("\n".join(["path,label", *sorted(lines)]))
    data = TableData(root / "t.csv", **OPTIONS)
    with pytest.warns(UserWarning, match="exact copies of others"):
        data.setup()
    check_sides(data, 60)


def test_boxes(tmp_path):
    root = write_images(tmp_path, ["images"])
    names = sorted(path.name for path in (root / "images").iterdir())
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 9, 9]}
            for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (root / "all.json").write_text(json.dumps(content))
    data = DetectionData(root, **OPTIONS)
    with pytest.warns(UserWarning, match="10 of 30 images of .* are exact copies of others"):
        data.setup()
    check_sides(data, 30)


def test_splits_without_copies_are_those_of_before(tmp_path):
    root = write_images(tmp_path / "a", ["cat", "dog"])
    for path in root.rglob("* (1).png"):
        path.unlink()
    data = FolderData(root, **OPTIONS)
    data.setup()
    assert all(not record.key for records in data.records.values() for record in records)


def test_files_that_differ_in_their_middle_are_no_copies(tmp_path):
    content = bytearray(50_000)
    for number in range(3):
        content[20_000] = number % 2
        (tmp_path / str(number)).write_bytes(content)
    paths = {
        str(number): tmp_path / str(number) for number in range(4)
    }  # the last one is not there
    assert find_copies(paths, tmp_path, is_drawn=True) == {"2": "0"}


def test_too_many_files_are_not_compared(tmp_path):
    paths = dict.fromkeys(map(str, range(MOST_FILES + 1)), tmp_path)
    with pytest.warns(
        UserWarning, match=r"more than 20,000 images, so exact copies are not looked"
    ):
        assert find_copies(paths, tmp_path, is_drawn=True) == {}

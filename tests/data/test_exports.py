"""What tools export, each as a small tree: read to the records that its file states, or refused with the remedy."""

from __future__ import annotations

import json
import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from vfm.data import DetectionData, FolderData

TREES = sorted((Path(__file__).parent / "exports").glob("*.yaml"))
"""Each: `images` (width, height and, maybe, EXIF orientation), `files` (text, or an object for JSON), `copies` and
`links` of these; `options` of the data module; then `notes` that are warned of, each a regular expression, and `labels`
and `splits` (by image the boxes: class, left, top, right, bottom, or the label), or `refused` by a message."""


def draw_tree(root: Path, tree: dict) -> None:
    """Write a tree; every image has a content of its own."""
    for number, (name, (width, height, *turn)) in enumerate(tree.get("images", {}).items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", (width, height), (number * 7 % 256, 60, 120))
        exif = Image.Exif()
        exif[0x0112] = turn[0] if turn else 1
        image.save(path, **({"exif": exif} if turn else {}))
    for name, content in tree.get("files", {}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    for name, source in tree.get("copies", {}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes((root / source).read_bytes())
    for name, target in tree.get("links", {}).items():
        (root / name).symlink_to(os.path.relpath(root / target, (root / name).parent))


def read_tree(root: Path, tree: dict) -> DetectionData | FolderData:
    """Read a tree; nothing is drawn but what its options ask for."""
    options = {"val_fraction": 0.0, "test_fraction": 0.0, **tree.get("options", {})}
    module = FolderData if tree.get("folders") else DetectionData
    data = module(root / options.pop("root", ""), **options)
    data.setup()
    return data


@pytest.mark.parametrize("path", TREES, ids=lambda path: path.stem)
def test_tree(path, tmp_path):
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    root = tmp_path / "export"
    draw_tree(root, tree)
    if "refused" in tree:
        with pytest.raises(ValueError, match=tree["refused"]):
            read_tree(root, tree)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = read_tree(root, tree)
    said = [str(warning.message) for warning in caught]
    notes = tree.get("notes", [])
    for note in notes:
        assert any(re.search(note, text) for text in said), (note, said)
    assert len(said) == len(notes), said
    assert list(data.labels) == tree["labels"]
    assert {split: {r.name for r in records} for split, records in data.records.items()} == {
        split: set(images) for split, images in tree["splits"].items()
    }
    for split, images in tree["splits"].items():
        for record in data.records[split]:
            expected = images[record.name]
            if tree.get("folders"):
                assert data.labels[record.label] == expected
                continue
            assert [data.labels[k] for k in record.label] == [box[0] for box in expected]
            corners = np.array([box[1:5] for box in expected], np.float32).reshape(-1, 4)
            np.testing.assert_allclose(record.objects.corners, corners, atol=0.02)
            assert Path(record.source).is_file()

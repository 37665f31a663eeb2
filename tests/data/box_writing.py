"""Writes scenes with boxes in the formats that annotation tools read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from vfm.data.detection.csv import COLUMNS
from vfm.data.tables import write_rows


class Drawn(NamedTuple):
    """A scene to write. M boxes."""

    name: str
    """Of the image file."""
    pixels: NDArray[np.uint8]
    corners: NDArray[np.float32]
    """[M, 4], left, top, right, bottom in pixels."""
    labels: Sequence[str]
    """[M]."""


Splits = Mapping[str, Sequence[Drawn]]


def write_coco(root: Path, splits: Splits, labels: Sequence[str]) -> Path:
    """Write `<split>/_annotations.coco.json` with the images beside it."""
    for split, scenes in splits.items():
        annotations = [
            {
                "image_id": image,
                "category_id": labels.index(label) + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            for image, scene in enumerate(scenes)
            for (left, top, right, bottom), label in _boxes(scene)
        ]
        content = {
            "images": [
                {
                    "id": i,
                    "file_name": s.name,
                    "height": s.pixels.shape[0],
                    "width": s.pixels.shape[1],
                }
                for i, s in enumerate(scenes)
            ],
            "categories": [{"id": k + 1, "name": name} for k, name in enumerate(labels)],
            "annotations": [{"id": k} | entry for k, entry in enumerate(annotations)],
        }
        for scene in scenes:
            _save(root / split / scene.name, scene.pixels)
        (root / split / "_annotations.coco.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def write_yolo(root: Path, splits: Splits, labels: Sequence[str]) -> Path:
    """Write `data.yaml`, `images/<split>/` and `labels/<split>/`."""
    for split, scenes in splits.items():
        for scene in scenes:
            height, width = scene.pixels.shape[:2]
            _save(root / "images" / split / scene.name, scene.pixels)
            lines = [
                f"{labels.index(label)} {(left + right) / 2 / width:.8f} {(top + bottom) / 2 / height:.8f} "
                f"{(right - left) / width:.8f} {(bottom - top) / height:.8f}\n"
                for (left, top, right, bottom), label in _boxes(scene)
            ]
            path = (root / "labels" / split / scene.name).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines), encoding="utf-8")
    settings = {split: f"images/{split}" for split in splits} | {"names": list(labels)}
    (root / "data.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return root


def write_voc(root: Path, splits: Splits, labels: Sequence[str]) -> Path:
    """Write `JPEGImages/`, `Annotations/` and `ImageSets/Main/<split>.txt`."""
    for split, scenes in splits.items():
        for scene in scenes:
            _save(root / "JPEGImages" / scene.name, scene.pixels)
            path = (root / "Annotations" / scene.name).with_suffix(".xml")
            path.parent.mkdir(parents=True, exist_ok=True)
            ElementTree.ElementTree(_tree(scene)).write(path)
        listed = root / "ImageSets" / "Main" / f"{split}.txt"
        listed.parent.mkdir(parents=True, exist_ok=True)
        lines = (f"{Path(scene.name).stem}\n" for scene in scenes)
        listed.write_text("".join(lines), encoding="utf-8")
    return root


def write_table(root: Path, splits: Splits, labels: Sequence[str]) -> Path:
    """Write `boxes.csv` with a column of splits, and the images beside it."""
    rows = []
    for split, scenes in splits.items():
        for scene in scenes:
            _save(root / scene.name, scene.pixels)
            empty = dict.fromkeys(COLUMNS, "") | {"image_path": scene.name, "split": split}
            boxes = [
                empty
                | dict(zip(COLUMNS[1:], (*(f"{value:g}" for value in box), label), strict=True))
                for box, label in _boxes(scene)
            ]
            rows += boxes or [empty]
    write_rows(root / "boxes.csv", [*COLUMNS, "split"], rows)
    return root


def _boxes(scene: Drawn) -> Any:
    return zip(scene.corners.tolist(), scene.labels, strict=True)


def _save(path: Path, pixels: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _tree(scene: Drawn) -> ElementTree.Element:
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = scene.name
    size = ElementTree.SubElement(root, "size")
    for name, value in zip(("height", "width", "depth"), scene.pixels.shape, strict=True):
        ElementTree.SubElement(size, name).text = str(value)
    for box, label in _boxes(scene):
        entry = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(entry, "name").text = label
        bounds = ElementTree.SubElement(entry, "bndbox")
        for name, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(bounds, name).text = f"{value:g}"
    return root

"""Pre-labels: predictions as a folder that an annotation tool takes (COCO, YOLO, Label Studio) and vfm reads again."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import yaml
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.tasks.detection import THRESHOLD

from vfm.data.detection.annotation import read_image_header
from vfm.data.detection.tiles import name_photo
from vfm.data.detection.yolo import find_label_file
from vfm.data.labelstudio import TASKS_FILE
from vfm.data.records import Record
from vfm.tasks.label_rows import SEPARATOR

FORMATS = ("coco", "yolo", "labelstudio")
"""Formats of annotation tools."""

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_LOCAL_FILES = "/data/local-files/?d="
"""Begins the address of an image below Label Studio's LOCAL_FILES_DOCUMENT_ROOT."""


@dataclass(frozen=True)
class PreLabel:
    """Label that a model proposes, of a box, or without corners of the whole image."""

    label: str
    score: float
    corners: tuple[float, float, float, float] | None = None
    """Left, top, right, bottom in pixels of the upright image."""


@dataclass
class PredictedImage:
    """An image and what was predicted for it."""

    source: Path
    name: str
    """Path below the folder of images, with forward slashes."""
    size: tuple[int, int]
    """Height and width of the upright image, in pixels."""
    pre_labels: list[PreLabel] = field(default_factory=list)


def check_pre_labels(to: str, columns: Sequence[str], *, multilabel: bool, folder: Path) -> None:
    """Refuse, before any prediction, what could not be written.

    Args:
        to: Format, one of `FORMATS`.
        columns: Header of the task's `predictions.csv`.
        multilabel: Whether several labels may apply to an image.
        folder: Folder that is to be written.

    Raises:
        OptionError: There is no such format, it cannot say what the model predicts, or the folder is there.
    """
    if to not in FORMATS:
        raise OptionError(f"--to is '{to}'. Choices: {', '.join(FORMATS)}.")
    if "label" not in columns:
        raise OptionError(
            f"--to {to} writes labels and boxes, and this model predicts {', '.join(columns[1:-1])}. Leave it out: "
            "predictions.csv has them."
        )
    labels_images = _CORNERS[0] not in columns
    if labels_images and to == "coco":
        raise OptionError(
            "--to coco writes boxes, and this model labels whole images. Choices: labelstudio; yolo, which sorts them "
            "into folders by class."
        )
    if labels_images and multilabel and to == "yolo":
        raise OptionError(
            "--to yolo sorts images into a folder for each class, and to this model several may apply. Choices: "
            "labelstudio."
        )
    if folder.exists():
        raise OptionError(
            f"{folder} is there already, and somebody may have worked on it. Move it away, or name another folder with "
            "--trainer.default_root_dir."
        )


def write_pre_labels(
    folder: Path,
    to: str,
    predictions: Path,
    records: Sequence[Record],
    labels: Sequence[str],
    threshold: float | None = None,
) -> int:
    """Write a folder of images and pre-labels in the format of an annotation tool, and return the number of images.

    The images are links to the files where the file system has such, else copies. Files that could not be read are
    left out; images for which nothing was predicted are not.

    Args:
        folder: Folder to write, which is not there yet.
        to: Format, one of `FORMATS`.
        predictions: The `predictions.csv` of the images.
        records: Records of the images that were predicted.
        labels: Names of the classes, in the model's order.
        threshold: Least score; by default 0.3 of boxes, and 0 of labels.

    Raises:
        DataError: The images are no files of their own, or none can be read.
    """
    images, has_boxes = _read_predictions(predictions, records, threshold)
    if not images:
        raise DataError(
            f"None of the images in {predictions} can be read, so that none is written."
        )
    folder.mkdir(parents=True)
    if to == "yolo" and not has_boxes:
        for image in images:
            _link(image.source, folder / image.pre_labels[0].label / image.name)
        return len(images)
    for image in images:
        _link(image.source, folder / "images" / image.name)
    write = {"coco": _write_coco, "yolo": _write_yolo, "labelstudio": _write_label_studio}[to]
    write(folder, images, labels)
    return len(images)


def _read_predictions(
    predictions: Path, records: Sequence[Record], threshold: float | None
) -> tuple[list[PredictedImage], bool]:
    """Return the images that could be read with their predictions, and whether these are boxes."""
    if any(not isinstance(record.source, str) for record in records):
        raise DataError(
            "The images are in tar files or in memory, and pre-labels go with files. Unpack them into a folder, and "
            "predict for that."
        )
    sources = {name_photo(record): Path(str(record.source)).resolve() for record in records}
    top = Path(os.path.commonpath([path.parent for path in sources.values()]))
    images = {}
    for name, path in sources.items():
        if (header := read_image_header(path)) is not None:
            images[name] = PredictedImage(path, path.relative_to(top).as_posix(), header.size)
    with predictions.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
        has_boxes = bool(rows) and _CORNERS[0] in rows[0]
    least = (THRESHOLD if has_boxes else 0.0) if threshold is None else threshold
    for row in rows:
        if row["error"]:
            images.pop(row["path"], None)
        elif (image := images.get(row["path"])) is not None:
            image.pre_labels += [one for one in _read_row(row, image.size) if one.score >= least]
    chosen = (
        images.values() if has_boxes else (image for image in images.values() if image.pre_labels)
    )
    return list(chosen), has_boxes


def _read_row(row: Mapping[str, str], size: tuple[int, int]) -> list[PreLabel]:
    if _CORNERS[0] not in row:
        pairs = zip(row["label"].split(SEPARATOR), row["score"].split(SEPARATOR), strict=True)
        return [PreLabel(label, float(score)) for label, score in pairs if label]
    height, width = size
    left, top, right, bottom = (float(row[name]) for name in _CORNERS)
    # Tools refuse what reaches out of the image.
    corners = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    has_area = corners[2] > corners[0] and corners[3] > corners[1]
    return [PreLabel(row["label"], float(row["score"]), corners)] if has_area else []


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)


def _write_coco(folder: Path, images: Sequence[PredictedImage], labels: Sequence[str]) -> None:
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, start=1):
        for one in image.pre_labels:
            assert one.corners is not None
            left, top, right, bottom = one.corners
            width, height = round(right - left, 2), round(bottom - top, 2)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": labels.index(one.label) + 1,
                    "bbox": [left, top, width, height],
                    "area": round(width * height, 2),
                    "segmentation": [],
                    "iscrowd": 0,
                    "score": one.score,
                }
            )
    values = {
        "images": [
            {"id": number, "file_name": one.name, "height": one.size[0], "width": one.size[1]}
            for number, one in enumerate(images, start=1)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(labels, start=1)],
        "annotations": annotations,
    }
    path = folder / "annotations" / "instances_default.json"
    path.parent.mkdir()
    path.write_text(json.dumps(values) + "\n", encoding="utf-8")


def _write_yolo(folder: Path, images: Sequence[PredictedImage], labels: Sequence[str]) -> None:
    for image in images:
        path = find_label_file(folder / "images" / image.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = image.size
        lines = []
        for one in image.pre_labels:
            assert one.corners is not None
            left, top, right, bottom = one.corners
            middle = ((left + right) / 2 / width, (top + bottom) / 2 / height)
            numbers = (*middle, (right - left) / width, (bottom - top) / height)
            # No score: the format has no place for one.
            lines.append(f"{labels.index(one.label)} {' '.join(f'{n:.8f}' for n in numbers)}\n")
        path.write_text("".join(lines), encoding="utf-8")
    settings = {"train": "images", "names": dict(enumerate(labels))}
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    (folder / "classes.txt").write_text("".join(f"{k}\n" for k in labels), encoding="utf-8")


def _write_label_studio(
    folder: Path, images: Sequence[PredictedImage], labels: Sequence[str]
) -> None:
    tasks = []
    for image in images:
        results = _make_results(image)
        score = min((one.score for one in image.pre_labels), default=0.0)
        prediction = {"model_version": "vfm", "score": score, "result": results}
        address = f"{_LOCAL_FILES}{quote(f'images/{image.name}')}"
        tasks.append({"data": {"image": address}, "predictions": [prediction]})
    (folder / TASKS_FILE).write_text(json.dumps(tasks) + "\n", encoding="utf-8")
    has_boxes = any(one.corners is not None for image in images for one in image.pre_labels)
    several = any(len(image.pre_labels) > 1 for image in images)
    kind, child = ("RectangleLabels", "Label") if has_boxes else ("Choices", "Choice")
    choice = "" if has_boxes else f' choice="{"multiple" if several else "single"}"'
    names = "".join(f"<{child} value={quoteattr(name)}/>" for name in labels)
    control = f'<{kind} name="label" toName="image"{choice}>{names}</{kind}>'
    text = f'<View><Image name="image" value="$image"/>{control}</View>\n'
    (folder / "config.xml").write_text(text, encoding="utf-8")


def _make_results(image: PredictedImage) -> list[dict[str, Any]]:
    """Results of Label Studio: a rectangle in percent for each box, or one choice of all labels."""
    height, width = image.size
    common = {"from_name": "label", "to_name": "image"}
    results: list[dict[str, Any]] = []
    for number, one in enumerate(image.pre_labels):
        if one.corners is None:
            values = {"choices": [other.label for other in image.pre_labels]}
            return [{"id": "0", "type": "choices", **common, "value": values, "score": one.score}]
        left, top, right, bottom = one.corners
        percent = {
            "x": 100 * left / width,
            "y": 100 * top / height,
            "width": 100 * (right - left) / width,
            "height": 100 * (bottom - top) / height,
        }
        results.append(
            {
                "id": str(number),
                "type": "rectanglelabels",
                **common,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {**percent, "rotation": 0, "rectanglelabels": [one.label]},
                "score": one.score,
            }
        )
    return results

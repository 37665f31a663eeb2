"""Pre-labels: predicted boxes go to a file of each tool, and come back from it by vfm's own reader."""

import csv
import json
import warnings
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from vfm_runtime.errors import DataError, OptionError

from vfm.data import DetectionData, FolderData
from vfm.data.auto import LABEL_LAYOUTS, open_boxes, open_data, open_labels
from vfm.data.records import Record
from vfm.tasks.prelabels import check_pre_labels, write_pre_labels

LABELS = ("cat", "a b & c", "dog")
BOXES = ("path", "xmin", "ymin", "xmax", "ymax", "label", "score", "error")
CLASSES = ("path", "label", "score", "error")


@pytest.fixture
def images(tmp_path):
    """Images of several sizes, one of them turned by its EXIF and one that is none, as records."""
    names = ["a.png", "sub/a.png", "sub/images/c.jpg", "empty.png", "turned.jpg", "broken.png"]
    records = []
    for index, name in enumerate(names):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.full((40 + 3 * index, 50, 3), 40 * index, np.uint8))
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "turned.jpg" else 1
        picture.save(path, exif=exif)
        records.append(Record(str(path), -1, name))
    path.write_bytes(b"none")
    return records


def write_rows(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def predict_boxes(path):
    """A `predictions.csv` with three boxes of each image but one, and those that should come back."""
    random = np.random.default_rng(0)
    rows, expected = [("broken.png", *[""] * 6, "not an image")], {"empty.png": []}
    for name in ("a.png", "sub/a.png", "sub/images/c.jpg", "turned.jpg"):
        corners = np.sort(random.uniform(1, 38, (4, 2, 2)), axis=1).reshape(4, 4)
        scores = (0.9, 0.31, 0.29, 0.5)
        # The last one reaches out of the image at the left.
        corners[3, 0] = -5
        labels = [LABELS[i] for i in (0, 1, 2, 2)]
        for box, label, score in zip(corners, labels, scores, strict=True):
            numbers = [f"{value:.2f}" for value in box]
            rows.append((name, *numbers, label, f"{score:.6f}", ""))
        corners[3, 0] = 0
        expected[name] = [(labels[i], scores[i], corners[i]) for i in (0, 1, 3)]
    return write_rows(path, BOXES, rows), expected


@pytest.mark.parametrize("to", ["coco", "yolo", "labelstudio"])
def test_boxes_come_back_from_each_format(images, tmp_path, to):
    file, expected = predict_boxes(tmp_path / "predictions.csv")
    folder = tmp_path / "out"
    assert write_pre_labels(folder, to, file, images, LABELS) == 5
    assert (folder / "images/sub/a.png").read_bytes() == Path(images[1].source).read_bytes()
    data = open_boxes(folder)
    assert isinstance(data, DetectionData)
    records = [record for split in data.records.values() for record in split]
    names = {record.name.removeprefix("images/"): record for record in records}
    assert set(names) == set(expected)
    for name, boxes in expected.items():
        record = names[name]
        read = sorted(
            zip(
                (data.labels[k] for k in record.label), record.objects.corners.tolist(), strict=True
            )
        )
        wanted = sorted((label, corners.tolist()) for label, _, corners in boxes)
        assert [label for label, _ in read] == [label for label, _ in wanted]
        for (_, ours), (_, theirs) in zip(read, wanted, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=0.02)


def test_scores_stand_where_a_format_has_a_place(images, tmp_path):
    file, expected = predict_boxes(tmp_path / "predictions.csv")
    for to in ("coco", "yolo", "labelstudio"):
        write_pre_labels(tmp_path / to, to, file, images, LABELS, threshold=0.4)
    content = json.loads((tmp_path / "coco/annotations/instances_default.json").read_text())
    assert sorted({one["score"] for one in content["annotations"]}) == [0.5, 0.9]
    assert [one["name"] for one in content["categories"]] == list(LABELS)
    assert {one["file_name"]: (one["width"], one["height"]) for one in content["images"]}[
        "turned.jpg"
    ] == (52, 50)
    lines = (tmp_path / "yolo/labels/a.txt").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [5, 5]
    assert (tmp_path / "yolo/labels/empty.txt").read_text() == ""
    # The last folder called images is what the format replaces.
    assert (tmp_path / "yolo/images/sub/labels/c.txt").is_file()
    tasks = json.loads((tmp_path / "labelstudio/tasks.json").read_text())
    (task,) = [one for one in tasks if one["data"]["image"].endswith("=images/sub/a.png")]
    (prediction,) = task["predictions"]
    assert prediction["score"] == 0.5
    assert [one["score"] for one in prediction["result"]] == [0.9, 0.5]
    first = prediction["result"][0]
    assert (first["type"], first["from_name"], first["to_name"]) == (
        "rectanglelabels",
        "label",
        "image",
    )
    assert (first["original_width"], first["original_height"]) == (50, 43)
    corners = expected["sub/a.png"][0][2]
    assert first["value"]["x"] == pytest.approx(100 * corners[0] / 50, abs=0.02)
    local = parse_qs(urlsplit(task["data"]["image"]).query)["d"][0]
    assert (tmp_path / "labelstudio" / local).is_file()
    config = ElementTree.parse(tmp_path / "labelstudio/config.xml").getroot()
    assert [one.get("value") for one in config.iter("Label")] == list(LABELS)


def test_what_a_person_drew_goes_before_what_a_model_predicted(images, tmp_path):
    file, _ = predict_boxes(tmp_path / "predictions.csv")
    write_pre_labels(tmp_path / "out", "labelstudio", file, images, LABELS)
    path = tmp_path / "out/tasks.json"
    tasks = json.loads(path.read_text())
    value = {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["cat"]}
    others = [
        {"type": "rectanglelabels", "value": {**value, "rotation": 30}},
        {"type": "brushlabels", "value": {"brushlabels": ["cat"]}},
    ]
    size = {"original_width": 50, "original_height": 40}
    drawn = {"type": "rectanglelabels", "value": value, **size}
    tasks[0]["annotations"] = [{"result": [drawn, *others]}, {"was_cancelled": True, "result": []}]
    tasks[0]["data"]["image"] = "https://labels.example/images/a.png?v=1"
    path.write_text(json.dumps(tasks))
    with pytest.warns(UserWarning, match="rotated") as caught:
        data = open_boxes(tmp_path / "out")
    said = " ".join(str(one.message) for one in caught)
    assert "1 rectangles of" in said
    assert "1 results of" in said
    assert "4 images of" in said
    (record,) = [r for s in data.records.values() for r in s if r.name == "images/a.png"]
    np.testing.assert_allclose(record.objects.corners, [[5, 8, 20, 24]], atol=1e-4)
    value["x"] = "left"
    path.write_text(json.dumps(tasks))
    with pytest.raises(
        ValueError, match=r"task 1: a rectangle is .* expected x, y, width and height in percent"
    ):
        open_boxes(tmp_path / "out")
    tasks[0]["data"] = {"text": "no image"}
    path.write_text(json.dumps(tasks))
    with pytest.raises(ValueError, match=r"task 1 names no image file\. Its data: text"):
        open_boxes(tmp_path / "out")


def test_labels_of_whole_images(images, tmp_path):
    rows = [(r.name, LABELS[i % 3], "0.700000", "") for i, r in enumerate(images[:-1])]
    rows.append(("broken.png", "", "", "not an image"))
    file = write_rows(tmp_path / "predictions.csv", CLASSES, rows)
    assert write_pre_labels(tmp_path / "yolo", "yolo", file, images, LABELS) == 5
    data = FolderData(tmp_path / "yolo", val_fraction=0.0, test_fraction=0.0)
    data.setup()
    read = {r.name: data.labels[r.label] for split in data.records.values() for r in split}
    assert read == {f"{label}/{name}": label for name, label, _, _ in rows[:-1]}
    rows[0] = ("a.png", "cat|dog", "0.900000|0.600000", "")
    file = write_rows(tmp_path / "predictions.csv", CLASSES, rows)
    assert write_pre_labels(tmp_path / "studio", "labelstudio", file, images, LABELS) == 5
    tasks = json.loads((tmp_path / "studio/tasks.json").read_text())
    (result,) = tasks[0]["predictions"][0]["result"]
    assert (result["type"], result["value"]) == ("choices", {"choices": ["cat", "dog"]})
    assert tasks[0]["predictions"][0]["score"] == 0.6
    data = open_data(tmp_path / "studio", label_separator="|", val_fraction=0, test_fraction=0)
    with pytest.warns(UserWarning, match="5 images of .* were looked at by no person"):
        data.setup()
    read = {
        r.name.removeprefix("images/"): {data.labels[i] for i in r.label}
        for split in data.records.values()
        for r in split
    }
    assert read == {name: set(label.split("|")) for name, label, _, _ in rows[:-1]}
    config = ElementTree.parse(tmp_path / "studio/config.xml").getroot()
    assert config.find("Choices").get("choice") == "multiple"


def test_what_cannot_be_written_is_refused(images, tmp_path):
    new = tmp_path / "new"
    for to, columns, multilabel, folder, text in [
        ("voc", BOXES, False, new, "--to is 'voc'. Choices: coco, yolo, labelstudio."),
        ("coco", CLASSES, False, new, "labels whole images. Choices: labelstudio; yolo"),
        ("yolo", CLASSES, True, new, "several may apply. Choices: labelstudio."),
        ("coco", ("path", "logit", "error"), False, new, "and this model predicts logit."),
        ("coco", BOXES, False, tmp_path, "is there already, and somebody may have worked on it"),
    ]:
        with pytest.raises(OptionError) as caught:
            check_pre_labels(to, columns, multilabel=multilabel, folder=folder)
        assert text in str(caught.value)
    check_pre_labels("coco", BOXES, multilabel=False, folder=new)
    file, _ = predict_boxes(tmp_path / "predictions.csv")
    array = Record(np.zeros((4, 4, 3), np.uint8), -1, "x")
    with pytest.raises(DataError, match=r"in tar files or in memory, .* Unpack them into a folder"):
        write_pre_labels(new, "coco", file, [array], LABELS)
    with pytest.raises(DataError, match=r"None of the images in .* can be read"):
        write_pre_labels(new, "coco", file, images[-1:], LABELS)
    assert not new.exists()


def test_choices_of_whole_images_are_labels(images, tmp_path):
    rows = [(r.name, LABELS[i % 3], "0.700000", "") for i, r in enumerate(images[:-1])]
    file = write_rows(tmp_path / "predictions.csv", CLASSES, rows)
    folder = tmp_path / "studio"
    write_pre_labels(folder, "labelstudio", file, images[:-1], LABELS)
    path = folder / "tasks.json"
    tasks = json.loads(path.read_text())
    # A person has corrected one, has skipped one, and has not seen one that no model has seen.
    choice = {"type": "choices", "value": {"choices": ["dog"]}}
    other = {"type": "textarea", "value": {"text": ["blurred"]}}
    tasks[0]["annotations"] = [{"result": [choice, other]}]
    tasks[1]["annotations"] = [{"was_cancelled": True, "result": []}]
    del tasks[2]["predictions"]
    path.write_text(json.dumps(tasks))
    assert LABEL_LAYOUTS.detect(folder) == LABEL_LAYOUTS.detect(path) == "labelstudio"
    with pytest.warns(UserWarning, match="looked at by no person") as caught:
        data = open_labels(folder)
    said = " ".join(str(one.message) for one in caught)
    assert "3 images of" in said
    assert "1 images of" in said
    assert "1 results of" in said
    read = {r.name: data.labels[r.label] for split in data.records.values() for r in split}
    expected = {f"images/{name}": label for name, label, _, _ in rows}
    del expected["images/" + rows[2][0]]
    assert read == {**expected, "images/a.png": "dog"}
    for change, text in [
        (
            {"choices": ["cat", "dog"]},
            "1 images of .* have several choices, such as 'images/a.png'",
        ),
        ({"choices": ["a|b"]}, r"task 1: the choice 'a\|b' holds '\|'"),
        ({"choices": []}, "no label in the column 'label'"),
    ]:
        choice["value"] = change
        path.write_text(json.dumps(tasks))
        with pytest.raises(DataError, match=text), warnings.catch_warnings(action="ignore"):
            open_labels(folder)
    for content, text in [
        ([{**tasks[0], "data": {"text": "x"}}], "task 1 names no image file. Its data: text"),
        ([{"data": tasks[0]["data"], "meta": {"choices": [1]}}], "has no task with an answer"),
    ]:
        path.write_text(json.dumps(content))
        with pytest.raises(DataError, match=text):
            open_labels(folder)
    path.write_text(json.dumps(tasks)[:-9])
    with pytest.raises(DataError, match="cannot be read as JSON"):
        open_labels(folder)

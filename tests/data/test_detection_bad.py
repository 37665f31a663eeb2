"""Annotations that cannot be meant: each case with the message that says so."""

import json

import pytest

from tests.data.boxes_written import drawn, write
from vfm.data import DetectionData


@pytest.fixture(scope="module")
def scenes():
    return drawn()


def refused(root, match, **arguments):
    with pytest.raises(ValueError, match=match):
        DetectionData(root, **arguments).setup()


def edited(root, change, split="train"):
    path = root / split / "_annotations.coco.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return root


def first_box(*values):
    def change(content):
        content["annotations"][0]["bbox"] = list(values)

    return change


def test_coco_where_yolo_is_expected(tmp_path, scenes):
    root = write(tmp_path, "coco", scenes)
    refused(
        root,
        r"is not in the format 'yolo'\. It looks like coco: set --data\.format coco",
        format="yolo",
    )


def test_yolo_where_coco_is_expected(tmp_path, scenes):
    root = write(tmp_path, "yolo", scenes)
    refused(
        root,
        r"is not in the format 'coco'\. It looks like yolo: set --data\.format yolo",
        format="coco",
    )


def test_no_known_format(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    refused(tmp_path, r"holds no annotations of a known format: COCO .*YOLO .*Pascal VOC .*\.csv")


def test_no_such_folder(tmp_path):
    refused(
        tmp_path / "nowhere",
        r"nowhere does not exist \(looked in .*\)\. Give the folder of images and annotations",
    )


def test_images_that_are_missing(tmp_path, scenes):
    root = write(tmp_path, "coco", scenes)
    for path in (root / "train").glob("*.png"):
        path.unlink()
    refused(
        root,
        r"12 of the 24 images that the annotations of .* name are not there, such as .*Put them there",
    )


def test_json_that_was_cut_off(tmp_path, scenes):
    path = write(tmp_path, "coco", scenes) / "train" / "_annotations.coco.json"
    path.write_text(path.read_text()[:-200])
    refused(
        tmp_path / "coco",
        r"cannot be read as JSON: .*It ends in the middle: the file was cut off\. Export or copy",
    )


def test_json_of_something_else(tmp_path):
    (tmp_path / "train.json").write_text('{"images": []}')
    refused(tmp_path, r"train\.json has no 'annotations'\. It has: images", format="coco")


def test_two_images_of_one_id(tmp_path, scenes):
    def change(content):
        content["images"][1]["id"] = content["images"][0]["id"]

    refused(
        edited(write(tmp_path, "coco", scenes), change),
        r"two images have the id 0, .* so its boxes may be of either",
    )


def test_two_categories_of_one_id(tmp_path, scenes):
    def change(content):
        content["categories"][1]["id"] = 1

    refused(
        edited(write(tmp_path, "coco", scenes), change),
        r"the category id 1 is 'class_0' and 'class_1'",
    )


def test_boxes_of_an_image_that_is_not_listed(tmp_path, scenes):
    def change(content):
        content["annotations"][0]["image_id"] = 77

    refused(
        edited(write(tmp_path, "coco", scenes), change),
        r"annotation 0 is of image 77, which is not listed",
    )


def test_boxes_of_a_category_that_is_not_listed(tmp_path, scenes):
    def change(content):
        content["annotations"][0]["category_id"] = 77

    refused(
        edited(write(tmp_path, "coco", scenes), change),
        r"is of category 77, which is not listed\. Categories: 1 class_0",
    )


def test_nan_boxes(tmp_path, scenes):
    root = edited(write(tmp_path, "coco", scenes), first_box(float("nan"), 1, 2, 3))
    refused(
        root, r"image scene-\d+\.png: the box of a 'class_\d' is nan, 1, .*A coordinate is missing"
    )


def test_a_box_of_three_numbers(tmp_path, scenes):
    refused(
        edited(write(tmp_path, "coco", scenes), first_box(1, 2, 3)),
        r"bbox is \[1, 2, 3\]; expected four numbers",
    )


def test_corners_given_as_width_and_height(tmp_path, scenes):
    def corners(content):
        for annotation in content["annotations"]:
            left, top, width, height = annotation["bbox"]
            annotation["bbox"] = [left, top, left + width, top + height]

    root = write(tmp_path, "coco", scenes)
    for split in ("train", "val", "test"):
        edited(root, corners, split)
    message = r"of the \d+ boxes of .* leave their image.* they would fit, but COCO has left, top, width and height"
    refused(root, message + r": set --data\.box_format xyxy")
    data = DetectionData(root, box_format="xyxy")
    data.setup()
    expected = DetectionData(write(tmp_path / "right", "coco", scenes))
    expected.setup()
    for own, other in zip(data.records["train"], expected.records["train"], strict=True):
        assert abs(own.objects.corners - other.objects.corners).max(initial=0) < 1e-3


def test_classes_that_differ_between_splits(tmp_path, scenes):
    def rename(content):
        content["categories"][2]["name"] = "other"

    root = edited(write(tmp_path, "coco", scenes), rename, "val")
    refused(
        root,
        r"The classes of .*val.* are not those of .*only there \['other'\], only in .*\['class_2'\]",
    )


def test_a_class_that_is_never_trained(tmp_path, scenes):
    root = write(tmp_path, "voc", scenes)
    listed = (root / "ImageSets" / "Main" / "val.txt").read_text().split()
    for name in listed:
        path = root / "Annotations" / f"{name}.xml"
        path.write_text(path.read_text().replace("class_1", "new"))
    refused(root, r"The val split has classes without training images: 'new'")


def label_file(root):
    return next(p for p in sorted((root / "labels" / "train").glob("*.txt")) if p.read_text())


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("0 20 30 10 10", r"line 1 holds 30, but YOLO has shares of the image, from 0 to 1"),
        (
            "7 0.5 0.5 0.1 0.1",
            r"line 1 is of class 7, which is not listed\. Classes: 0 class_0, 1 class_1",
        ),
        ("0 0.5 0.5 0.1", r"line 1 has 4 numbers; YOLO has 5, or the corners of an outline"),
        ("0 0.5 0.5 0.1 0.1 0.9", r"has 6 numbers; .* a sixth number is the confidence of a model"),
        (
            "cat 0.5 0.5 0.1 0.1",
            r"line 1 is 'cat 0\.5 0\.5 0\.1 0\.1'; YOLO has a class number and shares",
        ),
    ],
)
def test_lines_that_are_no_yolo(tmp_path, scenes, line, match):
    root = write(tmp_path, "yolo", scenes)
    label_file(root).write_text(line + "\n")
    refused(root, match)


def test_label_files_without_images(tmp_path, scenes):
    root = write(tmp_path, "yolo", scenes)
    (root / "labels" / "train" / "orphan.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    refused(root, r"1 label files have no image, such as .*orphan\.txt")


def test_yolo_without_label_files(tmp_path, scenes):
    root = write(tmp_path, "yolo", scenes)
    for path in (root / "labels").rglob("*.txt"):
        path.unlink()
    refused(root, r"None of the 12 images has a label file; looked for .*Put them into labels/")


def test_yolo_that_names_another_folder(tmp_path, scenes):
    root = write(tmp_path, "yolo", scenes)
    path = root / "data.yaml"
    path.write_text(path.read_text().replace("images/val", "images/other"))
    refused(
        root, r"The val images are said to be in images/other, but there is no .*Mend data\.yaml"
    )


def test_xml_that_was_cut_off(tmp_path, scenes):
    root = write(tmp_path, "voc", scenes)
    path = sorted((root / "Annotations").glob("*.xml"))[0]
    path.write_text(path.read_text()[:60])
    refused(root, r"cannot be read as XML: .*Export or copy it again")


def test_xml_that_a_split_names_but_is_not_there(tmp_path, scenes):
    root = write(tmp_path, "voc", scenes)
    with (root / "ImageSets" / "Main" / "train.txt").open("a") as file:
        file.write("gone\n")
    refused(root, r"names 'gone', but there is no .*gone\.xml")


def test_a_row_that_is_no_box(tmp_path, scenes):
    root = write(tmp_path, "csv", scenes)
    path = root / "boxes.csv"
    lines = path.read_text().splitlines()
    number = next(i for i, line in enumerate(lines[1:], 1) if ",," not in line)
    cells = lines[number].split(",")
    lines[number] = ",".join([cells[0], "", *cells[2:]])
    path.write_text("\n".join(lines) + "\n")
    refused(
        root, rf"boxes\.csv, line {number + 1}: the box is ', .*expected four numbers, or all empty"
    )


def test_a_table_without_boxes(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label\na.png,cat\n")
    refused(tmp_path, r"labels\.csv has no column 'image_path'")


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"format": "pascal"}, r"format is 'pascal'\. Choices: auto, coco, yolo, voc, csv"),
        ({"tile": 8}, r"tile is 8\. Give the side of a tile in pixels, 32 or more"),
        ({"tile_overlap": 1.0}, r"tile_overlap is 1\.0\. Give a share from 0 to below 0\.9"),
        (
            {"repeat_threshold": 2.0},
            r"repeat_threshold is 2\.0\. Give a fraction of the images, from 0",
        ),
        (
            {"val_fraction": 0.9, "test_fraction": 0.2},
            r"Give shares from 0 that leave something to train on",
        ),
    ],
)
def test_arguments_outside_their_range(arguments, match):
    with pytest.raises(ValueError, match=match):
        DetectionData("anywhere", **arguments)

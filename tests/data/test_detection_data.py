"""Boxes read from the formats that annotation tools write."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from PIL import Image
from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.tiling import Tiling

from tests.data.box_writing import Drawn
from tests.data.boxes_written import LABELS, WRITERS, drawn, write
from vfm.data import DetectionData, sampler
from vfm.data.detection import dataset
from vfm.data.detection.annotation import Annotation
from vfm.data.detection.dataset import collate_boxes
from vfm.data.detection.tiles import cut_record, group_tiles
from vfm.data.records import Record
from vfm.preprocess import Preprocess
from vfm.tasks.detection.results import join_boxes

PREPROCESS = Preprocess(size=(64, 64), fit="squash")


def read(root, **arguments):
    data = DetectionData(root, num_workers=0, batch_size=4, **arguments)
    data.preprocess = PREPROCESS
    data.setup()
    return data


@pytest.fixture(scope="module")
def scenes():
    return drawn()


@pytest.mark.parametrize("name", WRITERS)
def test_formats_give_the_boxes_that_were_written(name, tmp_path, scenes):
    data = read(write(tmp_path, name, scenes))
    assert data.labels == tuple(LABELS)
    for split, expected in scenes.items():
        found = {record.name.rpartition("/")[2]: record for record in data.records[split]}
        assert len(found) == len(expected)
        for scene in expected:
            record = found[scene.name]
            assert [data.labels[k] for k in record.label] == list(scene.labels)
            np.testing.assert_allclose(record.objects.corners, scene.corners, atol=1e-3)
            assert record.objects.size == scene.pixels.shape[:2]


@pytest.mark.parametrize("name", WRITERS)
def test_batches_are_those_of_any_other_format(name, tmp_path, scenes):
    own = next(iter(read(write(tmp_path, name, scenes)).test_dataloader()))
    other = next(iter(read(write(tmp_path / "more", "coco", scenes)).test_dataloader()))
    np.testing.assert_array_equal(own["image"], other["image"])
    np.testing.assert_allclose(own["target"].boxes, other["target"].boxes, atol=1e-5)
    assert own["target"].counts.tolist() == other["target"].counts.tolist()


def test_images_without_objects_are_kept(tmp_path, scenes):
    for name in WRITERS:
        data = read(write(tmp_path, name, scenes))
        empty = [r for records in data.records.values() for r in records if not r.label]
        assert len(empty) == sum(not s.labels for found in scenes.values() for s in found) > 0


def test_official_layout_of_coco(tmp_path, scenes):
    root = write(tmp_path, "coco", scenes)
    (root / "annotations").mkdir()
    for split, year in (("train", "train2017"), ("val", "val2017")):
        source = root / split / "_annotations.coco.json"
        source.rename(root / "annotations" / f"instances_{year}.json")
        (root / split).rename(root / year)
    (root / "test" / "_annotations.coco.json").unlink()
    data = read(root)
    assert len(data.records["train"]) == len(scenes["train"])
    assert len(data.records["val"]) == len(scenes["val"])
    assert "test" not in data.records


def coco_of(root, change):
    """Rewrite the training annotations of a COCO set."""
    path = root / "train" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))
    return root


def test_category_ids_with_gaps_and_from_zero(tmp_path, scenes):
    expected = read(write(tmp_path, "coco", scenes))
    root = write(tmp_path / "gaps", "coco", scenes)
    new = {1: 0, 2: 17, 3: 90}

    def renumber(content):
        for category in content["categories"]:
            category["id"] = new[category["id"]]
        for annotation in content["annotations"]:
            annotation["category_id"] = new[annotation["category_id"]]

    data = read(coco_of(root, renumber))
    assert data.labels == expected.labels
    assert [r.label for r in data.records["train"]] == [r.label for r in expected.records["train"]]


def test_crowds_are_ignored_in_training(tmp_path, scenes):
    def crowd(content):
        content["annotations"][0]["iscrowd"] = 1

    data = read(coco_of(write(tmp_path, "coco", scenes), crowd))
    (record,) = (r for r in data.records["train"] if r.objects.ignored.any())
    number = data.records["train"].index(record)
    sample = data.build_dataset("train")[number]
    assert len(sample.labels) == len(record.label) - 1


def test_areas_are_those_of_the_file(tmp_path, scenes):
    def state(content):
        for annotation in content["annotations"]:
            annotation["area"] = 7.0
        del content["annotations"][0]["area"]

    data = read(coco_of(write(tmp_path, "coco", scenes), state))
    areas = np.concatenate([record.objects.areas for record in data.records["train"]])
    assert (areas == 7).sum() == len(areas) - 1
    record = next(r for r in data.records["train"] if (r.objects.areas != 7).any())
    sides = record.objects.corners[:, 2:] - record.objects.corners[:, :2]
    other = record.objects.areas != 7
    np.testing.assert_allclose(record.objects.areas[other], sides.prod(axis=1)[other], rtol=1e-5)


def test_boxes_are_clipped_dropped_and_listed(tmp_path, scenes):
    def spoil(content):
        boxes = [a["bbox"] for a in content["annotations"]]
        boxes[0][2] = 500.0
        boxes[1][2] = 0.0
        boxes[2][:2] = [900.0, 900.0]

    root = coco_of(write(tmp_path, "coco", scenes), spoil)
    with pytest.warns(UserWarning, match=r"1 clipped.*1 dropped|1 dropped.*1 clipped"):
        data = read(root)
    done = [repair.done for repair in data.fixes]
    assert sorted(done) == [
        "clipped",
        "dropped: less than a pixel wide or high",
        "dropped: outside of the image",
    ]
    assert data.describe()["mended"]["clipped"] == 1
    spec = data.keep_split(tmp_path)
    listed = (tmp_path / "boxes_mended.csv").read_text().splitlines()
    assert listed[0] == "image,label,box,done"
    assert len(listed) == 4
    with pytest.warns(UserWarning, match="clipped"):
        again = read(root, split_file=spec["init_args"]["split_file"])
    assert again.fingerprint() == data.fingerprint()


def test_repeated_annotations_count_once(tmp_path, scenes):
    def repeat(content):
        content["annotations"].append(dict(content["annotations"][0]))
        other = dict(content["annotations"][1]) | {"bbox": [1.0, 2.0, 9.0, 9.0]}
        content["annotations"].append(other)

    expected = read(write(tmp_path, "coco", scenes))
    root = coco_of(write(tmp_path / "twice", "coco", scenes), repeat)
    with pytest.warns(
        UserWarning, match=r"2 annotations of .* have the id of another; 1 of them repeat"
    ):
        data = read(root)
    count = [sum(len(r.label) for r in d.records["train"]) for d in (expected, data)]
    assert count[1] == count[0] + 1


def test_fingerprint_knows_the_boxes(tmp_path, scenes):
    def move(content):
        content["annotations"][0]["bbox"][0] += 1

    before = read(write(tmp_path, "coco", scenes)).fingerprint()
    assert read(coco_of(tmp_path / "coco", move)).fingerprint() != before


def test_splits_are_drawn_where_there_are_none(tmp_path, scenes):
    one = {"train": [scene for found in scenes.values() for scene in found]}
    root = write(tmp_path, "coco", one)
    (root / "train" / "_annotations.coco.json").rename(root / "all.json")
    data = read(root, val_fraction=0.25, test_fraction=0.25)
    sizes = {split: len(records) for split, records in data.records.items()}
    assert sizes == {"train": 12, "val": 6, "test": 6}
    again = read(root, val_fraction=0.25, test_fraction=0.25)
    assert again.fingerprint() == data.fingerprint()


def test_outlines_of_yolo_become_boxes(tmp_path, scenes):
    root = write(tmp_path, "yolo", scenes)
    path = sorted((root / "labels" / "train").glob("*.txt"))[0]
    path.write_text("1 0.25 0.25 0.75 0.25 0.5 0.75\n")
    record = next(r for r in read(root).records["train"] if r.name.endswith(f"{path.stem}.png"))
    np.testing.assert_allclose(record.objects.corners, [[16, 16, 48, 48]])
    assert record.label == (1,)


def test_files_of_other_programs_are_no_annotations(tmp_path, scenes):
    root = write(tmp_path, "yolo", scenes)
    (root / "package.json").write_text('{"name": "labels"}')
    (root / ".idea").mkdir()
    (root / ".idea" / "misc.xml").write_text("<project/>")
    assert read(root).labels == tuple(LABELS)


def test_names_of_yolo_by_number(tmp_path, scenes):
    root = write(tmp_path, "yolo", scenes)
    settings = yaml.safe_load((root / "data.yaml").read_text())
    settings["names"] = dict(enumerate(settings["names"]))
    (root / "data.yaml").write_text(yaml.safe_dump(settings))
    assert read(root).labels == tuple(LABELS)


def test_difficult_objects_of_voc_are_ignored(tmp_path, scenes):
    root = write(tmp_path, "voc", scenes)
    listed = (root / "ImageSets" / "Main" / "train.txt").read_text().split()
    path = next(
        p
        for p in (root / "Annotations" / f"{n}.xml" for n in listed)
        if "<object>" in p.read_text()
    )
    text = path.read_text().replace("</name>", "</name><difficult>1</difficult>", 1)
    path.write_text(text)
    ignored = [r.objects.ignored.sum() for r in read(root).records["train"]]
    assert sum(ignored) == 1


def test_tiles_of_a_large_photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    corners = np.array([[10, 10, 40, 40], [130, 90, 145, 110], [280, 180, 300, 200]], np.float32)
    scene = Drawn("large.png", pixels, corners, ["class_0", "class_1", "class_2"])
    root = write(tmp_path, "coco", {"train": [scene]})
    data = read(root, tile=100, tile_overlap=0.2, val_fraction=0.0)
    records = data.records["train"]
    assert all(record.objects.size == (100, 100) for record in records)
    whole = {0: 0, 1: 0, 2: 0}
    for index, record in enumerate(records):
        left, top = record.objects.tile[:2]
        sample = data.build_dataset("train")[index]
        part = PREPROCESS.resize(np.ascontiguousarray(pixels[top : top + 100, left : left + 100]))[
            0
        ]
        np.testing.assert_array_equal(sample.image, part)
        for label, box, ignored in zip(
            record.label, record.objects.corners, record.objects.ignored, strict=True
        ):
            shift = np.array([left, top, left, top])
            inside = np.allclose(box + shift, corners[label])
            whole[label] += inside
            assert not (inside and ignored)
    assert all(whole.values())  # each object is seen as a whole somewhere


def test_a_photo_is_opened_once_an_epoch_for_all_its_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr(sampler, "_AT_ONCE", 1)
    monkeypatch.setattr(dataset, "_MOST_OPEN", 1)
    opened = []
    plain = dataset.open_image
    monkeypatch.setattr(dataset, "open_image", lambda *a, **k: opened.append(a) or plain(*a, **k))
    records = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        side = 200 if number < 3 else 60
        Image.fromarray(np.full((side, side, 3), number, np.uint8)).save(path)
        boxes = np.array([[10, 10, 30, 30], [12, 14, 44, 48]], np.float32)
        whole = Annotation(boxes, np.zeros(2, bool), (side, side))
        record = Record(str(path), (0, 1), path.name, objects=whole)
        records += cut_record(record, whole, Tiling(80, 0.2))
    images = dataset.BoxDataset(
        records, Preprocess(size=(32, 32)), augment=dataset.BoxAugment(mosaic=1.0)
    )
    order = sampler.EpochSampler(len(images), shuffle=True, photos=images.photos)
    names = {images[key].name.partition("@")[0] for key in order}
    assert names == {f"{number}.png" for number in range(4)}
    assert len(opened) == 3  # a whole image does not stay open


@pytest.mark.parametrize("overlap", [0.2, 0.5])
def test_objects_in_tiles_count_once(overlap):
    random = np.random.default_rng(0)
    start = np.stack(np.meshgrid(np.arange(0, 280, 24), np.arange(0, 180, 24)), -1).reshape(-1, 2)
    start = start + random.uniform(0, 4, start.shape)
    corners = np.concatenate([start, start + random.uniform(4, 18, start.shape)], 1)
    corners = corners.astype(np.float32)
    whole = Annotation(corners, np.zeros(len(corners), bool), (200, 300))
    numbers = tuple(range(len(corners)))
    record = Record("x.png", numbers, "x.png", objects=whole)
    tiles = cut_record(record, whole, Tiling(100, overlap))
    assert len(tiles) > 4
    ((photo, indices),) = group_tiles(tiles)
    assert (photo, indices) == (record, [*range(len(tiles))])
    # A model that sees all that a tile shows.
    values = {
        "boxes": [tile.objects.corners for tile in tiles],
        "labels": [np.array(tile.label, np.int64) for tile in tiles],
        "scores": [np.full(len(tile.label), 0.9, np.float32) for tile in tiles],
    }
    photos, (truth,), (detected,) = join_boxes(tiles, values, range(len(corners)))
    assert photos == [record]
    assert not truth.ignored.any()
    np.testing.assert_array_equal(truth.corners, corners)
    order = np.argsort(detected.labels)
    np.testing.assert_array_equal(detected.labels[order], numbers)
    np.testing.assert_allclose(detected.corners[order], corners, atol=1e-4)
    # Of a photo that was looked at in part, the other objects count neither for nor against.
    _, (truth,), _ = join_boxes(tiles[:1], values, range(len(corners)))
    inside = ((corners[:, :2] + corners[:, 2:]) / 2 < 100).all(axis=1)
    np.testing.assert_array_equal(truth.ignored, ~inside)


def test_data_takes_the_tiles_of_the_model(tmp_path, scenes):
    root = write(tmp_path, "coco", scenes)
    data = read(root, val_fraction=0.0)
    names = [record.name for record in data.records["train"]]
    tiled = replace(PREPROCESS, tiles=Tiling(32))
    data.preprocess = tiled
    cut = data.records["train"]
    assert len(cut) > len(names)
    assert data.count_files("train") == len(names)
    assert [photo.name for photo, _ in group_tiles(cut)] == names
    data.setup("predict")
    assert len(data.records["predict"]) > len(data.records["train"])
    data.preprocess = PREPROCESS
    assert [record.name for record in data.records["train"]] == names
    other = read(root, tile=40, val_fraction=0.0)
    with pytest.raises(OptionError, match=r"Tiles of 40 pixels .* trained with 32 and 0.2. Leave"):
        other.preprocess = tiled


def test_an_image_of_another_size_is_skipped(tmp_path, scenes):
    def lie(content):
        content["images"][0]["height"] = 999

    data = read(coco_of(write(tmp_path, "coco", scenes), lie))
    batch = collate_boxes([data.build_dataset("train")[i] for i in range(3)])
    assert len(batch["image"]) == 2
    assert "its boxes are for 64 x 999 pixels, the file has 64 x 64" in batch["skipped"][0][1]


def test_predict_takes_images_without_boxes(tmp_path, scenes):
    root = write(tmp_path, "coco", scenes)
    data = DetectionData(root / "test", num_workers=0)
    data.preprocess = PREPROCESS
    (batch, *_) = list(data.predict_dataloader())
    assert len(batch["image"]) == len(scenes["test"])
    assert batch["target"].counts.sum() == 0

"""Layouts are told apart in one place, and data that has nothing to do with a training is read as the training's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.boxes_written import write
from tests.data.test_idx import write as write_idx
from tests.image_folders import write_image_folder
from vfm.data import DetectionData, FolderData, IdxData, TableData
from vfm.data.auto import (
    LABEL_LAYOUTS,
    SourceError,
    choose_evaluation_splits,
    open_boxes,
    open_data,
    open_labels,
)
from vfm.data.detection.annotation import BoxError
from vfm.data.detection.auto import BOX_LAYOUTS
from vfm.data.layouts import Layout, LayoutTable, Reading
from vfm.data.splits import complete_splits


class OtherError(ValueError):
    """What the tables of these tests raise."""


def table(**layouts: Layout[str]) -> LayoutTable[Layout[str]]:
    return LayoutTable(layouts, OtherError, lambda path: f"{path.name} is nothing.")


def holds(name: str, **options: bool) -> Layout[str]:
    """Folders that hold a file, read as one image of that name."""
    return Layout(
        lambda path: (path / name).is_file(), lambda path: Reading({"": [name]}), **options
    )


class TestTable:
    def test_the_first_that_fits_is_read(self, tmp_path):
        (tmp_path / "b").touch()
        layouts = table(a=holds("a"), b=holds("b"), c=holds("b"))
        assert layouts.detect(tmp_path) == "b"
        assert layouts.layouts["b"].read(tmp_path).entries == ["b"]

    def test_nothing_fits(self, tmp_path):
        with pytest.raises(OtherError, match=r"^images is nothing\.$"):
            table(a=holds("a")).detect(tmp_path / "images")

    def test_two_that_exclude_each_other(self, tmp_path):
        for name in "abc":
            (tmp_path / name).touch()
        layouts = table(a=holds("a", exclusive=True), b=holds("b"), c=holds("c", exclusive=True))
        with pytest.raises(OtherError, match=r"looks like a and like c\. Name the one to read"):
            layouts.detect(tmp_path)
        # Whatever says more about a folder than these do stands above them.
        assert table(first=holds("b"), **layouts.layouts).detect(tmp_path) == "first"

    def test_a_named_layout_must_fit(self, tmp_path):
        (tmp_path / "b").touch()
        layouts = table(a=holds("a"), b=holds("b"))
        layouts.require(tmp_path, "b", "--format")
        with pytest.raises(
            OtherError, match=r"not in the format 'a'\. It looks like b: set --format b\.$"
        ):
            layouts.require(tmp_path, "a", "--format")
        with pytest.raises(
            OtherError, match=r"in the format 'a'\. No known format was found there\.$"
        ):
            layouts.require(tmp_path / "elsewhere", "a", "--format")

    def test_no_more_is_looked_for_than_needed(self, tmp_path):
        def fail(path: Path) -> bool:
            raise AssertionError

        (tmp_path / "a").touch()
        layouts = table(a=holds("a"), b=Layout(fail, lambda path: Reading({})))
        assert layouts.detect(tmp_path) == "a"


def test_a_further_layout_is_one_object_in_one_table(tmp_path, monkeypatch):
    (tmp_path / "boxes.toml").touch()
    with pytest.raises(BoxError, match="holds no annotations of a known format"):
        DetectionData(tmp_path).setup()
    source = BOX_LAYOUTS.layouts["coco"].read(write(tmp_path / "coco", "coco"))
    layout = Layout(lambda path: (path / "boxes.toml").is_file(), lambda path: source)
    monkeypatch.setitem(BOX_LAYOUTS.layouts, "toml", layout)
    # Below the folder lies a set in another layout, which is not looked at.
    data = DetectionData(tmp_path)
    data.setup()
    assert {split: len(records) for split, records in data.records.items()} == {
        split: len(scenes) for split, scenes in source.splits.items()
    }


class TestCompleteSplits:
    names = tuple(f"{number:02d}" for number in range(24))

    def complete(self, splits, **options):
        fractions = {"val_fraction": 0.25, "test_fraction": 0.25, "seed": 0} | options
        return complete_splits(splits, lambda name: (name, (int(name) % 2,)), "ab", **fractions)

    def test_all_are_drawn(self):
        splits = self.complete({"": list(self.names)})
        assert {split: len(names) for split, names in splits.items()} == {
            "train": 12,
            "val": 6,
            "test": 6,
        }
        assert sorted(name for names in splits.values() for name in names) == list(self.names)

    def test_val_comes_out_of_train(self):
        splits = self.complete({"train": list(self.names[4:]), "test": list(self.names[:4])})
        assert splits["test"] == list(self.names[:4])
        assert len(splits["val"]) == 4
        assert sorted(splits["train"] + splits["val"]) == list(self.names[4:])

    @pytest.mark.parametrize("names", [{"train": ["00"], "val": ["01"]}, {"test": ["00"]}])
    def test_stated_splits_stay(self, names):
        assert self.complete(names) == names

    def test_no_val_is_asked_for(self):
        assert self.complete({"train": ["00"]}, val_fraction=0.0) == {"train": ["00"]}

    def test_a_split_without_images_is_left_out(self):
        assert self.complete({"train": [], "test": ["00"]}) == {"test": ["00"]}


class TestLabels:
    def test_data_of_a_path(self, tmp_path):
        folder = write_image_folder(tmp_path / "images", images_per_class=3)
        assert type(open_data(folder, batch_size=5)) is FolderData
        (tmp_path / "t.csv").write_text("path,label\n")
        assert type(open_data(tmp_path / "t.csv")) is TableData
        for joint in ("-idx", ".idx"):
            assert type(open_data(write_idx(tmp_path / joint, joint=joint))) is IdxData
        with pytest.raises(
            SourceError, match=r"a table \(\.csv, \.tsv, \.parquet\), or a folder of IDX"
        ):
            open_data(tmp_path / "nowhere")

    def test_every_reader_gives_records_by_split(self, tmp_path):
        folder = write_image_folder(
            tmp_path / "images", images_per_class=3, splits=["train", "val"]
        )
        reading = LABEL_LAYOUTS.layouts["folder"].read(folder)
        assert {split: len(records) for split, records in reading.splits.items()} == {
            "train": 9,
            "val": 9,
        }
        assert reading.labels == ["class_0", "class_1", "class_2"]
        (tmp_path / "t.csv").write_text("path,label\n1.png,a\n2.png,b\n")
        reading = LABEL_LAYOUTS.layouts["table"].read(tmp_path / "t.csv")
        assert [row.record.name for row in reading.splits[""]] == ["1.png", "2.png"]
        reading = LABEL_LAYOUTS.layouts["idx"].read(write_idx(tmp_path / "idx"))
        assert set(reading.splits) == {"train", "test"}

    def test_no_split_is_drawn(self, tmp_path, caplog):
        folder = write_image_folder(tmp_path / "images", images_per_class=4)
        data = open_labels(folder)
        assert {split: len(records) for split, records in data.records.items()} == {"train": 12}
        assert choose_evaluation_splits(data, folder) == ["train"]
        assert not caplog.text

    def test_the_val_split_is_what_counts(self, tmp_path):
        folder = write_image_folder(
            tmp_path / "images", images_per_class=4, splits=["train", "val", "test"]
        )
        assert choose_evaluation_splits(open_labels(folder), folder) == ["val"]

    def test_several_splits_without_val_are_told(self, tmp_path, caplog):
        folder = write_image_folder(
            tmp_path / "images", images_per_class=4, splits=["train", "test"]
        )
        assert choose_evaluation_splits(open_labels(folder), folder) == ["train", "test"]
        assert "states no val split: all of train and test is taken" in caplog.text

    def test_label_names_are_carried_over(self, tmp_path):
        root = write_idx(tmp_path / "idx")
        count = len(open_labels(root).labels)
        names = [f"class {number}" for number in range(count)]
        training = IdxData("elsewhere", label_names=names).spec
        assert open_labels(root, training=training).labels == tuple(names)
        # Names of a table's training have nothing to do with these files.
        assert open_labels(root, training=TableData("t.csv").spec).labels[0] == "0"


class TestColumns:
    @pytest.fixture
    def rows(self, tmp_path):
        write_image_folder(tmp_path, images_per_class=2)
        return [f"class_{label}/000{n}.png" for label in range(3) for n in range(2)]

    def write(self, tmp_path, header, rows):
        (tmp_path / "table.txt").write_text("\n".join([header, *rows]))
        return tmp_path / "table.txt"

    def test_those_of_the_training(self, tmp_path, rows):
        path = self.write(tmp_path, "file,kind", [f"{row},{row[:7]}" for row in rows])
        training = TableData("t.csv", path_column="file", label_column="kind", split_column="part")
        data = open_labels(path, training=training.spec)
        assert data.labels == ("class_0", "class_1", "class_2")
        assert choose_evaluation_splits(data, path) == ["train"]

    def test_its_column_of_splits_where_there_is_one(self, tmp_path, rows):
        lines = [f"{row},{row[:7]},{'val' if '0001' in row else 'train'}" for row in rows]
        path = self.write(tmp_path, "file,kind,part", lines)
        training = TableData("t.csv", path_column="file", label_column="kind", split_column="part")
        data = open_labels(path, training=training.spec)
        assert {split: len(records) for split, records in data.records.items()} == {
            "train": 3,
            "val": 3,
        }

    def test_columns_called_as_the_labels(self, tmp_path, rows):
        path = self.write(
            tmp_path, "path,dark,small", [f"{row},1,0" for row in rows[:3]] + [f"{rows[3]},0,1"]
        )
        data = open_labels(path, labels=("small", "dark"), multilabel=True)
        assert data.multilabel
        assert data.labels == ("small", "dark")
        with pytest.raises(ValueError, match="has no column 'label'"):
            open_labels(path, labels=("small", "dark"))


def test_boxes_with_the_tiles_of_the_training(tmp_path):
    root = write(tmp_path, "coco")
    whole = open_boxes(root)
    training = DetectionData("elsewhere", tile=32, tile_overlap=0.0).spec
    cut = open_boxes(root, training=training)
    assert len(cut.records["val"]) == 4 * len(whole.records["val"])
    assert choose_evaluation_splits(cut, root) == ["val"]

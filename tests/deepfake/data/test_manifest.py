"""The internal form of real and forged images, and what its readers refuse."""

import json

import pytest

from tests.deepfake.data.trees import put, table, touch
from vfm.deepfake.data.manifest import COLUMNS, read_manifest, write_manifest
from vfm.deepfake.data.pairs import check_training
from vfm.deepfake.data.record import (
    LABELS,
    DeepfakeDataError,
    Item,
    check_items,
    sort_items,
    split_digits,
)


def row(path, label, **more):
    return {"path": path, "label": label, "video": path.rpartition("/")[0], **more}


def test_items_come_back_as_they_were_written(tmp_path):
    touch(tmp_path, "a/v1/0.png", "b/v1/0.png", "b/v1/1.png", "m/0.png", "p/0.npy")
    root = tmp_path.as_posix()
    items = [
        Item(f"{root}/a/v1/0.png", "real", "v1", ("x",), dataset="D", split="train", frame=0),
        Item(
            *(f"{root}/b/v1/0.png", "fake", "v1", ("x", "y|".strip("|")), "swap", "D", "val"),
            *("c23", f"{root}/m/0.png", "v1", 0, f"{root}/p/0.npy"),
        ),
        Item(f"{root}/b/v1/1.png", "fake", "v1", ("x", "y"), "swap", "D", "val", frame=1),
    ]
    path = tmp_path / "manifest.csv"
    write_manifest(path, items)
    assert read_manifest(path) == items
    assert root not in path.read_text()
    assert path.read_text().splitlines()[0].split(",") == list(COLUMNS)


def test_a_moved_manifest_still_finds_its_files(tmp_path):
    folder = tmp_path / "one"
    touch(folder, "a.png")
    write_manifest(folder / "m.csv", [Item(f"{folder.as_posix()}/a.png", "real", "a")])
    before = read_manifest(folder / "m.csv")
    folder.rename(tmp_path / "two")
    after = read_manifest(tmp_path / "two" / "m.csv")
    assert after[0].path == f"{tmp_path.as_posix()}/two/a.png"
    assert [item._replace(path="") for item in after] == [i._replace(path="") for i in before]


def test_relative_paths_start_from_the_root(tmp_path):
    touch(tmp_path, "images/a.png")
    path = put(tmp_path / "lists" / "m.csv", "path,label,video\na.png,real,a\n")
    assert read_manifest(path, tmp_path / "images")[0].path.endswith("/images/a.png")
    with pytest.raises(DeepfakeDataError, match=r"Relative paths start from .*lists"):
        read_manifest(path)


def test_an_identity_with_the_separator_is_refused(tmp_path):
    items = [Item("a.png", "real", "a", ("x|y",))]
    with pytest.raises(DeepfakeDataError, match=r"identity 'x\|y' of a.png holds '\|'"):
        write_manifest(tmp_path / "m.csv", items)


def test_json_list(tmp_path):
    touch(tmp_path, "a.png", "b.png", "m.png")
    rows = [
        {"path": "a.png", "label": 0, "video": "a"},
        {"path": "b.png", "label": 1, "video": "b"},
    ]
    rows[1]["mask"] = "m.png"
    items = read_manifest(put(tmp_path / "m.json", rows))
    assert [item.label for item in items] == ["real", "fake"]
    assert items[1].mask == f"{tmp_path.as_posix()}/m.png"
    assert items[1].method == "fake"


def test_json_that_is_no_list_is_refused(tmp_path):
    with pytest.raises(
        DeepfakeDataError, match=r"is not a list of objects.*format to deepfakebench"
    ):
        read_manifest(put(tmp_path / "m.json", {"a": 1}))
    with pytest.raises(DeepfakeDataError, match=r"is an empty list"):
        read_manifest(put(tmp_path / "n.json", []))
    with pytest.raises(DeepfakeDataError, match=r"is no JSON that can be read"):
        read_manifest(put(tmp_path / "o.json", "{"))


def test_parquet_is_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    touch(tmp_path, "a.png", "b.png")
    columns = {
        "path": ["a.png", "b.png"],
        "label": ["real", "fake"],
        "video": ["a", "b"],
        "frame": [3, None],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "m.parquet")
    items = read_manifest(tmp_path / "m.parquet")
    assert [item.frame for item in items] == [3, -1]


def test_missing_column_and_unknown_split(tmp_path):
    with pytest.raises(DeepfakeDataError, match=r"has no column 'label'.*Columns: path, lable"):
        read_manifest(put(tmp_path / "m.csv", "path,lable\na.png,real\n"))
    with pytest.raises(
        DeepfakeDataError, match=r"line 2: the split is 'dev'. Choices: train, val, test"
    ):
        read_manifest(put(tmp_path / "n.csv", "path,label,split\na.png,real,dev\n"))
    with pytest.raises(DeepfakeDataError, match=r"line 2: the frame is '1.5'"):
        read_manifest(put(tmp_path / "o.csv", "path,label,frame\na.png,real,1.5\n"))
    with pytest.raises(DeepfakeDataError, match=r"line 2: the path is empty"):
        read_manifest(put(tmp_path / "p.csv", "path,label\n,real\n"))
    with pytest.raises(DeepfakeDataError, match=r"does not exist.*Check the path"):
        read_manifest(tmp_path / "q.csv")


def test_trap_05_a_video_with_both_labels_is_refused(tmp_path):
    rows = [row("v/0.png", "real", dataset="D"), row("v/1.png", "fake", dataset="D")]
    with pytest.raises(
        DeepfakeDataError,
        match=r"lines 2 and 3\): the video '.*v' has both labels.*give the fakes a method",
    ):
        read_manifest(table(tmp_path / "m.csv", rows))


def test_a_video_and_the_fake_of_its_name_are_two_when_the_method_says_so(tmp_path):
    touch(tmp_path, "r/0.png", "f/0.png")
    root = tmp_path.as_posix()
    items = [
        Item(f"{root}/r/0.png", "real", "0"),
        Item(f"{root}/f/0.png", "fake", "0", method="fake"),
    ]
    write_manifest(tmp_path / "m.csv", items)
    assert read_manifest(tmp_path / "m.csv") == items


def test_trap_05_equal_names_of_two_methods_are_two_videos():
    one = Item("a.png", "fake", "000_003", method="Deepfakes")
    two = one._replace(path="b.png", method="Face2Face")
    assert one.key != two.key


def test_trap_08_digits_are_no_labels(tmp_path):
    path = table(tmp_path / "m.csv", [row("a/0.png", "1"), row("b/0.png", "0")])
    with pytest.raises(
        DeepfakeDataError,
        match=r"line 2: the label is '1'. Choices: real, fake. Which digit is fake differs",
    ):
        read_manifest(path)
    items = read_manifest(path, labels={"1": "real", "0": "fake"})
    assert [item.label for item in items] == ["real", "fake"]
    assert LABELS.index("fake") == 1


def test_trap_12_missing_files_are_counted_and_refused_above_one_in_a_hundred(tmp_path):
    rows = [row(f"{n}/0.png", "real") for n in range(150)]
    path = table(tmp_path / "m.csv", rows)
    (tmp_path / "7" / "0.png").unlink()
    with pytest.warns(
        UserWarning,
        match=r"1 of the 150 files .* are missing: .*/7/0.png. They are left out \(1 real\)",
    ):
        assert len(read_manifest(path)) == 149
    (tmp_path / "8" / "0.png").unlink()
    with pytest.raises(DeepfakeDataError, match=r"2 of the 150 files .* are missing"):
        read_manifest(path)


def test_trap_25_windows_paths_label_case_and_the_order_of_frames(tmp_path):
    rows = [
        row(f"v\\{n}.png", label, video="set\\v", frame=str(n))
        for n, label in ((10, "FAKE"), (2, "Fake"))
    ]
    items = sort_items(read_manifest(table(tmp_path / "m.csv", rows)))
    assert [item.path.rpartition("/")[2] for item in items] == ["2.png", "10.png"]
    assert {item.label for item in items} == {"fake"}
    assert {item.video for item in items} == {"set/v"}
    assert sorted(["10", "9", "b2", "b10"], key=split_digits) == ["9", "10", "b2", "b10"]


def test_without_videos_each_image_is_one_of_its_own_and_that_is_said(tmp_path):
    path = table(tmp_path / "m.csv", [{"path": "a.png", "label": "real"}])
    with pytest.warns(UserWarning, match=r"has no column 'video': each image counts as a video"):
        assert read_manifest(path)[0].video == "a.png"


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (Item("a", "Real", "v"), "label of a is 'Real'. Choices: real, fake"),
        (Item("a", "real", "v", method="swap"), "a is real, but has the method 'swap'"),
        (Item("a", "fake", "v"), "a is fake, but has no method"),
        (Item("a", "real", "v", split="dev"), "split of a is 'dev'. Choices: train, val, test"),
    ],
)
def test_items_that_contradict_themselves_are_refused(item, text):
    with pytest.raises(DeepfakeDataError, match=text):
        check_items([item], "here")


def test_an_image_listed_twice_is_refused(tmp_path):
    path = put(tmp_path / "m.csv", "path,label,video\na/../x.png,real,v\nx.png,real,v\n")
    with pytest.raises(DeepfakeDataError, match=r"lists .*x.png twice"):
        read_manifest(path)


def test_one_label_alone_is_refused():
    with pytest.raises(
        DeepfakeDataError, match=r"The train split has 1 real and 0 fake .* add fake ones"
    ):
        check_training([Item("a", "real", "v")], "plain")


def test_a_list_of_labels_written_by_json_tools_keeps_its_identities(tmp_path):
    touch(tmp_path, "a.png")
    rows = [{"path": "a.png", "label": "real", "video": "a", "identities": ["x", "y"]}]
    path = put(tmp_path / "m.json", json.dumps(rows))
    assert read_manifest(path)[0].identities == ("x", "y")

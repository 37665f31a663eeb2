from collections import Counter

import pytest

from vfm.data.splits import SplitRow, read_split, split_by_class, write_split

FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}


def make(counts):
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [f"{label}/{i}.png" for i, label in enumerate(labels)], labels


def test_split_depends_on_seed_and_names_not_on_their_order():
    names, labels = make({"a": 30, "b": 20})
    forward = split_by_class(names, labels, FRACTIONS, 0)
    assert forward == split_by_class(names[::-1], labels[::-1], FRACTIONS, 0)[::-1]
    assert forward != split_by_class(names, labels, FRACTIONS, 1)


@pytest.mark.parametrize("count", [3, 4, 5, 9, 10, 11, 100])
def test_every_class_has_images_in_every_split(count):
    names, labels = make({"a": count, "b": 50})
    splits = split_by_class(names, labels, FRACTIONS, 0)
    found = Counter(s for s, label in zip(splits, labels, strict=True) if label == "a")
    assert set(found) == {"train", "val", "test"}
    assert found.total() == count
    if count >= 10:
        assert abs(found["val"] - count * 0.1) < 1


def test_exact_shares_are_met_exactly():
    names, labels = make({"a": 100})
    splits = split_by_class(names, labels, {"train": 0.7, "val": 0.1, "test": 0.2}, 0)
    assert Counter(splits) == {"train": 70, "val": 10, "test": 20}


def test_a_share_of_zero_gets_nothing():
    names, labels = make({"a": 2, "b": 9})
    splits = split_by_class(names, labels, {"train": 0.8, "val": 0.2, "test": 0.0}, 0)
    assert set(splits) == {"train", "val"}


def test_too_small_a_class_is_named():
    names, labels = make({"cat": 2, "dog": 9})
    message = "Class 'cat' has 2 images, too few for one each in train, val, test. Add images"
    with pytest.raises(ValueError, match=message):
        split_by_class(names, labels, FRACTIONS, 0)


def test_shares_that_do_not_add_up_are_refused():
    with pytest.raises(ValueError, match=r"shares of the splits are train 0\.5, val 0\.1\. Give"):
        split_by_class(["x"], ["a"], {"train": 0.5, "val": 0.1}, 0)


def test_table_is_read_back(tmp_path):
    rows = [SplitRow("b/1.png", "b, c", "val"), SplitRow("a/ü.png", "a", "train")]
    write_split(tmp_path / "split.csv", rows)
    assert read_split(tmp_path / "split.csv") == sorted(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "file,label,split\na,b,val\n",
            r"has no column 'path' \(a split file has the columns path, label, split\). Columns: file, label, split",
        ),
        ("", "is empty. Its first line must name the columns"),
        (
            "path,label,split\na,b,dev\n",
            "line 2: split is 'dev'. Choices: train, val, test.",
        ),
        (
            "path,label,split\na,b,val\na,b,test\n",
            "line 3: 'a' is listed twice",
        ),
    ],
)
def test_wrong_tables_are_explained(tmp_path, text, message):
    path = tmp_path / "split.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_split(path)


def test_missing_table_says_how_to_write_one(tmp_path):
    with pytest.raises(ValueError, match=r"no split file .*nothing.csv. Write one with"):
        read_split(tmp_path / "nothing.csv")

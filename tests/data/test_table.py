from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.image_folders import write_image_folder
from vfm.data import ImageData, TableData
from vfm.data.records import list_labels
from vfm.data.splits import split_by_key
from vfm.preprocess import Preprocess
from vfm.spec import build

HEADER = ("path", "label", "patient", "site")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("images"), num_classes=3, images_per_class=20)


def rows_of(images):
    found = sorted(images.rglob("*.png"))
    return [
        (p.relative_to(images).as_posix(), p.parent.name, f"p{i // 4}", "ns"[i % 2])
        for i, p in enumerate(found)
    ]


def write(path: Path, rows, header=HEADER, delimiter=",", encoding="utf-8"):
    with path.open("w", newline="", encoding=encoding) as file:
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


@pytest.fixture
def table(images, tmp_path):
    return write(tmp_path / "images.csv", rows_of(images))


def made(table, images, **changes) -> TableData:
    data = TableData(table, root=images, num_workers=0, **changes)
    data.setup()
    return data


def sizes(data):
    return {split: len(records) for split, records in data.records.items()}


def test_one_label(table, images):
    data = made(table, images)
    assert data.labels == ("class_0", "class_1", "class_2")
    assert sizes(data) == {"train": 48, "val": 6, "test": 6}
    assert not data.multilabel
    record = data.records["train"][0]
    assert record.name.split("/")[0] == data.labels[record.label]
    assert Path(record.source).is_file()


def test_root_is_the_folder_of_the_table(images):
    table = write(images / "table.csv", rows_of(images))
    data = TableData(table)
    data.setup()
    table.unlink()
    assert sizes(data)["train"] == 48


@pytest.mark.parametrize(
    "kind", ["tsv", "semicolon", "bom", "utf-16", "quoted", "parquet", "dots", "emptied"]
)
def test_all_kinds_of_tables_give_the_same(kind, table, images, tmp_path):
    rows = rows_of(images)
    path = tmp_path / ("other.parquet" if kind == "parquet" else "other.csv")
    if kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        columns = dict(zip(HEADER, map(list, zip(*rows, strict=True)), strict=True))
        parquet.write_table(pa.table(columns), path)
    elif kind == "quoted":
        text = "\n".join(",".join(f'"{cell}"' for cell in row) for row in [HEADER, *rows])
        path.write_text(text + "\n\n")
    elif kind == "emptied":
        write(path, [*rows, ("",) * len(HEADER), (" ",) * len(HEADER)])
    elif kind == "dots":
        write(path, [(f"./{row[0]}", *row[1:]) for row in rows])
    else:
        delimiter = {"tsv": "\t", "semicolon": ";", "utf-16": "\t"}.get(kind, ",")
        encoding = {"bom": "utf-8-sig", "utf-16": "utf-16"}.get(kind, "utf-8")
        write(path, rows, delimiter=delimiter, encoding=encoding)
    assert made(path, images).records == made(table, images).records


def test_labels_stay_text(images, tmp_path):
    rows = [(p, f"{int(label[-1]):02d}") for p, label, *_ in rows_of(images)]
    path = write(tmp_path / "t.csv", rows, ("path", "label"))
    assert made(path, images).labels == ("00", "01", "02")


def test_whole_numbers_of_parquet_are_whole(images, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = rows_of(images)
    columns = {"path": [r[0] for r in rows], "label": [float(r[1][-1]) for r in rows]}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    assert made(tmp_path / "t.parquet", images).labels == ("0", "1", "2")


def test_given_splits(images, tmp_path):
    rows = [
        (*row[:2], ("train", "VAL", "Test", "train")[i % 4])
        for i, row in enumerate(rows_of(images))
    ]
    path = write(tmp_path / "t.csv", rows, ("path", "label", "split"))
    assert sizes(made(path, images)) == {"train": 30, "val": 15, "test": 15}
    renamed = write(tmp_path / "u.csv", rows, ("path", "label", "fold"))
    named = made(renamed, images, split_column="fold")
    assert named.records == made(path, images).records


def test_validation_is_drawn_from_the_training_images(images, tmp_path):
    rows = [(*row[:2], ("train", "test")[i % 4 == 0]) for i, row in enumerate(rows_of(images))]
    path = write(tmp_path / "t.csv", rows, ("path", "label", "split"))
    assert sizes(made(path, images, val_fraction=0.2)) == {"train": 36, "val": 9, "test": 15}
    assert sizes(made(path, images, val_fraction=0)) == {"train": 45, "test": 15}


@pytest.mark.parametrize("seed", range(5))
def test_keys_are_never_divided(table, images, seed):
    data = made(table, images, key_column="patient", seed=seed)
    keys = {path: key for path, _, key, _ in rows_of(images)}
    of = {split: {keys[r.name] for r in records} for split, records in data.records.items()}
    assert set(of) == {"train", "val", "test"}
    assert sum(map(len, of.values())) == 15
    for records in data.records.values():  # every class in every split
        assert {r.label for r in records} == {0, 1, 2}


def test_groups_are_on_the_records(table, images):
    data = made(table, images, group_columns=["site", "patient"])
    assert data.group_columns == ("site", "patient")
    sites = {path: (site, patient) for path, _, patient, site in rows_of(images)}
    for records in data.records.values():
        assert all(r.groups == sites[r.name] for r in records)


def test_several_labels_in_a_cell(images, tmp_path):
    rows = [(p, f"{label}|{site}") for p, label, _, site in rows_of(images)]
    data = made(write(tmp_path / "t.csv", rows, ("path", "label")), images, label_separator="|")
    assert data.labels == ("class_0", "class_1", "class_2", "n", "s")
    assert data.multilabel
    record = data.records["train"][0]
    assert [data.labels[k] for k in record.label] in (["class_0", "n"], ["class_0", "s"])
    data.preprocess = Preprocess(size=(16, 16))
    batch = next(iter(data.val_dataloader()))
    assert batch["target"].label.shape == (len(batch["image"]), 5)
    assert batch["target"].label.sum(1).tolist() == [2.0] * len(batch["image"])


def test_a_column_for_each_label(images, tmp_path):
    rows = [(p, i % 2, ("no", "yes")[i % 3 == 0]) for i, (p, *_) in enumerate(rows_of(images))]
    path = write(tmp_path / "t.csv", rows, ("path", "red", "blue"))
    data = made(path, images, label_column=["red", "blue"])
    assert data.labels == ("red", "blue")
    everything = {r.name: r.label for records in data.records.values() for r in records}
    assert everything[rows[0][0]] == (1,)
    assert everything[rows[3][0]] == (0, 1)
    assert everything[rows[2][0]] == ()


def test_no_label_where_that_is_allowed(images, tmp_path):
    rows = [(p, label if i % 5 else "") for i, (p, label, *_) in enumerate(rows_of(images))]
    path = write(tmp_path / "t.csv", rows, ("path", "label"))
    data = made(path, images, label_separator="|", allow_no_label=True)
    labels = [r.label for records in data.records.values() for r in records]
    assert labels.count(()) == 12


def test_predict_needs_no_labels(images, tmp_path):
    path = write(tmp_path / "t.csv", [(p,) for p, *_ in rows_of(images)], ("path",))
    data = TableData(path, root=images)
    data.setup("predict")
    assert len(data.records["predict"]) == 60
    assert {r.label for r in data.records["predict"]} == {-1}


@pytest.mark.parametrize(
    "changes", [{}, {"key_column": "patient", "group_columns": ["site"], "seed": 3}]
)
def test_kept_split_is_the_same_again(table, images, tmp_path, changes):
    data = made(table, images, **changes)
    spec = data.keep_split(tmp_path)
    table.unlink()  # what is kept stands alone
    again = build(spec, base=ImageData)
    again.setup()
    assert again.records == data.records
    assert again.fingerprint() == data.fingerprint()


def test_kept_split_of_label_columns(images, tmp_path):
    rows = [(p, i % 2, i % 3 % 2) for i, (p, *_) in enumerate(rows_of(images))]
    path = write(tmp_path / "t.csv", rows, ("path", "red", "blue"))
    data = made(path, images, label_column=["red", "blue"])
    again = build(data.keep_split(tmp_path), base=ImageData)
    again.setup()
    assert again.records == data.records


def test_a_few_absent_files_are_warned_of(images, tmp_path):
    # 121 rows, of which one is absent: below 1 %.
    extra = []
    for path, label, *_ in rows_of(images):
        copy = images / path.replace(".png", "_copy.png")
        copy.write_bytes((images / path).read_bytes())
        extra.append((copy.relative_to(images).as_posix(), label))
    rows = [row[:2] for row in rows_of(images)]
    table = write(tmp_path / "t.csv", [*rows, ("gone.png", "class_0")], ("path", "label"))
    with pytest.warns(UserWarning, match=r"1 of the 121 files that .* are not in .*: 'gone\.png'"):
        data = made(table, images)
    assert sum(sizes(data).values()) == 121
    for path, _ in extra:
        (images / path).unlink()


def test_names_without_suffixes(table, images, tmp_path):
    rows = [(path.removesuffix(".png"), *rest) for path, *rest in rows_of(images)]
    ids = write(tmp_path / "ids.csv", rows)
    with pytest.warns(
        UserWarning, match=r"'class_0/0000' is taken for 'class_0/0000\.png', and 59"
    ):
        data = made(ids, images)
    assert [r.source for r in data.records["train"]] == [
        r.source for r in made(table, images).records["train"]
    ]
    second = images / "class_0" / "0000.jpg"
    second.write_bytes(b"x")
    with pytest.raises(
        ValueError, match=r"line 2: 'class_0/0000' may be .*0\.jpg or .*0\.png\. Write"
    ):
        made(ids, images)
    second.unlink()


def test_backslashes_in_paths(table, images, tmp_path):
    rows = [(".\\" + path.replace("/", "\\"), *rest) for path, *rest in rows_of(images)]
    windows = write(tmp_path / "windows.csv", rows)
    with pytest.warns(
        UserWarning, match=r"'\.\\class_0\\0000\.png' is taken for 'class_0/0000\.png', and 59"
    ):
        data = made(windows, images)
    assert data.records == made(table, images).records


def test_order_of_rows_does_not_matter(images, tmp_path):
    rows = rows_of(images)
    first = made(write(tmp_path / "a.csv", rows), images, key_column="patient")
    second = made(write(tmp_path / "b.csv", rows[::-1]), images, key_column="patient")
    assert first.records == second.records


@pytest.mark.parametrize("seed", range(10))
def test_dealing_is_fair(seed):
    random = np.random.default_rng(seed)
    keys = [f"k{n}" for n in random.integers(0, 120, 1000)]
    labels = [
        tuple(np.flatnonzero(random.random(4) < [0.5, 0.3, 0.1, 0.05]).tolist()) for _ in keys
    ]
    shares = {"train": 0.7, "val": 0.1, "test": 0.2}
    splits = split_by_key(keys, labels, "abcd", shares, seed)
    assert len(set(zip(keys, splits, strict=True))) == len(set(keys))
    total = Counter(label for found in labels for label in found)
    for split, share in shares.items():
        assert splits.count(split) == pytest.approx(1000 * share, rel=0.4)
        part = Counter(
            label for found, s in zip(labels, splits, strict=True) if s == split for label in found
        )
        for label in range(4):
            assert part[label] == pytest.approx(share * total[label], rel=0.6)


def test_labels_of_records(table, images):
    data = made(table, images)
    assert list_labels(data.records["train"][0]) == (0,)
    assert data.describe()["splits"]["train"]["per_class"] == dict.fromkeys(data.labels, 16)


def test_lines_are_those_of_the_file(images, tmp_path):
    text = "path,label\n\n" + "\n".join(f"{p},{label}" for p, label, *_ in rows_of(images)[:3])
    (tmp_path / "t.csv").write_text(text + '\n\n"x\ny.png",\n')
    with pytest.raises(ValueError, match=r"t\.csv, line 8: no label"):
        made(tmp_path / "t.csv", images)


def test_spaces_around_a_separator_are_no_part_of_a_label(images, tmp_path):
    rows = [(p, f"{label} | {site}") for p, label, _, site in rows_of(images)]
    data = made(write(tmp_path / "t.csv", rows, ("path", "label")), images, label_separator="|")
    assert data.labels == ("class_0", "class_1", "class_2", "n", "s")


# --- what tables from elsewhere bring


def refused(path, images, message, **changes):
    with pytest.raises(ValueError, match=message):
        made(path, images, **changes)


def test_lines_may_be_empty_before_the_header(table, images, tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\n\n" + table.read_text())
    assert made(path, images).records == made(table, images).records


def test_names_of_columns_may_hold_delimiters(images, tmp_path):
    rows = [(p, label, "x", "y") for p, label, *_ in rows_of(images)]
    groups = ["left; a; b", "right; c; d"]
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("path", "label", *groups), *rows])
    data = made(path, images, group_columns=groups)
    assert data.records["train"][0].groups == ("x", "y")


def test_one_image_named_in_two_ways_is_found(images, tmp_path):
    rows = [(*row[:2], ("train", "test")[i % 2]) for i, row in enumerate(rows_of(images))]
    twin = (str(images / rows[1][0]), rows[1][1], "train")
    path = write(tmp_path / "t.csv", [*rows, twin], ("path", "label", "split"))
    refused(path, images, "is in test and in train, in lines 3 and 62 .*tested on")


def test_an_image_in_two_rows_is_told_before_the_draw(images, tmp_path):
    rows = [row[:2] for row in rows_of(images)]
    path = write(tmp_path / "t.csv", [*rows, (rows[0][0], "rare")], ("path", "label"))
    refused(path, images, "has two labels, in lines 2 and 62 .*label_separator")


def test_a_label_that_never_applies_is_refused(images, tmp_path):
    rows = [(p, i % 2, i % 3 % 2, 0) for i, (p, *_) in enumerate(rows_of(images))]
    path = write(tmp_path / "t.csv", rows, ("path", "red", "blue", "green"))
    message = r"No training image of .*t\.csv has the label 'green'\. Add"
    refused(path, images, message, label_column=["red", "blue", "green"])


def test_a_missing_image_in_the_top_folder_is_absent(images, tmp_path):
    rows = [*(row[:2] for row in rows_of(images)), ("/no such file.png", "class_0")]
    path = write(tmp_path / "t.csv", rows, ("path", "label"))
    refused(path, images, "1 of the 61 files that .*: '/no such file.png'")


def test_not_a_number_is_an_empty_cell(images, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    names = [p for p, *_ in rows_of(images)]
    labels = [float("nan") if i == 4 else float(i % 2) for i in range(60)]
    parquet.write_table(pa.table({"path": names, "label": labels}), tmp_path / "t.parquet")
    refused(tmp_path / "t.parquet", images, "line 5: no label")

"""What users get wrong: each case with the message that tells them so."""

from __future__ import annotations

import gzip
import re
import shlex
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vfm.cli import main
from vfm.data import FolderData, IdxData, TableData

NAMES = [f"{number}.png" for number in range(24)]
GOOD = [f"{name},{'cat' if number % 2 else 'dog'}" for number, name in enumerate(NAMES)]


def rows(*lines: str, header: str = "path,label") -> str:
    return "\n".join([header, *lines]) + "\n"


def changed(number: int, line: str) -> str:
    return rows(*GOOD[:number], line, *GOOD[number + 1 :])


def split(*values: str) -> str:
    """The good rows with a column of splits, which take turns."""
    lines = [f"{row},{values[n % len(values)]}" for n, row in enumerate(GOOD)]
    return rows(*lines, header="path,label,split")


# Name; content of the table; arguments of TableData; message.
TABLES: list[tuple[str, str | bytes, dict[str, Any], str]] = [
    ("empty", "", {}, r"t\.csv is empty\. Its first line must name the columns"),
    ("header only", "path,label\n", {}, r"has no rows below its header"),
    ("no path column", rows(*GOOD, header="file,label"), {}, r"no column 'path'.*Columns: file, label"),
    ("no label column", rows(*GOOD, header="path,class"), {}, r"no column 'label'.*Columns: path, class"),
    ("near column", rows(*GOOD, header="path,labels"), {}, r"Did you mean 'labels'\?"),
    ("column twice", rows(*(f"{r},x" for r in GOOD), header="path,label,label"), {}, r"two columns 'label'"),
    ("too many cells", changed(3, "3.png,cat,extra"), {}, r"t\.csv, line 5: 3 cells, but the header has 2"),
    ("too few cells", changed(3, "3.png"), {}, r"t\.csv, line 5: 1 cells, but the header has 2"),
    ("open quote", changed(3, '"3.png,cat'), {}, r"cannot be read as a table: .*Look at its quotes"),
    ("not utf-8", rows(*GOOD).replace("dog", "h\u00fcnd").encode("latin1"), {}, r"is not in UTF-8.*iconv"),
    ("empty path", changed(3, ",cat"), {}, r"line 5: no path in the column 'path'"),
    ("no label", changed(3, "3.png,"), {}, r"line 5: no label in the column 'label'\. Fill it in, or delete the row\."),
    ("blank label", changed(3, "3.png,  "), {}, r"line 5: no label in the column 'label'"),
    (
        "no label of several",
        changed(3, "3.png,"),
        {"label_separator": "|"},
        r"line 5: no label.*if none of the labels applies, set allow_no_label",
    ),
    ("labels differ by case", changed(3, "3.png,Cat"), {}, r"'Cat' and 'cat' in .* differ only by case or spaces"),
    ("labels differ by space", changed(3, "3.png,cat "), {}, r"'cat' and 'cat ' .*differ only by case or spaces"),
    ("one class", rows(*(f"{n},cat" for n in NAMES)), {}, r"has only one class, 'cat'"),
    ("class with one image", changed(3, "3.png,fox"), {}, r"Class 'fox' has 1 image, too few for one each in train, val, test"),
    ("names for labels", rows(*(f"{n}.png,{n}" for n in range(60))), {}, r"Every one of the 60 rows .*column of names"),
    ("absent files", rows(*(f"x{r}" for r in GOOD)), {}, r"24 of the 24 files that .* are not in .*'x0\.png', 'x1\.png', 'x2\.png', \.\.\.\. Relative"),
    ("some absent", changed(3, "gone.png,cat"), {}, r"1 of the 24 files .*'gone\.png'.*--data\.root"),
    ("folder for image", changed(3, "folder,cat"), {}, r"1 of the 24 files .*'folder'"),
    ("listed twice", rows(*GOOD, GOOD[0]), {}, r"'0\.png' is listed twice, in lines 2 and 26"),
    ("listed twice, spelt otherwise", rows(*GOOD, f"./{GOOD[0]}"), {}, r"'0\.png' is listed twice"),
    ("two labels", rows(*GOOD, "0.png,cat"), {}, r"'0\.png' has two labels, in lines 2 and 26.*label_separator"),
    (
        "in two splits",
        split("train", "val", "test") + "0.png,dog,test\n",
        {},
        r"'0\.png' is in train and in test, in lines 2 and 26.*tested on",
    ),
    ("unknown split", split("train", "holdout"), {}, r"line 3: the split is 'holdout'\. Choices: train, val, test"),
    ("no split", split("train", ""), {}, r"line 3: the split is ''"),
    ("split column", rows(*GOOD), {"split_column": "fold"}, r"no column 'fold' \(--data\.split_column\)"),
    ("Split for split", split("train", "test").replace("split", "Split"), {}, r"has a column 'Split', which is not 'split'.*--data\.split_column 'Split'"),
    ("text for a list", rows(*GOOD), {"group_columns": "site"}, r"group_columns is 'site'\. Give a list: \['site'\]"),
    ("no training rows", split("val", "test"), {}, r"There are no train images; found: .*Add rows with split 'train'"),
    ("class only in the test", split("train", "test"), {"val_fraction": 0}, r"test split has classes without training images: 'cat'"),
    ("key column", rows(*GOOD), {"key_column": "patient"}, r"no column 'patient' \(--data\.key_column\)"),
    (
        "empty key",
        rows(*(f"{r},{'' if n == 2 else 'k'}" for n, r in enumerate(GOOD)), header="path,label,key"),
        {"key_column": "key"},
        r"line 4: no key in the column 'key'",
    ),
    (
        "key in two splits",
        rows(*(f"{r},{('train', 'test')[n // 12]},k{n % 5}" for n, r in enumerate(GOOD)), header="path,label,split,key"),
        {"key_column": "key"},
        r"key 'k2' is in train and in test \(lines 4 and 14",
    ),
    (
        "class of one key",
        rows(*(f"{r},{'one' if n % 2 else n}" for n, r in enumerate(GOOD)), header="path,label,key"),
        {"key_column": "key"},
        r"class 'cat' have 1 key, too few for one each in train, val, test",
    ),
    ("group column", rows(*GOOD), {"group_columns": ["site"]}, r"no column 'site' \(--data\.group_columns\)"),
    ("label column of a list", rows(*GOOD), {"label_column": ["label", "dog"]}, r"no column 'dog'"),
    ("neither 0 nor 1", rows(*(f"{r},2" for r in GOOD), header="path,cat,dog"), {"label_column": ["dog", "cat"]}, r"line 2: '2' in the column 'dog' is neither 0 nor 1"),
    ("one label column", rows(*GOOD), {"label_column": ["label"]}, r"label_column is \['label'\]\. Give at least two"),
    ("list and separator", rows(*GOOD), {"label_column": ["a", "b"], "label_separator": "|"}, r"label_column names several\. Give one of the two"),
    ("empty separator", rows(*GOOD), {"label_separator": ""}, r"label_separator is empty"),
    ("no label without several", rows(*GOOD), {"allow_no_label": True}, r"allow_no_label is for several labels an image"),
    ("fractions", rows(*GOOD), {"val_fraction": 0.5, "test_fraction": 0.5}, r"val_fraction is 0\.5 and test_fraction is 0\.5"),
]  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(NAMES):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(root / name)
    (root / "folder").mkdir()
    return root


@pytest.mark.parametrize(
    ("content", "arguments", "text"), [c[1:] for c in TABLES], ids=[c[0] for c in TABLES]
)
def test_table(
    content: Any, arguments: dict[str, Any], text: str, images: Path, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=text):
        TableData(path, root=images, num_workers=0, **arguments).setup("fit")


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    return head + array.astype(np.uint8).tobytes()


PICTURES, KINDS = np.zeros((20, 4, 4)), np.arange(20) % 2


def write_idx(root: Path, **files: Any) -> None:
    """The four files, some in place of the good ones; None leaves one out."""
    good = {
        "train_images": PICTURES,
        "train_labels": KINDS,
        "t10k_images": PICTURES,
        "t10k_labels": KINDS,
    }
    for name, content in (good | files).items():
        split, what = name.split("_")
        path = root / f"{split}-{what}-idx{3 if what == 'images' else 1}-ubyte"
        if isinstance(content, np.ndarray):
            path.write_bytes(idx(content))
        elif content is not None:
            path.with_suffix(".gz").write_bytes(content)


# Name; files; arguments of IdxData; message.
IDX: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("a file is missing", {"t10k_labels": None}, {}, r"There is no t10k-labels-idx1-ubyte or .*\.gz in .*It holds t10k-images"),
    ("images for labels", {"train_labels": PICTURES}, {}, r"is no IDX file of bytes in 1 dimensions: it starts with 00 00 08 03"),
    ("text", {"train_labels": gzip.compress(b"hello")}, {}, r"is no IDX file .*starts with 68 65 6c 6c"),
    ("cut short", {"train_images": gzip.compress(idx(PICTURES)[:-5])}, {}, r"should hold 320 bytes for shape \[20, 4, 4\], but holds 315"),
    ("cut header", {"train_images": gzip.compress(idx(PICTURES)[:9])}, {}, r"ends within its header"),
    ("cut archive", {"train_images": gzip.compress(idx(PICTURES))[:-9]}, {}, r"cannot be unpacked"),
    ("other lengths", {"train_labels": KINDS[:10]}, {}, r"has 20 train images and 10 labels"),
    ("too few names", {}, {"label_names": ["a"]}, r"label_names has 1 different names, .* have 2 classes"),
    ("a name twice", {}, {"label_names": ["a", "a"]}, r"label_names has 1 different names"),
    ("a fraction", {}, {"val_fraction": 1.0}, r"val_fraction is 1\.0\. Give a share"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("files", "arguments", "text"), [c[1:] for c in IDX], ids=[c[0] for c in IDX]
)
def test_idx(files: dict[str, Any], arguments: dict[str, Any], text: str, tmp_path: Path) -> None:
    write_idx(tmp_path, **files)
    with pytest.raises(ValueError, match=text):
        IdxData(tmp_path, **arguments).setup("fit")


def absent(root: Path) -> Any:
    return TableData(root / "no.csv")


def folder(root: Path) -> Any:
    return TableData(root)


def spreadsheet(root: Path) -> Any:
    (root / "t.xlsx").write_bytes(b"PK")
    return TableData(root / "t.xlsx")


def parquet(root: Path) -> Any:
    (root / "t.parquet").write_bytes(b"PAR1 and no more")
    return TableData(root / "t.parquet")


def no_folder(root: Path) -> Any:
    return IdxData(root / "nowhere")


def no_images(root: Path) -> Any:
    (root / "cat").mkdir()
    return FolderData(root)


def case_of_folders(root: Path) -> Any:
    for name in ("cat", "Cat"):
        (root / name).mkdir()
        Image.new("RGB", (8, 8)).save(root / name / "a.png")
    return FolderData(root)


FILES: list[tuple[Callable[[Path], Any], str]] = [
    (absent, r"no\.csv does not exist \(looked in .*\)\. Check --data\.table"),
    (folder, r"is a folder, not a table"),
    (spreadsheet, r"is no table that can be read\. Choices: \.csv, .*save it as CSV"),
    (parquet, r"cannot be read as Parquet"),
    (no_folder, r"There is no such folder\. Give the folder of MNIST's four files"),
    (no_images, r"There are no images in .*found no files at all"),
    (case_of_folders, r"The classes 'Cat' and 'cat' in .* differ only by case or spaces"),
]


@pytest.mark.parametrize(("make", "text"), FILES, ids=[make.__name__ for make, _ in FILES])
def test_files(make: Callable[[Path], Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=text):
        make(tmp_path).setup("fit")


# Options of `vfm fit` beyond a recipe, and what is said; $T is a good table.
COMMANDS: list[tuple[str, str]] = [
    ("--data.augment '[HorizontalFlp]'", r"no transform 'HorizontalFlp'\. Did you mean 'Horiz"),
    ("--data.augment '[{Rotate: {limt: 5}}]'", r"Rotate cannot be made with .*limt"),
    (
        "--data.augment '[{RandomCrop: {height: 90, width: 90}}]'",
        r"failed on an image of .* pixels",
    ),
    ("--data.augment '[ToFloat]'", r"must give uint8 RGB"),
    (
        "--model.loss CrossEntropi",
        r"'CrossEntropi', but there is no such Loss\. Did you mean 'CrossEntropy'",
    ),
    (
        "--model.loss AsymmetricLoss",
        r"AsymmetricLoss answers yes or no for each label, but the task has one",
    ),
    ("--model.loss FocalLoss --model.loss.gamma -1", r"gamma is -1"),
    ("--model.multilabel true", r"The data has one label an image, the task has multilabel True"),
    ("--model.class_weights '{fox: 2}'", r"class_weights names \['fox'\], which are no classes"),
    ("--model.class_weights balancd", r"'balancd'"),
    ("--model.adapt linar", r"'linar'.*Did you mean 'linear'"),
    ("--model.mixing.mixup 20", r"mixing\.mixup is 20"),
    ("--model.optim.layer_decay 2", r"optim\.layer_decay is 2"),
    ("--model.optim.ema 1", r"optim\.ema is 1"),
    (
        "--model.head AttentionPoolHead --model.head.num_heads 7",
        r"num_heads is 7, which does not divide",
    ),
    ("--model.head MLPHead --model.head.hidden 0", r"hidden is 0"),
    ("--data.label_separator ''", r"label_separator is empty"),
    (
        "--data.token_budget 400",
        r"There is no option 'data\.token_budget'\. It is one of PairData\.\nTableData takes: table",
    ),
    (
        "--model.freeze_at null",
        r"--model\.freeze_at is null, which it cannot be\. Leave it out for its default, 0\.$",
    ),
    ("--model.optim.lr null", r"--model\.optim\.lr is 'null'\. Expected a number\.$"),
    ("--data.augment null", r"--data\.augment is null, .* its default, auto\.$"),
    ("--data.tabel x.csv", r"There is no option 'data\.tabel'.*Did you mean 'table'"),
]


@pytest.mark.parametrize(("options", "text"), COMMANDS, ids=[options for options, _ in COMMANDS])
def test_command(
    options: str, text: str, images: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "t.csv"
    table.write_text(rows(*GOOD))
    words = shlex.split(
        "fit --model ClassificationTask --model.backbone test_vit --model.pretrained false --model.image_size 16 "
        f"--data TableData --data.table {table} --data.root {images} --data.num_workers 0 --trainer.accelerator cpu "
        f"--trainer.fast_dev_run true --trainer.enable_progress_bar false {options}"
    )
    assert main(words) != 0
    said = capsys.readouterr().err
    assert re.search(text, said, re.DOTALL), said
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 12


def test_there_are_sixty_cases() -> None:
    assert len(TABLES) + len(IDX) + len(FILES) + len(COMMANDS) >= 60

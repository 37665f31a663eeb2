"""The one internal form of real and forged images, as a table with a row for each image or video."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from vfm.data.class_folders import SPLIT_FOLDERS
from vfm.data.layouts import list_files_beside
from vfm.data.splits import SPLITS
from vfm.data.tables import Table, read_table, write_rows
from vfm.deepfake.data.files import read_json
from vfm.deepfake.data.record import (
    COLUMNS,
    FAKE,
    LABELS,
    MAX_ABSENT,
    REAL,
    DeepfakeDataError,
    Item,
    LabelName,
    check_items,
    count_label,
    fingerprint,
    natural,
    ordered,
    require_both,
)

__all__ = [
    "COLUMNS",
    "FAKE",
    "LABELS",
    "REAL",
    "DeepfakeDataError",
    "Item",
    "LabelName",
    "check_items",
    "count_label",
    "fingerprint",
    "natural",
    "ordered",
    "present",
    "read_manifest",
    "require_both",
    "write_manifest",
]

_JOIN = "|"
_NO_METHOD = frozenset({"", "-", "none", "real", "original", "pristine"})


def write_manifest(path: str | Path, items: Sequence[Item], *, relative: bool = True) -> None:
    """Write items as CSV.

    Args:
        path: Of the file.
        items: With absolute paths.
        relative: Write paths relative to the file's folder where they lie below it; not where they will be read
            relative to another.

    Raises:
        DeepfakeDataError: The items contradict each other, or an identity holds the mark that separates identities.
    """
    check_items(items, str(path))
    folder = Path(path).absolute().parent.as_posix().rstrip("/") + "/"
    rows = []
    for item in items:
        if any(_JOIN in name for name in item.identities):
            raise DeepfakeDataError(
                f"The identity '{_JOIN.join(item.identities)}' of {item.path} holds '{_JOIN}', which separates "
                "identities in a manifest. Name it without."
            )
        row = {name: str(value) for name, value in item._asdict().items()}
        row["identities"] = _JOIN.join(item.identities)
        for name in ("path", "mask", "landmarks"):
            row[name] = row[name].removeprefix(folder) if relative else row[name]
        rows.append(row)
    write_rows(Path(path), COLUMNS, rows)


def read_manifest(
    path: str | Path,
    root: str | Path | None = None,
    labels: Mapping[str, LabelName] | None = None,
) -> list[Item]:
    """Read a manifest: a table with at least the columns path and label, or a JSON list of objects with these keys.

    Args:
        path: A .csv, .tsv, .txt, .parquet or .json file.
        root: The folder that relative paths start from; by default that of the manifest.
        labels: What labels other than real and fake mean, such as {"0": "real", "1": "fake"}. In a JSON list 1 is fake
            without it, as that format has it.

    Returns:
        The items in the order of the rows, with absolute paths. Files that are missing are left out with a warning.

    Raises:
        DeepfakeDataError: The list, a row of it or its videos are not as they must be.
    """
    path = Path(path)
    table = _json_table(path) if path.suffix.lower() == ".json" else _table(path)
    words = {name: name for name in LABELS} | dict(labels or {})
    if path.suffix.lower() == ".json" and labels is None:
        words |= {"0": REAL, "1": FAKE}
    for column in ("path", "label"):
        _require(table, column)
    base = Path(root) if root is not None else path.parent
    items = [
        _item(table, index, base.absolute().as_posix(), words) for index in range(len(table.rows))
    ]
    _check_videos(table, items)
    check_items(items, str(path))
    return present(items, str(path), str(base))


def present(items: Sequence[Item], where: str, root: str) -> list[Item]:
    """The items whose files exist.

    Raises:
        DeepfakeDataError: More than one in a hundred is missing.
    """
    files = list_files_beside(item.path for item in items)
    absent = [item for item in items if item.path not in files]
    if not absent:
        return list(items)
    shown = ", ".join(item.path for item in absent[:3]) + (", ..." if len(absent) > 3 else "")
    said = f"{len(absent)} of the {len(items)} files that {where} names are missing: {shown}."
    if len(absent) > MAX_ABSENT * len(items):
        raise DeepfakeDataError(
            f"{said} Relative paths start from {root}. Give the folder that they start from, or mend the list."
        )
    counts = ", ".join(
        f"{number} {label}" for label in LABELS if (number := count_label(absent, label))
    )
    warnings.warn(f"{said} They are left out ({counts}).", stacklevel=2)
    return [item for item in items if item.path in files]


def _item(table: Table, index: int, base: str, words: Mapping[str, str]) -> Item:
    cells = {name: value.strip() for name, value in table.rows[index].items()}
    where = table.where(index)
    path = clean_path(cells["path"])
    if not path:
        raise DeepfakeDataError(f"{where}: the path is empty. Fill it in, or delete the row.")
    label = _label(cells["label"], where, words)
    frame = cells.get("frame", "")
    if frame and not re.fullmatch(r"-1|\d+", frame):
        raise DeepfakeDataError(
            f"{where}: the frame is '{frame}'. Give a whole number from 0, or nothing."
        )
    joined = cells.get("identities") or cells.get("identity") or ""
    names = [name.strip() for name in re.split(r"[|;]", joined)]
    return Item(
        path=below(base, path),
        label=label,
        video=clean_path(cells.get("video", "")) or path,
        identities=tuple(name for name in names if name),
        method=_method(label, cells.get("method", "")),
        dataset=cells.get("dataset", ""),
        split=_split(cells.get("split", ""), where),
        compression=cells.get("compression", ""),
        mask=below(base, clean_path(cells.get("mask", ""))),
        source=clean_path(cells.get("source", "")),
        frame=int(frame or -1),
        landmarks=below(base, clean_path(cells.get("landmarks", ""))),
    )


def clean_path(text: str) -> str:
    """A path with forward slashes, also where Windows wrote it."""
    text = text.strip().replace("\\", "/")
    # Most paths are clean, and there are many.
    clean = not text or not ("//" in text or "./" in text or text[-1] in "./")
    return text if clean else os.path.normpath(text).replace(os.sep, "/")


def below(base: str, path: str) -> str:
    """A path from a folder on; "" stays so.

    Both as text: making a Path of each of a million names would take most of the time.
    """
    return path if not path or path.startswith("/") or path[1:3] == ":/" else f"{base}/{path}"


def _label(cell: str, where: str, words: Mapping[str, str]) -> LabelName:
    found = words.get(cell) or words.get(cell.lower())
    if found == REAL:
        return "real"
    if found == FAKE:
        return "fake"
    hint = (
        " Which digit is fake differs between data sets: write the words, or say what the digits mean with "
        'labels={"0": ..., "1": ...}.'
        if re.fullmatch(r"[\d.]+|true|false", cell.lower())
        else ""
    )
    raise DeepfakeDataError(f"{where}: the label is '{cell}'. Choices: {', '.join(words)}.{hint}")


def _method(label: str, cell: str) -> str:
    if label == FAKE:
        return cell or FAKE
    return "" if cell.lower() in _NO_METHOD else cell


def _split(cell: str, where: str) -> str:
    split = SPLIT_FOLDERS.get(cell.lower(), "")
    if cell and not split:
        raise DeepfakeDataError(f"{where}: the split is '{cell}'. Choices: {', '.join(SPLITS)}.")
    return split


def _check_videos(table: Table, items: Sequence[Item]) -> None:
    """Refuse frames of both labels under one name, before the missing method of the fakes tells them apart."""
    if "video" not in table.columns:
        warnings.warn(
            f"{table.path} has no column 'video': each image counts as a video of its own. If they are frames of "
            "videos, add the column, since frames of one video must not be in two splits.",
            stacklevel=3,
        )
        return
    seen: dict[tuple[str, str, str], int] = {}
    for index, item in enumerate(items):
        given = table.rows[index].get("method", "").strip()
        first = seen.setdefault((item.dataset, given, item.video), index)
        if items[first].label != item.label:
            lines = f"lines {table.lines[first]} and {table.lines[index]}"
            raise _mixed(f"{table.path} ({lines})", items[first], item)


def _mixed(where: str, first: Item, second: Item) -> DeepfakeDataError:
    name = "/".join(part for part in (second.dataset, second.method, second.video) if part)
    return DeepfakeDataError(
        f"{where}: the video '{name}' has both labels: {first.path} is {first.label}, {second.path} is {second.label}. "
        "A video has one label: give the fakes a method in the column 'method', or another name in 'video'."
    )


def _table(path: Path) -> Table:
    try:
        return read_table(path)
    except ValueError as error:
        # The reader speaks of the option of another data module.
        raise DeepfakeDataError(
            str(error).replace("Check --data.table.", "Check the path.")
        ) from error


def _json_table(path: Path) -> Table:
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise DeepfakeDataError(
            f'{path} is not a list of objects. A list of images is [{{"path": "a.png", "label": "real"}}, ...]; for '
            "the JSON of DeepfakeBench set format to deepfakebench."
        )
    if not content:
        raise DeepfakeDataError(
            f"{path} is an empty list. Give a list with an object for each image."
        )
    columns = list(dict.fromkeys(str(name) for row in content for name in row))
    rows = [{name: _cell(row.get(name)) for name in columns} for row in content]
    return Table(path, columns, rows, list(range(1, len(rows) + 1)))


def _cell(value: object) -> str:
    if isinstance(value, list):
        return _JOIN.join(map(str, value))
    return "" if value is None else str(value)


def _require(table: Table, column: str) -> None:
    try:
        table.require(column, "of a manifest")
    except ValueError as error:
        raise DeepfakeDataError(str(error)) from error

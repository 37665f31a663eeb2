"""Manifest: the one internal form of real and fake images, as a table with a row for each image or video."""

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
    FAKE,
    LABELS,
    MAX_ABSENT,
    DeepfakeDataError,
    Item,
    LabelName,
    check_items,
    count_label,
    parse_label,
)

COLUMNS = Item._fields
"""Columns of a manifest, of which only path and label are needed."""

_JOIN = "|"
_PATHS = ("path", "mask", "landmarks")
_HINT = (
    " Which digit is fake differs between data sets: write the words, or say what the digits mean with "
    'labels={"0": ..., "1": ...}.'
)
_NO_METHOD = frozenset({"", "-", "none", "real", "original", "pristine"})


def write_manifest(path: str | Path, items: Sequence[Item], *, relative: bool = True) -> None:
    """Write items as CSV.

    Args:
        path: A .csv file.
        items: Images and videos with absolute paths.
        relative: Write paths relative to the file's folder where they lie below it; not where they will be read
            relative to another.

    Raises:
        DeepfakeDataError: The items contradict each other, or an identity holds the mark that separates identities.
    """
    check_items(items, str(path))
    folder = Path(path).absolute().parent.as_posix().rstrip("/") + "/" if relative else ""
    rows = []
    for item in items:
        if any(_JOIN in name for name in item.identities):
            raise DeepfakeDataError(
                f"The identity '{_JOIN.join(item.identities)}' of {item.path} holds '{_JOIN}', which separates "
                "identities in a manifest. Name it without."
            )
        row = {name: str(value) for name, value in item._asdict().items()}
        row |= {name: row[name].removeprefix(folder) for name in _PATHS}
        rows.append(row | {"identities": _JOIN.join(item.identities)})
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
    is_json = path.suffix.lower() == ".json"
    try:
        table = _read_json_table(path) if is_json else read_table(path)
        for column in ("path", "label"):
            table.require(column, "of a manifest")
    except DeepfakeDataError:
        raise
    except ValueError as error:
        # The reader speaks of the option of another data module.
        message = str(error).replace("Check --data.table.", "Check the path.")
        raise DeepfakeDataError(message) from error
    words = dict(labels or {})
    if is_json and labels is None:
        words = {"0": "real", "1": "fake"}
    base = Path(root) if root is not None else path.parent
    start = base.absolute().as_posix()
    items = [_read_row(table, index, start, words) for index in range(len(table.rows))]
    _check_videos(table, items)
    check_items(items, str(path))
    return drop_absent(items, str(path), str(base))


def drop_absent(items: Sequence[Item], where: str, root: str) -> list[Item]:
    """Return the items whose files exist; `where` and `root` say in the message what names them, and from where.

    Raises:
        DeepfakeDataError: More than one in a hundred is missing.
    """
    files = list_files_beside(item.path for item in items)
    absent = [item for item in items if item.path not in files]
    if not absent:
        return list(items)
    shown = ", ".join(item.path for item in absent[:3]) + (", ..." if len(absent) > 3 else "")
    message = f"{len(absent)} of the {len(items)} files that {where} names are missing: {shown}."
    if len(absent) > MAX_ABSENT * len(items):
        raise DeepfakeDataError(
            f"{message} Relative paths start from {root}. Give the folder that they start from, or mend the list."
        )
    counts = ((count_label(absent, label), label) for label in LABELS)
    listed = ", ".join(f"{number} {label}" for number, label in counts if number)
    warnings.warn(f"{message} They are left out ({listed}).", stacklevel=2)
    return [item for item in items if item.path in files]


def _read_row(table: Table, index: int, base: str, words: Mapping[str, LabelName]) -> Item:
    cells = dict.fromkeys(COLUMNS, "") | {k: v.strip() for k, v in table.rows[index].items()}
    where = table.where(index)
    paths = {name: _clean_path(cells[name]) for name in (*_PATHS, "video", "source")}
    if not paths["path"]:
        raise DeepfakeDataError(f"{where}: the path is empty. Fill it in, or delete the row.")
    is_digit = re.fullmatch(r"[\d.]+|true|false", cells["label"].lower())
    label = parse_label(cells["label"], where, words, _HINT if is_digit else "")
    frame = cells["frame"]
    if frame and not re.fullmatch(r"-1|\d+", frame):
        raise DeepfakeDataError(
            f"{where}: the frame is '{frame}'. Give a whole number from 0, or nothing."
        )
    split = SPLIT_FOLDERS.get(cells["split"].lower(), "")
    if cells["split"] and not split:
        raise DeepfakeDataError(
            f"{where}: the split is '{cells['split']}'. Choices: {', '.join(SPLITS)}."
        )
    method = cells["method"]
    if label == FAKE:
        method = method or FAKE
    elif method.lower() in _NO_METHOD:
        method = ""
    persons = re.split(r"[|;]", cells["identities"] or cells.get("identity", ""))
    return Item(
        path=_join(base, paths["path"]),
        label=label,
        video=paths["video"] or paths["path"],
        identities=tuple(name.strip() for name in persons if name.strip()),
        method=method,
        dataset=cells["dataset"],
        split=split,
        compression=cells["compression"],
        mask=_join(base, paths["mask"]),
        source=paths["source"],
        frame=int(frame or -1),
        landmarks=_join(base, paths["landmarks"]),
    )


def _clean_path(text: str) -> str:
    """A path with forward slashes, also where Windows wrote it."""
    text = text.strip().replace("\\", "/")
    # Most paths are clean, and there are many.
    is_clean = not text or not ("//" in text or "./" in text or text[-1] in "./")
    return text if is_clean else os.path.normpath(text).replace(os.sep, "/")


def _join(base: str, path: str) -> str:
    """A path from a folder on; "" stays so.

    Both as text: making a Path of each of a million names would take most of the time.
    """
    return path if not path or path.startswith("/") or path[1:3] == ":/" else f"{base}/{path}"


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
        method = table.rows[index].get("method", "").strip()
        other = seen.setdefault((item.dataset, method, item.video), index)
        first = items[other]
        if first.label != item.label:
            raise DeepfakeDataError(
                f"{table.path} (lines {table.lines[other]} and {table.lines[index]}): the video "
                f"'{'/'.join(filter(None, item.key))}' has both labels: {first.path} is "
                f"{first.label}, {item.path} is {item.label}. A video has one label: give the fakes a method in the "
                "column 'method', or another name in 'video'."
            )


def _read_json_table(path: Path) -> Table:
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
    rows = []
    for row in content:
        cells = {name: "" if row.get(name) is None else row[name] for name in columns}
        rows.append(
            {
                k: _JOIN.join(map(str, v)) if isinstance(v, list) else str(v)
                for k, v in cells.items()
            }
        )
    return Table(path, columns, rows, list(range(1, len(rows) + 1)))

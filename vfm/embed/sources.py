"""Images and videos to embed, of a folder, a table or shards, each with the values stored beside its vector."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vfm_runtime.errors import DataError
from vfm_runtime.media.bit_depth import ValueRange
from vfm_runtime.media.image import IMAGE_SUFFIXES, ImageError, Pixels, open_image
from vfm_runtime.media.video import VIDEO_SUFFIXES, is_video, read_video

from vfm.data.class_folders import SPLIT_FOLDERS, list_images, write_prefix
from vfm.data.records import Record, describe_content, read_mtime
from vfm.data.table_rows import join_path, read_names
from vfm.data.tables import read_table
from vfm.data.tar import ShardError, expand_shards, list_shard
from vfm.embed.store import RESERVED

FRAME_MARK = "#t="
"""Stands between the path of a video and the seconds of one of its frames, as in a media fragment's address."""
LABEL_FILE = "cls"
"""Ending of the files in shards that hold labels."""

_SHOWN_FRAMES = 256
"""Frames among which the one to be shown is looked for."""

Cell = str | int | float | None


@dataclass(frozen=True, slots=True)
class SourceImage:
    """One image to embed."""

    path: str
    """Absolute path, by which a store knows it."""
    columns: Mapping[str, Cell]
    """Value by column, such as its label; None, or NaN in a column of numbers, where it has none."""
    num_frames: int = 0
    """Of a video, the frames to embed, spread evenly; 0 of an image."""
    part: Record | None = None
    """Record of what holds the image where that is not the file at `path`, such as a part of a shard."""

    @property
    def record(self) -> Record:
        """Record of what holds the image; one of a file is made when asked for: a million take 90 MB."""
        return self.part or Record(self.path, -1, self.path)

    @property
    def stamp(self) -> str:
        """A checksum that changes with the file's size or time, a value of its columns, or the number of frames."""
        parts: list[Any] = [
            describe_content(self.record),
            read_mtime(self.record),
            sorted(self.columns.items()),
        ]
        parts += [self.num_frames] if self.num_frames else []
        return hashlib.sha256(repr(tuple(parts)).encode()).hexdigest()[:16]


def list_source_images(
    source: str | Path, path_column: str = "path", *, num_frames: int = 0
) -> list[SourceImage]:
    """List the images of a folder, of a table or of shards.

    Images of a folder have the columns `label` and `split`, empty where the folders say nothing; those of a table all
    of its columns, as numbers where every cell is one; those of shards the `label` of their `.cls` files.

    Args:
        source: Folder, .csv, .tsv or .parquet file, or .tar files as `ShardData` names them.
        path_column: Column of a table with the paths of the images, relative to the table.
        num_frames: Frames of each video of a folder; 0 leaves videos out.

    Raises:
        DataError: There are no images, or the table cannot be understood.
        ShardError: There is no such shard, or it is damaged.
    """
    if ".tar" in str(source).lower():
        return _list_shards(str(source))
    source = Path(source)
    if source.is_dir():
        return _list_folder(source, num_frames)
    return _list_table(source, path_column)


def open_stored(path: str, value_range: ValueRange | None = None) -> Pixels:
    """Open what a row of a store was made of, by its path: an image, one in a shard, or a frame of a video.

    A whole video is shown by the frame in its middle.

    Args:
        path: Path of the row.
        value_range: Black and white of images of more than 8 bits, as of the store's model.

    Raises:
        ImageError: It is gone, or cannot be read.
    """
    shard, mark, key = path.rpartition(".tar#")
    if mark:
        try:
            samples = list_shard(f"{shard}.tar", LABEL_FILE)
            data = [sample.image.read() for sample in samples if sample.key == key]
        except (OSError, ShardError) as error:
            raise ImageError(path, str(error), "Embed the shards again.") from error
        if not data:
            raise ImageError(path, "not in the shard any more", "Embed the shards again.")
        return open_image(data[0], value_range=value_range)
    video, mark, time = path.rpartition(FRAME_MARK)
    if not mark and not is_video(path):
        return open_image(path, value_range=value_range)
    frames = read_video(video or path, _SHOWN_FRAMES).frames
    wanted = float(time) if mark else frames[len(frames) // 2].time
    return min(frames, key=lambda frame: abs(frame.time - wanted)).pixels


def _list_shards(pattern: str) -> list[SourceImage]:
    remote = "://" in pattern
    images = []
    for url in expand_shards(pattern):
        shard = url if remote else Path(url).absolute().as_posix()
        images += [
            SourceImage(
                f"{shard}#{sample.key}",
                {"label": sample.label},
                part=Record(sample.image, -1, sample.key),
            )
            for sample in list_shard(shard, LABEL_FILE)
        ]
    return images


def _list_folder(root: Path, num_frames: int) -> list[SourceImage]:
    suffixes = IMAGE_SUFFIXES + (VIDEO_SUFFIXES if num_frames else ())
    prefix, absolute = write_prefix(root), write_prefix(root.absolute())
    names = [path.removeprefix(prefix).replace(os.sep, "/") for path in list_images(root, suffixes)]
    tops = {top.lower() for top, slash, _ in (name.partition("/") for name in names) if slash}
    has_splits = bool(tops) and tops <= set(SPLIT_FOLDERS)
    # Images of one folder share their columns: a million of their own would take a gigabyte.
    shared: dict[tuple[str, bool], Mapping[str, Cell]] = {}
    images = []
    for name in names:
        folder = name.rpartition("/")[0]
        is_clip = name.lower().endswith(VIDEO_SUFFIXES)
        columns = shared.get((folder, is_clip))
        if columns is None:
            columns = shared[folder, is_clip] = _describe_folder(folder, has_splits, is_clip)
        path = (absolute + name).replace(os.sep, "/")
        images.append(SourceImage(path, columns, num_frames * is_clip))
    return images


def _describe_folder(folder: str, has_splits: bool, is_clip: bool) -> Mapping[str, Cell]:
    folders = folder.split("/") if folder else []
    split = SPLIT_FOLDERS[folders[0].lower()] if has_splits and folders else None
    classes = folders[1:] if has_splits else folders
    columns: dict[str, Cell] = {"label": classes[0] if classes else None, "split": split}
    if is_clip:
        columns["time"] = math.nan  # of the whole; its frames have one
    return columns


def _list_table(file: Path, path_column: str) -> list[SourceImage]:
    table = read_table(file)
    root = file.absolute().parent
    names = read_names(table, path_column, root)
    columns = [name for name in table.columns if name != path_column]
    taken = [name for name in columns if name in RESERVED]
    if taken:
        raise DataError(
            f"{file} has a column '{taken[0]}', which a store has for itself. Rename it in the table."
        )
    cells = {name: _convert_cells([row[name] for row in table.rows]) for name in columns}
    first: dict[str, int] = {}
    images = []
    for index, name in enumerate(names):
        path = Path(join_path(root, name)).as_posix()
        if first.setdefault(path, index) != index:
            raise DataError(
                f"{table.where(index)}: '{name}' is in the table twice. Keep one row for each image."
            )
        values = {column: cells[column][index] for column in columns}
        images.append(SourceImage(path, values))
    return images


def _convert_cells(texts: Sequence[str]) -> list[Cell]:
    """Return the cells of a column: whole numbers or numbers where all are, else text; empty ones are None."""
    present = [text.strip() for text in texts if text.strip()]
    convert: type[int] | type[float] | type[str] = str
    # A leading zero is part of a name, such as a postal code.
    if present and all(re.fullmatch(r"-?(0|[1-9]\d{0,17})", text) for text in present):
        convert = int
    elif present and all(
        re.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", text) for text in present
    ):
        convert = float
    return [convert(text.strip()) if text.strip() else None for text in texts]

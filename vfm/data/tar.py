"""Images inside tar files: where each lies, and how it is read."""

import hashlib
import json
import os
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
from fsspec.core import url_to_fs
from vfm_runtime.errors import VfmError

_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff", "ppm", "pgm")
_BLOCK = 512
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardError(VfmError, ValueError):
    """A shard cannot be read, or does not hold what was expected."""


class CutShardError(ShardError):
    """A shard ends before its samples do."""

    def __init__(self, url: str, where: str) -> None:
        super().__init__(f"The shard {url} is cut off {where}. Copy it again.")
        self.summary = f"{url} {where}"


class TarImage(NamedTuple):
    """One image in a tar file."""

    shard: str
    """Path or URL of the tar file."""
    offset: int
    """Position of the image's first byte in the tar file."""
    size: int
    """Number of bytes."""

    def read(self) -> bytes:
        """The bytes of the image file.

        Raises:
            ShardError: The shard ends before them.
        """
        return next(read_images([self]))


class TarSample(NamedTuple):
    """One sample of a shard."""

    key: str
    """Name that its files share, up to the first dot."""
    image: TarImage
    label: str | None
    """Content of its label file."""


def read_images(images: Iterable[TarImage]) -> Iterator[bytes]:
    """The bytes of image files; those of a shard that follow each other are read without opening it anew.

    Raises:
        ShardError: A shard ends before an image.
    """
    for shard, group in groupby(images, key=lambda image: image.shard):
        with fsspec.open(shard, "rb") as file:
            for image in group:
                file.seek(image.offset)
                data: bytes = file.read(image.size)
                if len(data) < image.size:
                    end = image.offset + image.size
                    raise CutShardError(shard, f"before byte {end:,}")
                yield data


def list_shards(urls: Sequence[str], label_file: str) -> list[TarSample]:
    """The samples of several shards, one after the other; arguments and errors are those of `list_shard`.

    Raises:
        ShardError: A shard cannot be used; all that are cut off are counted and listed.
    """
    samples: list[TarSample] = []
    cut: list[CutShardError] = []
    for url in urls:
        try:
            samples += list_shard(url, label_file)
        except CutShardError as error:
            cut.append(error)
    if len(cut) > 1:
        listed = "\n".join(error.summary for error in cut)
        raise ShardError(
            f"{len(cut)} of {len(urls)} shards are cut off. Copy them again:\n{listed}"
        )
    if cut:
        raise cut[0]
    return samples


def list_shard(url: str, label_file: str) -> list[TarSample]:
    """The samples of a shard, from the headers of the tar file; cached, so that it is read through once.

    Args:
        url: Path or URL of the tar file.
        label_file: Ending of the files that hold labels, such as `cls`.

    Raises:
        ShardError: It is missing, no tar file, cut off, or a sample has no image.
    """
    try:
        fs, path = url_to_fs(url)
        info = fs.info(path)
    except (OSError, ImportError, ValueError) as error:
        raise ShardError(
            f"The shard {url} cannot be reached: {error}. Check the path, the credentials, and that the package for "
            "its protocol is installed (s3fs, gcsfs, adlfs)."
        ) from error
    changed = str(info.get("mtime") or info.get("ETag") or info.get("etag"))
    state = json.dumps([url, info["size"], changed, label_file])
    folder = Path(os.environ.get("VFM_CACHE") or Path.home() / ".cache" / "vfm") / "shards"
    cached = folder / f"{hashlib.sha256(state.encode()).hexdigest()[:32]}.json"
    if cached.is_file():
        rows = json.loads(cached.read_text(encoding="utf-8"))
        return [
            TarSample(key, TarImage(url, offset, size), label) for key, offset, size, label in rows
        ]
    samples = _scan(url, label_file)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [[s.key, s.image.offset, s.image.size, s.label] for s in samples]
    partial = cached.with_name(f"{cached.name}.{os.getpid()}")
    partial.write_text(json.dumps(rows), encoding="utf-8")
    partial.replace(cached)  # atomic on every system
    return samples


def _scan(url: str, label_file: str) -> list[TarSample]:
    images: dict[str, TarImage] = {}
    labels: dict[str, str] = {}
    try:
        with fsspec.open(url, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for entry in tar:
                folder, slash, base = entry.name.rpartition("/")
                stem, _, ending = base.partition(".")
                key = f"{folder}{slash}{stem}"
                if entry.isfile() and ending.lower() in _IMAGES:
                    images[key] = TarImage(url, entry.offset_data, entry.size)
                elif entry.isfile() and ending == label_file:
                    content: Any = tar.extractfile(entry)
                    labels[key] = content.read().decode("utf-8").strip()
            # A tar file ends with two empty blocks: without them, its end is missing, and samples with it.
            file.seek(tar.offset)
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise CutShardError(url, f"after {len(images)} samples")
    except (tarfile.TarError, EOFError) as error:
        with fsspec.open(url, "rb") as file:
            magic: bytes = file.read(_BLOCK)[257:262]
        if magic == b"ustar":
            raise CutShardError(url, f"after {len(images)} samples") from error
        raise ShardError(
            f"{url} is no tar file without compression: {error}. Unpack a .tar.gz; images gain nothing by it."
        ) from error
    missing = [key for key in labels if key not in images]
    if missing or not images:
        which = f"'{missing[0]}' has a label but no image" if missing else "it holds no image"
        raise ShardError(f"{url}: {which}. Endings of images: {', '.join(_IMAGES)}.")
    return [TarSample(key, image, labels.get(key)) for key, image in images.items()]


def expand_shards(pattern: str) -> list[str]:
    """The shards that a pattern names, sorted.

    Raises:
        ShardError: There are none.
    """
    urls = [url for part in pattern.split("::") for url in _expand_part(part)]
    if not urls:
        raise ShardError(
            f"No shard matches '{pattern}'. Give a path or URL with * or with numbers such as "
            "train-{000..127}.tar; several are joined by ::"
        )
    return urls


def _expand_part(pattern: str) -> list[str]:
    if numbers := _NUMBERS.search(pattern):
        first, last = numbers[1], numbers[2]
        names = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
        before, after = pattern[: numbers.start()], pattern[numbers.end() :]
        return [url for name in names for url in _expand_part(before + name + after)]
    if "*" not in pattern:
        return [pattern]
    fs, path = url_to_fs(pattern)
    remote = "://" in pattern
    return [fs.unstrip_protocol(p) if remote else str(Path(p)) for p in sorted(fs.glob(path))]

"""Location of a store: a folder, which one process at a time writes to, or an address in an object store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from vfm_runtime.errors import MissingPackageError, VfmError

LOCK_FILE = ".vfm.lock"


class StoreError(VfmError, ValueError):
    """A store cannot be opened, or does not hold what is asked of it; the message says what to do."""


def find_folder(uri: str) -> Path | None:
    """Return the folder of a store on this machine, also of a `file://` address; None of one in an object store.

    Raises:
        StoreError: The address is of a file, and names no absolute folder.
    """
    if "://" not in uri:
        return Path(uri)
    parts = urlsplit(uri)
    if parts.scheme != "file":
        return None
    if parts.netloc or len(parts.path) < 2 or parts.query or parts.fragment:
        raise StoreError(
            f"{uri} is no address of a folder on this machine. Write three slashes and the whole path, such as "
            "file:///data/my_store."
        )
    return Path(url2pathname(parts.path))


def connect_database(uri: str) -> Any:
    """Connect to the database of LanceDB that a store lies in, which reads little ahead.

    Raises:
        MissingPackageError: LanceDB is not installed.
    """
    # LanceDB reads 2 GiB ahead, so that compaction would hold half a million rows.
    os.environ.setdefault("LANCE_DEFAULT_IO_BUFFER_SIZE", f"{64 * 2**20}")
    try:
        import lancedb
    except ImportError as error:
        raise MissingPackageError(
            "A store of embeddings takes LanceDB, which is not installed: pip install 'vfm[search]'."
        ) from error
    folder = find_folder(uri)
    if folder is not None and "://" in uri:
        uri = f"file://{folder.as_posix()}"  # LanceDB takes %20 in an address as it stands
    return lancedb.connect(uri)


@contextmanager
def lock_store(uri: str) -> Iterator[None]:
    """Keep other processes of this machine from writing to a store in a folder, which need not exist yet.

    In an object store nothing is locked: LanceDB itself refuses one of two writes that clash.

    Raises:
        StoreError: Another one writes.
    """
    folder = find_folder(uri)
    if folder is None:
        yield
        return
    try:
        import fcntl
    except ImportError:  # Windows: LanceDB itself refuses one of two writes that clash
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StoreError(
                f"Another process is writing to {uri}. Wait until it is through, or name another store."
            ) from error
        yield


@contextmanager
def explain_failure(uri: str) -> Iterator[None]:
    """Turn what goes wrong while a store is written into a StoreError that says what to do."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise StoreError(
            f"{uri} could not be written: {str(error).splitlines()[0]} What was written before can be read. "
            "Make room on the disk, or end what else writes to it, and run the same command again: it goes on."
        ) from error

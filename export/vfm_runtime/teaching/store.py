"""State folder: a taught state in one file, replaced atomically, and seen at once by all processes of a machine."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from vfm_runtime.errors import DataError, StateError
from vfm_runtime.teaching.state import TaughtState

STATE_FILE = "taught.npz"
_LOCK_FILE = ".lock"

_Stamp = tuple[int, int, int]


class StorageError(StateError):
    """A state cannot be written, as on a full disk; what was taught before is as it was."""


class StateStore:
    """Holds the taught state of one model: in a folder, or in memory alone. Threads may share it."""

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        """Open the folder, which is made when something is taught.

        Args:
            folder: Folder of the state; None to keep it in memory.
            fingerprint: Fingerprint of the model's vectors.

        Raises:
            DataError: The state of the folder is damaged, or of another model, or the folder is that of a server, with
                states below it.
        """
        if folder is not None and not (folder / STATE_FILE).exists():
            _refuse_server_folder(folder)
        self.folder = folder
        self._fingerprint = fingerprint
        self._lock = threading.RLock()
        self._state = TaughtState(fingerprint)
        self._stamp: _Stamp | None = None
        self.read()

    @property
    def path(self) -> Path | None:
        """File of the state."""
        return None if self.folder is None else self.folder / STATE_FILE

    def read(self) -> TaughtState:
        """Return the state as it is now, read again where another process has changed it.

        Raises:
            DataError: It is damaged, or of another model.
        """
        if self.path is None:
            return self._state
        with self._lock:
            stamp = _take_stamp(self.path)
            if stamp != self._stamp:
                state = TaughtState(self._fingerprint)
                if stamp is not None:
                    state = self._check(TaughtState.read(self.path), self.path)
                self._state, self._stamp = state, stamp
            return self._state

    def change(self, edit: Callable[[TaughtState], TaughtState]) -> TaughtState:
        """Replace the state by an edited one, and return it; whoever reads from now on sees it.

        Raises:
            StorageError: It cannot be written; the state stays as it was.
            DataError: As of `read`.
        """
        with self._lock, self._hold_folder():
            before = self.read()
            state = edit(before)
            if state.version != before.version:
                self._write(state)
            return self._state

    def export(self, path: Path) -> TaughtState:
        """Write the state to a file, which `import_file` of another replica reads.

        Raises:
            StateError: Nothing was ever taught, and would replace what the other was taught.
            StorageError: The file cannot be written.
        """
        state = self.read()
        if state.version == 0:
            where = "" if self.folder is None else f" in {self.folder}"
            raise StateError(
                f"Nothing was taught{where}, so that there is nothing to export. Check the folder, or teach first."
            )
        _replace_file(path, state.to_bytes(), 0)
        return state

    def import_file(self, path: Path) -> TaughtState:
        """Replace the state by that of a file that `export` wrote; its version is higher than both.

        Raises:
            DataError: The file is none, or of another model.
        """
        if not path.is_file():
            raise DataError(f"There is no file {path}. Give one that --export wrote.")
        state = self._check(TaughtState.read(path), path)

        def replace_all(before: TaughtState) -> TaughtState:
            version = max(before.version, state.version) + 1
            return replace(state, version=version)

        return self.change(replace_all)

    def _check(self, state: TaughtState, path: Path) -> TaughtState:
        if state.fingerprint != self._fingerprint:
            raise DataError(
                f"{path} was taught to another model: its vectors have the fingerprint {state.fingerprint[:12]}, and "
                f"this model's are {self._fingerprint[:12]}. Take that model, or another folder, and teach again."
            )
        return state

    def _write(self, state: TaughtState) -> None:
        if self.path is not None:
            before = 0 if self._stamp is None else self._stamp[1]
            _replace_file(self.path, state.to_bytes(), before)
            self._stamp = _take_stamp(self.path)
        self._state = state

    @contextlib.contextmanager
    def _hold_folder(self) -> Iterator[None]:
        """Let one process alone change the folder."""
        if self.folder is None:
            yield
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise _explain(self.folder, error) from error
        try:
            _wait_for_lock(handle)
            yield
        finally:
            os.close(handle)


def _refuse_server_folder(folder: Path) -> None:
    """Refuse a folder that has no state, and states below it: it would look as if nothing was taught."""
    below = sorted(
        path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{STATE_FILE}")
    )
    if below:
        raise DataError(
            f"{folder} is the state of a server, which keeps one for each model and its weights, NAME/FINGERPRINT. "
            f"Give that of this model: {', '.join(map(str, below))}."
        )


def _take_stamp(path: Path) -> _Stamp | None:
    """Return what tells two files of one path apart: each is written with a later time than the one before."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _replace_file(path: Path, data: bytes, after_ns: int) -> None:
    """Write a file beside another, and put it in its place; its time is later than `after_ns`.

    Raises:
        StorageError: It cannot be written, as on a full disk.
    """
    draft: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Readable by its owner alone, as examples may be private.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        draft = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        moment = max(time.time_ns(), after_ns + 1_000_000)
        os.utime(draft, ns=(moment, moment))
        draft.replace(path)
    except OSError as error:
        if draft is not None:
            draft.unlink(missing_ok=True)
        raise _explain(path, error) from error


def _explain(path: Path, error: OSError) -> StorageError:
    return StorageError(
        f"{path} cannot be written ({error.strerror or error}). What was taught before is as it was. Make room, or see "
        "to the permissions, and teach again."
    )


def _wait_for_lock(handle: int) -> None:
    """Wait until no other process holds the lock; closing the file, or the end of the process, lets go of it."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)

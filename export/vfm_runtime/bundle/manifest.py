"""Manifest of a bundle, `vfm.json`: the contract and the sha256 of every file; read, checked and written."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from vfm_runtime.bundle.contract import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    ONEFILE_FILE,
    PRECISION_FILES,
    PREPROCESS_FILE,
    REFERENCE_FILE,
    WEIGHTS_FILE,
    Contract,
    parse_json,
)
from vfm_runtime.errors import BundleError, ContractError
from vfm_runtime.search import ROWS_FILE, VECTORS_FILE
from vfm_runtime.text import TEXT_FILE, TEXT_WEIGHTS_FILE, TOKENIZER_FILE

REQUIRED_FILES = (PREPROCESS_FILE, MODEL_FILE)
"""Without these there is nothing to run."""

# Files that the runtime opens when they are there. Unlisted, their bytes would go unchecked.
_READ_FILES = (
    *(PREPROCESS_FILE, *PRECISION_FILES.values(), WEIGHTS_FILE, ONEFILE_FILE),
    *(REFERENCE_FILE, GOLDEN_FILE, VECTORS_FILE, ROWS_FILE),
    *(TEXT_FILE, TEXT_WEIGHTS_FILE, TOKENIZER_FILE),
)

_T = TypeVar("_T")
_REMEDY = "Copy the bundle again or export anew."


@dataclass(frozen=True)
class Manifest:
    """Content of `vfm.json`."""

    contract: Contract
    """Task, labels and rules of the model."""
    files: dict[str, str]
    """Sha256 by name, relative to the bundle, of every other file."""


def hash_file(path: str | Path) -> str:
    """Return the sha256 of a file of any size, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: str | Path, contract: Contract) -> Path:
    """Write `vfm.json`, the last file in the folder of a bundle, and return its path.

    Raises:
        BundleError: A file that every bundle needs is missing.
    """
    folder = Path(folder)
    files = {name: hash_file(folder / name) for name in list_bundle_files(folder)}
    for name in REQUIRED_FILES:
        if name not in files:
            raise BundleError(f"{folder} has no {name}. Write it before the manifest.")
    text = json.dumps({"contract": contract.to_dict(), "files": files}, indent=2, sort_keys=True)
    # A reader must never see half a manifest.
    draft = folder / f".{MANIFEST_FILE}.new"
    draft.write_text(text + "\n", encoding="utf-8", newline="\n")
    return draft.replace(folder / MANIFEST_FILE)


def list_bundle_files(folder: Path) -> list[str]:
    """List every file of a bundle's folder that its manifest names, relative to it."""
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        # Hidden files are the desktop's (.DS_Store) or a draft, never the bundle's.
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            names.append(name.as_posix())
    return sorted(name for name in names if name != MANIFEST_FILE)


def read_bundle(path: str | Path) -> Contract:
    """Check the files of a bundle as `read_manifest` does, and return its contract."""
    return read_manifest(path).contract


def read_manifest(path: str | Path) -> Manifest:
    """Check every file in the folder of a bundle and return all that `vfm.json` says.

    Raises:
        BundleError: It is not a bundle, or a file is missing or damaged.
        ContractError: The contract is malformed or newer than this version.
    """
    folder = Path(path)
    _require_bundle(folder)
    manifest = _parse_manifest(folder)
    for name, expected in manifest.files.items():
        digest = _read(folder / name, hash_file)
        if digest != expected:
            cause = f"its sha256 is {digest}, the bundle says {expected}"
            raise _describe_damage(folder / name, cause)
    return manifest


def check_metadata(folder: Path, name: str, text: str | None, contract: Contract) -> None:
    """Refuse an ONNX file of a bundle whose metadata says other than `vfm.json`.

    The sha256 cannot tell that `vfm.json` itself has changed; this can.

    Args:
        folder: Folder of the bundle.
        name: Name of the ONNX file.
        text: Metadata of the ONNX file under `METADATA_KEY`.
        contract: Contract that `vfm.json` holds.
    """
    if text is None:
        raise BundleError(
            f"{folder / name} holds no vfm metadata, so it was not exported by vfm. "
            "Export the bundle with `vfm export`."
        )
    try:
        inside = Contract.from_json(text)
    except ContractError as error:
        raise BundleError(f"{folder / name}: {error}") from error
    # Compared as text: in Python 1 == 1.0 == True, in a contract they differ.
    if inside.to_json() == contract.to_json():
        return
    ours, theirs = contract.to_dict(), inside.to_dict()
    names = {**ours, **theirs}  # not every task has rules
    keys = [key for key in names if json.dumps(ours.get(key)) != json.dumps(theirs.get(key))]
    cause = f"its {', '.join(keys)} differ from the metadata inside {name}"
    raise _describe_damage(folder / MANIFEST_FILE, cause)


def _describe_damage(path: Path, cause: str) -> BundleError:
    return BundleError(f"{path} is damaged: {cause}. {_REMEDY}")


def _require_bundle(path: Path) -> None:
    if (path / MANIFEST_FILE).is_file():
        return
    if path.is_dir():
        raise BundleError(
            f"{path} is not a bundle: it has no {MANIFEST_FILE}. "
            "Give the folder that `vfm export` wrote."
        )
    if not path.exists():
        raise BundleError(
            f"There is no bundle at {path} (looked in {path.absolute().parent}). "
            "Check the path, or write one with `vfm export`."
        )
    if path.suffix in {".ckpt", ".pt", ".pth", ".safetensors"}:
        raise BundleError(
            f"{path} is a training checkpoint, which needs torch. Make a bundle of it first: "
            f"vfm export {path}"
        )
    if path.name == MANIFEST_FILE or path.suffix == ".onnx":
        raise BundleError(
            f"{path} is one file of a bundle; its neighbours are needed too. "
            f"Give the folder: {path.parent}"
        )
    raise BundleError(f"{path} is a file, not a bundle. Give the folder that `vfm export` wrote.")


def _parse_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST_FILE
    text = _read(path, Path.read_bytes)
    try:
        values = parse_json(text)
    except ValueError as error:
        raise _describe_damage(path, f"it is not JSON ({error})") from error
    if not isinstance(values, dict) or set(values) != {"contract", "files"}:
        raise _describe_damage(path, "it must hold 'contract' and 'files', nothing else")
    # The contract first: a newer format may list its files in another way.
    try:
        contract = Contract.from_dict(values["contract"])
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error
    _check_names(folder, values["files"])
    tower = contract.text
    for name in () if tower is None else (TEXT_FILE, tower.file):
        if name not in values["files"]:
            raise _describe_damage(path, f"it has a text tower, and does not list {name}")
    return Manifest(contract, values["files"])


def _check_names(folder: Path, files: object) -> None:
    path = folder / MANIFEST_FILE
    if not isinstance(files, dict):
        raise _describe_damage(path, "'files' is not an object")
    for name, digest in files.items():
        if not isinstance(digest, str):
            raise _describe_damage(path, f"the sha256 of {name!r} is {digest!r}")
        if not _is_inside(name):
            raise BundleError(
                f"{path} lists {name!r}, which is not a plain name inside the bundle. "
                "Do not use this bundle unless you know who made it; export anew."
            )
    for name in _READ_FILES:
        if name not in files and (name in REQUIRED_FILES or (folder / name).exists()):
            raise _describe_damage(path, f"it does not list {name}")


def _is_inside(name: str) -> bool:
    # A name is judged without the file system: caches of models (Hugging Face) hold links to files elsewhere, and what
    # a link leads to is checked by its sha256.
    parts = PurePosixPath(name).parts
    plain = name.isprintable() and not any(char in name for char in "\\:")
    return plain and name == "/".join(parts) and not {"..", ".", "/"} & set(parts) and bool(parts)


def _read(path: Path, reader: Callable[[Path], _T]) -> _T:
    try:
        return reader(path)
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing, the bundle lists it. {_REMEDY}") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}. Check its permissions.") from error

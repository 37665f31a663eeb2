"""Reading a bundle's manifest and finding every damaged byte; writing the manifest."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

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

REQUIRED_FILES = (PREPROCESS_FILE, MODEL_FILE)
"""Without these there is nothing to run."""

# Files that the runtime opens when they are there. Unlisted, their bytes would go unchecked.
_READ_FILES = (
    *(PREPROCESS_FILE, *PRECISION_FILES.values(), WEIGHTS_FILE, ONEFILE_FILE),
    *(REFERENCE_FILE, GOLDEN_FILE),
)

_REMEDY = "Copy the bundle again or export anew."


@dataclass(frozen=True)
class Manifest:
    """What `vfm.json` says."""

    contract: Contract
    """What the model takes and answers."""

    files: dict[str, str]
    """Sha256 by name, relative to the bundle, of every other file."""


def hash_file(path: str | Path) -> str:
    """Return the sha256 of a file, in hex.

    Args:
        path: The file; read in pieces, so any size will do.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: str | Path, contract: Contract) -> Path:
    """Write `vfm.json`, the last file of a bundle, and return its path.

    Args:
        folder: The bundle, with all its other files in place.
        contract: The same that the metadata of its ONNX files holds.

    Raises:
        BundleError: A file that every bundle needs is not there.
    """
    folder = Path(folder)
    files = {name: hash_file(folder / name) for name in list_files(folder)}
    for name in REQUIRED_FILES:
        if name not in files:
            raise BundleError(f"{folder} has no {name}. Write it before the manifest.")
    text = json.dumps({"contract": contract.to_dict(), "files": files}, indent=2, sort_keys=True)
    # A reader must never see half a manifest.
    draft = folder / f".{MANIFEST_FILE}.new"
    draft.write_text(text + "\n", encoding="utf-8", newline="\n")
    return draft.replace(folder / MANIFEST_FILE)


def list_files(folder: Path) -> list[str]:
    """List every file that a manifest of a bundle names, relative to it.

    Args:
        folder: The bundle.
    """
    names = []
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        # Hidden files are the desktop's (.DS_Store) or a draft, never the bundle's.
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            names.append(name.as_posix())
    return sorted(name for name in names if name != MANIFEST_FILE)


def read_bundle(path: str | Path) -> Contract:
    """Check every file of a bundle against its manifest and return the contract.

    Args:
        path: The bundle's folder.

    Raises:
        BundleError: It is not a bundle, or a file is missing or damaged.
        ContractError: The contract is malformed or newer than this version.
    """
    return read_manifest(path).contract


def read_manifest(path: str | Path) -> Manifest:
    """Check every file of a bundle and return all that `vfm.json` says.

    Args:
        path: The bundle's folder.

    Raises:
        BundleError: It is not a bundle, or a file is missing or damaged.
        ContractError: The contract is malformed or newer than this version.
    """
    folder = _bundle_folder(Path(path))
    manifest = _parse_manifest(folder)
    for name, expected in manifest.files.items():
        _check_file(folder, name, expected)
    return manifest


def check_metadata(folder: Path, name: str, text: str | None, contract: Contract) -> None:
    """Refuse an ONNX file whose metadata says other than `vfm.json`.

    The sha256 cannot tell that `vfm.json` itself has changed; this can.

    Args:
        folder: The bundle.
        name: The ONNX file.
        text: What the ONNX file holds under `METADATA_KEY`.
        contract: What `vfm.json` says.

    Raises:
        BundleError: They differ, or the file holds no contract.
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
    raise BundleError(
        f"{folder / MANIFEST_FILE} is damaged: its {', '.join(keys)} differ from the metadata "
        f"inside {name}. {_REMEDY}"
    )


def _bundle_folder(path: Path) -> Path:
    if path.is_dir():
        if not (path / MANIFEST_FILE).is_file():
            raise BundleError(
                f"{path} is not a bundle: it has no {MANIFEST_FILE}. "
                "Give the folder that `vfm export` wrote."
            )
        return path
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
    try:
        values = parse_json(path.read_bytes())
    except ValueError as error:
        raise BundleError(f"{path} is damaged: it is not JSON ({error}). {_REMEDY}") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}. Check its permissions.") from error
    if not isinstance(values, dict) or set(values) != {"contract", "files"}:
        raise BundleError(
            f"{path} is damaged: it must hold 'contract' and 'files', nothing else. {_REMEDY}"
        )
    # The contract first: a newer format may list its files in another way.
    contract = _contract(path, values["contract"])
    return Manifest(contract, _files(folder, values["files"]))


def _contract(path: Path, values: Any) -> Contract:
    try:
        return Contract.from_dict(values)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from error


def _files(folder: Path, values: object) -> dict[str, str]:
    path = folder / MANIFEST_FILE
    if not isinstance(values, dict):
        raise BundleError(f"{path} is damaged: 'files' is not an object. {_REMEDY}")
    for name, digest in values.items():
        if not isinstance(digest, str):
            raise BundleError(f"{path} is damaged: the sha256 of {name!r} is {digest!r}. {_REMEDY}")
        if not _stays_inside(name):
            raise BundleError(
                f"{path} lists {name!r}, which is not a plain name inside the bundle. "
                "Do not use this bundle unless you know who made it; export anew."
            )
    _check_listed(folder, values)
    return values


def _stays_inside(name: str) -> bool:
    # By the name alone: caches of models (Hugging Face) hold links to files elsewhere, and what a
    # link leads to is checked by its sha256.
    parts = PurePosixPath(name).parts
    plain = name.isprintable() and not any(char in name for char in "\\:")
    return plain and name == "/".join(parts) and not {"..", ".", "/"} & set(parts) and bool(parts)


def _check_listed(folder: Path, listed: Iterable[str]) -> None:
    names = set(listed)
    for name in _READ_FILES:
        if name in names:
            continue
        if name in REQUIRED_FILES or (folder / name).exists():
            raise BundleError(
                f"{folder / MANIFEST_FILE} is damaged: it does not list {name}. {_REMEDY}"
            )


def _check_file(folder: Path, name: str, expected: str) -> None:
    path = folder / name
    try:
        found = hash_file(path)
    except FileNotFoundError as error:
        raise BundleError(f"{path} is missing, the bundle lists it. {_REMEDY}") from error
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}. Check its permissions.") from error
    if found != expected:
        raise BundleError(
            f"{path} is damaged: its sha256 is {found}, the bundle says {expected}. {_REMEDY}"
        )

"""Draft of a bundle: a hidden folder beside `out`, which is renamed to it once the bundle is whole and proved."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import vfm_runtime
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.bundle.manifest import Manifest, list_bundle_files


@contextlib.contextmanager
def write_draft(out: Path) -> Iterator[Path]:
    """Make a folder to write a bundle in, which takes its place at the end, so that no half bundle stands there.

    Args:
        out: Folder of the bundle; one that is there is replaced.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield draft
        replace_folder(draft, out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def replace_folder(source: Path, target: Path) -> None:
    """Move the folder `source` to `target`, and delete a folder that stands there."""
    if target.is_dir():
        shutil.rmtree(target)
    source.chmod(0o755)  # a temporary folder is its owner's alone
    source.replace(target)


def load_draft(folder: Path, contract: Contract, precision: str = "fp32") -> vfm_runtime.Model:
    """Load an unfinished bundle, whose manifest is written last, on the CPU."""
    draft = Manifest(contract, dict.fromkeys(list_bundle_files(folder), ""))
    return vfm_runtime.Model(folder, device="cpu", precision=precision, manifest=draft)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a file of a bundle as JSON."""
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

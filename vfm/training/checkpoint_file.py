"""Checkpoint files: the entry that vfm adds to Lightning's own state, and how files are read without running code."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vfm_runtime.errors import VfmError

from vfm import __version__
from vfm.models.tensors import UnreadableFileError, read_metadata, read_plain
from vfm.renames import update_class_paths

KEY = "vfm"
"""Entry of the checkpoint that holds everything of vfm."""
ADAPTER_SUFFIX = ".safetensors"
"""How the name of an adapter file ends."""
FORMAT = 1
"""Raised when the entry changes so that older readers would misread it."""

_PACKAGES = ("torch", "timm", "lightning", "numpy")


class CheckpointError(VfmError, ValueError):
    """A file is not a checkpoint of vfm, or does not fit."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a model computes."""
    own = {"python": platform.python_version(), "vfm": __version__}
    return own | {name: version(name) for name in _PACKAGES}


def read_any(path: str | Path) -> dict[str, Any]:
    """`read_checkpoint`, or what an adapter file holds in the same form.

    Raises:
        CheckpointError: There is no such file, it is damaged, or vfm did not write it.
    """
    path = Path(path)
    if path.suffix != ADAPTER_SUFFIX:
        return read_checkpoint(path)
    if not path.is_file():
        raise CheckpointError(
            f"There is no adapter {path}. Training with --model.adapt lora, effort, ln or linear writes one "
            "beside its checkpoints."
        )
    try:
        metadata, tensors = read_metadata(path), read_plain(path)
    except UnreadableFileError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as an adapter: {error}\nCopy it again."
        ) from error
    if KEY not in metadata:
        raise CheckpointError(
            f"{path} is no adapter of vfm: it says nothing of a task. Bare weights go to --model.weights."
        )
    return _checked({KEY: json.loads(metadata[KEY]), "state_dict": tensors}, path)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint without running any code that it may hold.

    Raises:
        CheckpointError: There is no such file, it is damaged, or vfm did not write it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {path}. Training writes best.ckpt and last.ckpt into the "
            "'checkpoints' folder of its run."
        )
    try:
        content = read_plain(path)
    except UnreadableFileError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a checkpoint: {error}\n"
            "It may be cut short or of another kind. Copy it again, or give another .ckpt file."
        ) from error
    if not isinstance(content, Mapping) or KEY not in content:
        raise CheckpointError(
            f"{path} was not written by vfm: it has no entry '{KEY}'. "
            "Give a .ckpt of a vfm training run; bare weights go to --model.weights instead."
        )
    return _checked(dict(content), path)


def _checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    found = content[KEY]["format"]
    if found > FORMAT:
        raise CheckpointError(
            f"{path} has format {found}; this vfm reads up to {FORMAT}. Upgrade vfm."
        )
    content[KEY] = update_class_paths(content[KEY])
    return content

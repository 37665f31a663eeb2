"""What a checkpoint carries besides Lightning's own state, and how it is read."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from vfm.models.weights import UnreadableFileError, read_plain

KEY = "vfm"
"""Entry of the checkpoint that holds everything of vfm."""
FORMAT = 1
"""Raised when the entry changes so that older readers would misread it."""

_PACKAGES = ("vfm", "torch", "timm", "lightning", "numpy")


class CheckpointError(ValueError):
    """A file is not a checkpoint of vfm, or does not fit."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a model computes."""
    return {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES}


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
    found = content[KEY]["format"]
    if found > FORMAT:
        raise CheckpointError(
            f"{path} has format {found}; this vfm reads up to {FORMAT}. Upgrade vfm."
        )
    return dict(content)

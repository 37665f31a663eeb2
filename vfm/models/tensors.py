"""Files of tensors: read without running code, written whole or not at all; and checksums of what was read."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from vfm_runtime.errors import VfmError

_CONTAINERS = ("state_dict", "model", "model_state_dict", "teacher")


class UnreadableFileError(VfmError, ValueError):
    """A file holds no tensors and plain values that can be read."""


def read_plain(path: Path, *, lazy: bool = False) -> Any:
    """Read a file of tensors and plain values without running any code that it may hold.

    Args:
        path: File, as torch or safetensors writes it.
        lazy: Whether tensors are read from the disk only where they are used, for files that torch wrote.

    Raises:
        UnreadableFileError: It is cut short, of another kind, or holds other objects.
    """
    # What its unpickler raises depends on the byte at which a file is no longer one.
    broken = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=lazy)
    except (SafetensorError, *broken) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnreadableFileError(lines[0]) from error


def find_tensors(content: Any) -> dict[str, Tensor]:
    """Find the tensors of a state dict, which may lie in a container such as `state_dict` or `model`; maybe none."""
    while isinstance(content, Mapping):
        inner = next((content[k] for k in _CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            return {k: v for k, v in content.items() if isinstance(v, Tensor)}
        content = inner
    return {}


def read_metadata(path: Path) -> dict[str, str]:
    """Read the text entries of a .safetensors file; empty when it has none.

    Raises:
        UnreadableFileError: It is no such file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UnreadableFileError(str(error)) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a .safetensors file of tensors, on any device, and text; under its name stands a whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, partial, metadata=dict(metadata))
    os.replace(partial, path)  # noqa: PTH105 - atomic on every system


def copy_whole(source: Path, target: Path) -> None:
    """Put a file into another folder, as a second name of the same content where the disk can; whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        partial.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, partial)
    os.replace(partial, target)  # noqa: PTH105 - atomic on every system
    partial.unlink(missing_ok=True)  # stays where both are names of one content already


def compute_checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the first 16 hexadecimal digits of a sha256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        plain = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(plain.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]

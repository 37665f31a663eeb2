"""Load weights from a local file into a backbone, and say what fitted."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

_MIN_COVERAGE = 0.95
_CONTAINERS = ("state_dict", "model", "model_state_dict", "teacher")
_PREFIXES = ("module.", "model.", "backbone.", "teacher.")


class UnreadableFileError(ValueError):
    """A file holds no tensors and plain values that can be read."""


class WeightsError(ValueError):
    """A weights file cannot be read or does not fit the backbone."""


@dataclass(frozen=True)
class LoadReport:
    """What a load of weights did."""

    source: str
    """The file, or the name under which timm finds the weights."""
    matched: int
    """Tensors of the backbone that were set."""
    total: int
    """Tensors of the backbone."""
    missing: tuple[str, ...] = ()
    """Tensors of the backbone that the file lacks; they keep their random start."""
    unexpected: tuple[str, ...] = ()
    """Tensors of the file that the backbone has no place for, such as its former classifier."""
    by: str = "name"
    """How tensors were matched: `name`, or `order` (same order and shapes under other names)."""

    @property
    def coverage(self) -> float:
        """Share of the backbone's tensors that were set, 0..1."""
        return self.matched / self.total

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for the checkpoint."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def __str__(self) -> str:
        return (
            f"{self.source}: {self.matched} of {self.total} tensors set by {self.by} "
            f"({100 * self.coverage:.1f} %), {len(self.unexpected)} left over"
        )


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Set a backbone's weights from a file, by name or, failing that, by order and shape.

    Args:
        model: A timm model without its classifier.
        path: A `.safetensors` file, or a `.pth`, `.pt` or `.ckpt` file of tensors; no code in a pickle is run.

    Raises:
        WeightsError: The file cannot be read, or sets less than 95 % of the backbone.
    """
    path = Path(path)
    own = model.state_dict()
    given = _stripped(_read(path), own)
    fitting = {k: v for k, v in given.items() if k in own and v.shape == own[k].shape}
    by = "name"
    if len(fitting) < _MIN_COVERAGE * len(own):
        ordered = _by_order(given, own)
        if ordered is not None:
            fitting, by = ordered, "order"
    used = {id(v) for v in fitting.values()}
    report = LoadReport(
        source=str(path),
        matched=len(fitting),
        total=len(own),
        missing=tuple(k for k in own if k not in fitting),
        unexpected=tuple(k for k, v in given.items() if id(v) not in used),
        by=by,
    )
    if report.coverage < _MIN_COVERAGE:
        raise WeightsError(_refusal(report, model))
    model.load_state_dict({**own, **fitting})
    return report


def _refusal(report: LoadReport, model: nn.Module) -> str:
    def some(names: tuple[str, ...]) -> str:
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    return (
        f"{report.source} does not fit {type(model).__name__}: it sets {report.matched} of {report.total} tensors "
        f"({100 * report.coverage:.1f} %, at least {100 * _MIN_COVERAGE:.0f} % are needed).\n"
        f"Missing: {some(report.missing)}.\nUnexpected: {some(report.unexpected) or 'none'}.\n"
        "Give the backbone that this file was trained with (--model.backbone), or another file."
    )


def read_plain(path: Path) -> Any:
    """Read a file of tensors and plain values without running any code that it may hold.

    Raises:
        UnreadableFileError: It is cut short, of another kind, or holds other objects.
    """
    # What its unpickler raises depends on the byte at which a file is no longer one.
    broken = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, OSError)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, *broken) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UnreadableFileError(lines[0]) from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(
            f"There is no weights file {path}. Give a .safetensors, .pth or .ckpt file."
        )
    try:
        content = read_plain(path)
    except UnreadableFileError as error:
        raise WeightsError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as weights: {error}\n"
            "The file may be cut short, or hold objects besides tensors. Save it as .safetensors and give that."
        ) from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[k] for k in _CONTAINERS if isinstance(content.get(k), Mapping)), None)
        if inner is None:
            tensors = {k: v for k, v in content.items() if isinstance(v, Tensor)}
            if tensors:
                return tensors
            break
        content = inner
    raise WeightsError(f"{path} holds no tensors. Give a file with a state dict.")


def _stripped(given: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the wrappers' prefixes, up to three deep, under which most names fit."""
    chains = ("".join(c) for n in range(4) for c in itertools.product(_PREFIXES, repeat=n))
    candidates = ({k.removeprefix(chain): v for k, v in given.items()} for chain in chains)
    return max(candidates, key=lambda names: len(names.keys() & own.keys()))


def _by_order(given: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Pair tensors by position when every shape agrees; what follows in the file may only be a classifier."""
    values = list(given.values())
    left_over = values[len(own) :]
    if len(values) < len(own) or len({v.shape[0] for v in left_over if v.ndim}) > 1:
        return None
    pairs = list(zip(own.items(), values, strict=False))
    if any(mine.shape != theirs.shape for (_, mine), theirs in pairs):
        return None
    return {name: theirs for (name, _), theirs in pairs}

"""Load weights from a local file into a backbone, and say what fitted."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from vfm_runtime.errors import VfmError

from vfm.models.adapt import read_adaptation
from vfm.models.tensors import UnreadableFileError, compute_checksum, find_tensors, read_plain
from vfm.spec import SpecError

MIN_COVERAGE = 0.95
"""Least share of a backbone's tensors that a file must set."""

_PREFIXES = ("module.", "model.", "backbone.", "teacher.")
_LISTED = 8


class WeightsError(VfmError, ValueError):
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
    resized: tuple[str, ...] = ()
    """Tensors that were resampled to the backbone's shape, such as position embeddings of another input size."""
    by: str = "name"
    """How tensors were matched: `name`, or `order` (same order and shapes under other names)."""
    before: str = ""
    """Checksum of the backbone's weights at their random start."""
    after: str = ""
    """Checksum of the backbone's weights as loaded."""
    license: str | None = None
    """Licence that the file itself states; a checkpoint of vfm does."""
    backbone: str | None = None
    """Name of the backbone that the file states; a checkpoint of vfm does."""

    licenses: Mapping[str, str | None] = field(default_factory=dict)
    """Licence of each teacher that the weights were distilled from, by its name."""
    fetched: bool = False
    """Whether timm fetched them by name, rather than a file being given."""

    @property
    def coverage(self) -> float:
        """Share of the backbone's tensors that were set, 0..1."""
        return self.matched / self.total

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for the checkpoint."""
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return plain | {"coverage": self.coverage}

    def __str__(self) -> str:
        counts = f"{len(self.missing)} missing, {len(self.unexpected)} left over, {len(self.resized)} resized"
        return (
            f"{self.source}: {self.matched} of {self.total} tensors set by {self.by} "
            f"({100 * self.coverage:.1f} %), {counts}; checksum {self.before} before, {self.after} after"
        )


def load_weights(
    model: nn.Module, path: str | Path, *, min_coverage: float = MIN_COVERAGE
) -> LoadReport:
    """Set a backbone's weights from a file, by name or, failing that, by order and shape.

    Names of other code bases that timm knows are translated, and position embeddings of another input size resized,
    both by timm's own filter of the model's family.

    Args:
        model: Model of timm without its classifier.
        path: A `.safetensors` file, or a `.pth`, `.pt` or `.ckpt` file of tensors; no code in a pickle is run.
        min_coverage: Least share of the backbone's tensors that must be set.

    Raises:
        WeightsError: The file cannot be read, or sets less than that.
    """
    path = Path(path)
    current = model.state_dict()
    stored, stated = _read(path)
    # Wrappers put up to three prefixes before the names; without some of them most names fit.
    chains = ("".join(c) for n in range(4) for c in itertools.product(_PREFIXES, repeat=n))
    stripped = ({k.removeprefix(chain): v for k, v in stored.items()} for chain in chains)
    best = max(stripped, key=lambda names: len(names.keys() & current.keys()))
    tensors, resized = _translate(best, model)
    fitting = {k: v for k, v in tensors.items() if k in current and v.shape == current[k].shape}
    by = "name"
    if len(fitting) < MIN_COVERAGE * len(current):
        ordered = _match_by_order(stored, current)
        if ordered is not None:
            tensors, fitting, resized, by = stored, ordered, (), "order"
    used = {id(v) for v in fitting.values()}
    report = LoadReport(
        source=str(path),
        matched=len(fitting),
        total=len(current),
        missing=tuple(k for k in current if k not in fitting),
        unexpected=tuple(k for k, v in tensors.items() if id(v) not in used),
        resized=tuple(k for k in resized if k in fitting),
        by=by,
        before=compute_checksum(current),
        after=compute_checksum({**current, **fitting}),
        **stated,
    )
    if not fitting or report.coverage < min_coverage:
        raise WeightsError(
            f"{path} does not fit {type(model).__name__}: it sets {report.matched} of {report.total} tensors "
            f"({100 * report.coverage:.1f} %, at least {100 * min_coverage:.0f} % are needed).\n"
            f"Missing: {_join_some(report.missing)}.\nUnexpected: {_join_some(report.unexpected) or 'none'}.\n"
            "Give the backbone that this file was trained with (--model.backbone), or another file; or, to start the "
            "missing ones at random, allow less with --model.min_coverage."
        )
    model.load_state_dict({**current, **fitting})
    return report


def _join_some(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more


def list_teachers(entry: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the licence of each teacher, by its name, that a checkpoint's entry or its first weights tell of."""
    return {
        name: license
        for part in ("weights", "teacher")
        for name, license in ((entry.get(part) or {}).get("licenses") or {}).items()
    }


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors of a file, and what a checkpoint of vfm states: fields of a `LoadReport`."""
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
    tensors = find_tensors(content)
    if not tensors:
        raise WeightsError(f"{path} holds no tensors. Give a file with a state dict.")
    entry = content.get("vfm") if isinstance(content, Mapping) else None
    if not isinstance(entry, Mapping):
        return tensors, {}
    arguments = entry["model"]["init_args"]
    try:
        adaptation = read_adaptation(arguments)
    except SpecError as error:
        raise WeightsError(
            f"{path} was trained with an adaptation that is not part of vfm, and only its own code can merge what it "
            "added. Load the task (vfm.BaseTask.load with trust), call task.adaptation.merge(task.backbone.model), "
            "and save the state dict of task.backbone.model."
        ) from error
    stated = {"license": entry.get("license"), "backbone": arguments.get("backbone")}
    return adaptation.merge_tensors(tensors), stated | {"licenses": list_teachers(entry)}


def _translate(
    stored: dict[str, Tensor], model: nn.Module
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Apply timm's filter of the family to a state dict; also return the names whose shape it changed."""
    module = sys.modules[type(model).__module__]
    timm_filter: Callable[..., dict[str, Tensor]] | None = getattr(
        module, "checkpoint_filter_fn", None
    )
    if timm_filter is None:
        return stored, ()
    try:
        translated = timm_filter(dict(stored), model)
    except (KeyError, AttributeError, RuntimeError, ValueError, IndexError, AssertionError):
        # Made for the family's own files: one of another architecture is then refused by its names and shapes.
        return stored, ()
    resized = tuple(k for k, v in translated.items() if k in stored and stored[k].shape != v.shape)
    return translated, resized


def _match_by_order(
    stored: Mapping[str, Tensor], current: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Pair tensors by position when every shape agrees; what follows in the file may only be a classifier."""
    values = list(stored.values())
    left_over = values[len(current) :]
    if len(values) < len(current) or len({v.shape[0] for v in left_over if v.ndim}) > 1:
        return None
    pairs = dict(zip(current, values[: len(current)], strict=True))
    return pairs if all(v.shape == current[name].shape for name, v in pairs.items()) else None

"""`vfm models`: backbones to choose from."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any, NamedTuple

import timm
from vfm_runtime.errors import suggest

from vfm.cli.errors import UsageError
from vfm.models.licenses import find_terms
from vfm.models.measure import Size, measure
from vfm.models.presets import PRESETS, Use, read_sizes

_MOST_MEASURED = 40
_OPEN = ("timm/", "microsoft/Florence-2-")


class Row(NamedTuple):
    """One backbone."""

    name: str
    size: Size
    license: str | None
    commercial: bool
    gated: bool | None
    """Whether the hub asks for consent first; None where that is not known."""
    uses: tuple[str, ...]
    note: str
    preset: bool


def models(
    pattern: str = "",
    *,
    task: Use | None = None,
    commercial: bool = False,
    json: bool = False,
) -> None:
    """List backbones: size, cost, input, licence of the weights, and what each is good for.

    Args:
        pattern: Part of a name, or a pattern such as 'convnext*'; adds what timm has besides the presets.
        task: Only presets that are good for this.
        commercial: Leave out weights whose licence forbids commercial use, or which state none.
        json: Print JSON, one list of objects.

    Raises:
        UsageError: Nothing has such a name.
    """
    rows = list(_presets(pattern, task))
    names = [] if task or not pattern else _others(pattern)
    if not rows and not names:
        raise UsageError(_nothing(pattern, task))
    rows += [row for name in names[:_MOST_MEASURED] if (row := _row(name)) is not None]
    hidden = [row for row in rows if commercial and not row.commercial]
    shown = [row for row in rows if row not in hidden]
    if json:
        _print_json(shown)
        return
    print(_table(shown))
    if hidden:
        print(f"{len(hidden)} hidden: their licence forbids commercial use, or they state none.")
    if len(names) > _MOST_MEASURED:
        left = len(names) - _MOST_MEASURED
        print(f"{left} more of timm have such a name; a longer pattern shows them.")
    elif not pattern:
        print(
            f"timm has {len(timm.list_pretrained())} weights: vfm models PATTERN, such as vfm models 'vit_tiny*'"
        )


def _presets(pattern: str, task: Use | None) -> Iterable[Row]:
    known = read_sizes()
    for preset in PRESETS:
        if _matches(preset.name, pattern) and (task is None or task in preset.uses):
            yield _row_of(preset.name, known[preset.name], preset.uses, preset.note, preset=True)


def _others(pattern: str) -> list[str]:
    presets = {preset.name for preset in PRESETS}
    return [n for n in timm.list_pretrained() if n not in presets and _matches(n, pattern)]


def _matches(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern if set(pattern) & set("*?[") else f"*{pattern}*")


def _row(name: str) -> Row | None:
    try:
        return _row_of(name, measure(name), (), "", preset=False)
    except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
        # A few of timm's models compute with values while they are built, which a model without storage cannot.
        print(f"{name}: not measured ({str(error).splitlines()[0]})", file=sys.stderr)
        return None


def _row_of(name: str, size: Size, uses: tuple[str, ...], note: str, *, preset: bool) -> Row:
    config = timm.get_pretrained_cfg(name)
    licence = config.license if config else None
    # These ask nobody; of others it is not known here.
    own = bool(config and str(config.hf_hub_id).startswith(_OPEN))
    gated = False if own else None
    return Row(name, size, licence, find_terms(licence).commercial, gated, uses, note, preset)


def _nothing(pattern: str, task: str | None) -> str:
    names = [*(preset.name for preset in PRESETS), *timm.list_models()]
    which = f" for {task}" if task else ""
    return (
        f"No backbone{which} has a name like '{pattern}'.{suggest(pattern, names)} "
        "Without a pattern vfm models lists the presets."
    )


def _print_json(rows: Iterable[Row]) -> None:
    plain: list[dict[str, Any]] = [row._asdict() | {"size": row.size._asdict()} for row in rows]
    print(json_format.dumps(plain, indent=2))


def _table(rows: Iterable[Row]) -> str:
    header = (
        "backbone",
        "M params",
        "GFLOP",
        "width",
        "patch",
        "px",
        "licence",
        "gated",
        "good for",
    )
    cells = [header, *(_cells(row) for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    right = {1, 2, 3, 4, 5}
    lines = [
        "  ".join(
            c.rjust(w) if i in right else c.ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    size = row.size
    gated = "?" if row.gated is None else "yes" if row.gated else "no"
    licence = (row.license or "not stated") + ("" if row.commercial else " (!)")
    about = ", ".join(row.uses) + (f": {row.note}" if row.note else "")
    figures = (
        f"{size.parameters / 1e6:.1f}",
        f"{size.gflops:.1f}",
        size.width,
        size.patch,
        size.image_size,
    )
    return (row.name, *map(str, figures), licence, gated, about)

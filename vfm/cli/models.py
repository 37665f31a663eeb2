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
from vfm.models.licenses import USES, LicensedUse, find_terms
from vfm.models.presets import PRESETS, Size, Use, measure

_MOST_MEASURED = 40
# Repositories of these ask nobody for consent; of others it is not known here.
_OPEN = ("timm/", "microsoft/Florence-2-")
_HEADER = ["backbone", "M params", "GFLOP", "width", "patch", "px", "licence", "gated", "good for"]


class Row(NamedTuple):
    """One backbone."""

    name: str
    size: Size
    license: str | None
    commercial: bool
    may: tuple[LicensedUse, ...]
    """Uses that the licence permits."""
    gated: bool | None
    """Whether the hub asks for consent first; None where that is not known."""
    uses: tuple[str, ...]
    note: str
    preset: bool


def list_models(
    pattern: str = "",
    *,
    task: Use | None = None,
    commercial: bool = False,
    may: str = "",
    json: bool = False,
) -> None:
    """List backbones: size, cost, input, licence of the weights, and what each is good for.

    Args:
        pattern: Part of a name, or a pattern such as 'convnext*'; adds what timm has besides the presets.
        task: Only presets that are good for this.
        commercial: Leave out weights whose licence forbids commercial use, or which state none; short for --may sell.
        may: Only weights whose licence permits all of these: sell, redistribute, train-others, divided by commas.
        json: Print JSON, one list of objects.

    Raises:
        UsageError: Nothing has such a name, or there is no such use.
    """
    uses = {word.strip() for word in may.split(",") if word.strip()} | (
        {"sell"} if commercial else set()
    )
    if unknown := uses - {*USES}:
        word = min(unknown)
        raise UsageError(
            f"--may is '{may}': '{word}' is no use.{suggest(word, USES)} Choices: {', '.join(USES)}."
        )
    presets = {preset.name: preset for preset in PRESETS}
    rows = [
        _make_row(preset.name, preset.size, preset.uses, preset.note, preset=True)
        for preset in PRESETS
        if _is_match(preset.name, pattern) and (task is None or task in preset.uses)
    ]
    others: list[str] = []
    if pattern and not task:
        names = timm.list_pretrained()
        others = [name for name in names if name not in presets and _is_match(name, pattern)]
    if not rows and not others:
        hint = suggest(pattern, [*presets, *timm.list_models()])
        raise UsageError(
            f"No backbone{f' for {task}' if task else ''} has a name like '{pattern}'.{hint} "
            "Without a pattern vfm models lists the presets."
        )
    rows += filter(None, map(_measure_row, others[:_MOST_MEASURED]))
    shown = [row for row in rows if uses <= {*row.may}]
    if json:
        plain = [row._asdict() | {"size": row.size._asdict()} for row in shown]
        print(json_format.dumps(plain, indent=2))
        return
    print(_format_table(shown))
    if len(shown) < len(rows):
        num_hidden = len(rows) - len(shown)
        print(
            f"{num_hidden} hidden: their licence does not permit to {' and '.join(sorted(uses))}, or they state none."
        )
    if len(others) > _MOST_MEASURED:
        num_left = len(others) - _MOST_MEASURED
        print(f"{num_left} more of timm have such a name; a longer pattern shows them.")
    elif not pattern:
        print(
            f"timm has {len(timm.list_pretrained())} weights: vfm models PATTERN, such as vfm models 'vit_tiny*'"
        )


def _is_match(name: str, pattern: str) -> bool:
    return fnmatch(name, pattern if set(pattern) & set("*?[") else f"*{pattern}*")


def _measure_row(name: str) -> Row | None:
    try:
        return _make_row(name, measure(name), (), "", preset=False)
    except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError) as error:
        # A few of timm's models compute with values while they are built, which a model without storage cannot.
        print(f"{name}: not measured ({str(error).splitlines()[0]})", file=sys.stderr)
        return None


def _make_row(name: str, size: Size, uses: tuple[str, ...], note: str, *, preset: bool) -> Row:
    config = timm.get_pretrained_cfg(name)
    license = config.license if config else None
    is_open = bool(config and str(config.hf_hub_id).startswith(_OPEN))
    gated = False if is_open else None
    terms = find_terms(license)
    may = tuple(use for use in USES if use in terms.may)
    return Row(name, size, license, terms.commercial, may, gated, uses, note, preset)


def _format_table(rows: Iterable[Row]) -> str:
    cells = [_HEADER]
    for row in rows:
        size = row.size
        numbers: list[Any] = [f"{size.parameters / 1e6:.1f}", f"{size.gflops:.1f}", *size[2:]]
        gated = {None: "?", True: "yes", False: "no"}[row.gated]
        license = (row.license or "not stated") + ("" if row.commercial else " (!)")
        about = ", ".join(row.uses) + (f": {row.note}" if row.note else "")
        cells.append([row.name, *map(str, numbers), license, gated, about])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = range(1, _HEADER.index("licence"))
    lines = []
    for texts in cells:
        columns = enumerate(zip(texts, widths, strict=True))
        words = [text.rjust(w) if i in right else text.ljust(w) for i, (text, w) in columns]
        lines.append("  ".join(words).rstrip())
    return "\n".join(lines)

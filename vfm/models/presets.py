"""Presets: backbones to begin with, what each is good for, its size and its cost; the table is `presets.json`.

`python -m vfm.models.presets` measures sizes and costs anew, after the table or timm has changed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from vfm.models.measure import Size, measure

Use = Literal["classification", "detection", "deepfake", "retrieval", "zero-shot"]
USES: tuple[Use, ...] = get_args(Use)

_FILE = Path(__file__).with_name("presets.json")


class Preset(NamedTuple):
    """A model of timm that is a good choice for something."""

    name: str
    """Name in timm, with its tag of weights."""
    uses: tuple[Use, ...]
    note: str
    size: Size


def read_presets() -> list[Preset]:
    """Read the table."""
    rows = json.loads(_FILE.read_text(encoding="utf-8"))
    return [
        Preset(row["name"], tuple(row["uses"]), row["note"], Size(**row["size"])) for row in rows
    ]


PRESETS = read_presets()


def write_sizes() -> None:
    """Measure every preset, and write the table."""
    rows = [preset._asdict() | {"size": measure(preset.name)._asdict()} for preset in PRESETS]
    lines = [f"  {json.dumps(row)}" for row in rows]
    _FILE.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    write_sizes()

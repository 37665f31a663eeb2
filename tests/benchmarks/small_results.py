"""Cells of a long benchmark: each is written as it ends, and a second start goes on where the first was cut."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats


class Cell(NamedTuple):
    """One measurement, by what was measured."""

    table: str
    way: str
    set: str
    per_class: int
    seed: int


Values = Mapping[str, Any]
"""What a measurement gave, by name: `accuracy`, `seconds` ..."""
Work = Callable[[], Values]


class Results:
    """The lines of a file, one a cell."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[Cell, Values] = {}
        # A line that was cut while it was written is measured again.
        for line in path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else ():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            self.values[Cell(*(row.pop(name) for name in Cell._fields))] = row

    def measure(self, cell: Cell, work: Callable[[], Values]) -> Values:
        """Do the work and write what it gave, unless the file already says it.

        Args:
            cell: What is measured.
            work: Gives the figures; `seconds` is added where it is not among them.
        """
        if cell not in self.values:
            start = time.perf_counter()
            values = dict(work())
            values.setdefault("seconds", round(time.perf_counter() - start, 2))
            self._append(cell._asdict() | values)
            self.values[cell] = values
        return self.values[cell]

    def measure_all(self, cells: Iterable[tuple[Cell, Work]], only: Sequence[str]) -> None:
        """Measure the cells whose names hold all of some texts, and print each as it ends."""
        for cell, work in cells:
            name = "/".join(map(str, cell))
            if all(text in name for text in only):
                print(name, dict(self.measure(cell, work)), flush=True)

    def _append(self, row: Values) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        cut = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * cut + json.dumps(row) + "\n")

    def find(self, table: str, way: str, name: str, per_class: int) -> dict[int, Values]:
        """What was measured, by seed.

        Args:
            table: Of the cells.
            way: Of the cells.
            name: Of the set.
            per_class: Of the cells.
        """
        wanted = (table, way, name, per_class)
        return {cell.seed: row for cell, row in self.values.items() if cell[:4] == wanted}


def compare(ours: Mapping[int, float], theirs: Mapping[int, float]) -> str:
    """Mean of the paired differences in points, with Student's 95 % interval.

    Args:
        ours: Accuracy by seed.
        theirs: The same of the other side.
    """
    pairs = np.array([ours[key] - theirs[key] for key in sorted(ours.keys() & theirs.keys())]) * 100
    if len(pairs) < 2:
        return f"{pairs[0]:+.1f}" if len(pairs) else ""
    reach = stats.t.ppf(0.975, len(pairs) - 1) * pairs.std(ddof=1) / np.sqrt(len(pairs))
    return f"{pairs.mean():+.1f} ({pairs.mean() - reach:+.1f} to {pairs.mean() + reach:+.1f})"


def find_accuracies(results: Results, *key: Any) -> dict[Any, float]:
    return {seed: row["accuracy"] for seed, row in results.find(*key).items()}


def format_mean(values: dict[Any, float]) -> str:
    return f"{statistics.mean(values.values()):.3f}" if values else ""


def format_head(*names: str) -> list[str]:
    return [format_row(*names), format_row(*("---" for _ in names))]


def format_row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"

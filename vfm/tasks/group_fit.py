"""Fit of rules by group: what `vfm calibrate --group-column` fitted for each group, on what, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from vfm_runtime.tasks.groups import GroupRules

LEGAL = (
    "Where the groups are of people, law may forbid rules that differ by a protected trait, even where they make "
    "outcomes more equal: have it examined before they are used."
)


@dataclass(frozen=True)
class GroupFit:
    """Rules by group, and what they were fitted on."""

    rules: GroupRules
    rows: Sequence[Mapping[str, Any]]
    """For each group and label: `group`, `label`, `num` samples, `cutoff`, `own`, and rates `before`, `after`, `low`,
    `high`. Of temperatures: `group`, `label`, `num`, `own`, `temperature`, and calibration errors `before`, `after`. Of
    those that are not their own also a `reason`, where it is another than that too few count."""
    metric: str
    """What `before` and `after` are, over all images that have a group."""
    before: float
    """By the general rule alone."""
    after: float
    """By the rules of the groups."""

    @classmethod
    def average_errors(cls, rules: GroupRules, rows: Sequence[Mapping[str, Any]]) -> Self:
        """Make the fit of temperatures, with the mean of the calibration errors within the groups that have one.

        Over all groups at once, too high scores of one and too low ones of another would cancel out.
        """
        counted = [row for row in rows if row["before"] is not None]
        total = sum(row["num"] for row in counted)
        before, after = (
            float(sum(row[side] * row["num"] for row in counted) / total)
            for side in ("before", "after")
        )
        return cls(rules, rows, "Expected calibration error within groups", before, after)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**vars(self), "rules": self.rules.to_dict(), "rows": [dict(r) for r in self.rows]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave.

        Raises:
            KeyError: An entry is missing.
            ValueError: The rules do not hold.
        """
        return cls(
            GroupRules.from_dict(values["rules"]),
            values["rows"],
            values["metric"],
            values["before"],
            values["after"],
        )

    def list_lines(self) -> list[str]:
        """Return lines for the shell and the card: the criterion, each group, what it costs, and what law may say."""
        lines = [f"Rules by {self.rules.column}. {self.rules.criterion}"]
        names = {row["label"] for row in self.rows}
        for row in self.rows:
            if len(names) > 1 and not row["own"]:
                continue  # of many labels those without a cutoff of their own are counted below
            label = f", {row['label']}" if len(names) > 1 else ""
            if not row["own"]:
                reason = row.get("reason", f"{row['num']} that count are too few")
                lines.append(f"{row['group']}{label}: the general rule, for {reason}")
                continue
            if "temperature" in row:
                lines.append(
                    f"{row['group']}: temperature {row['temperature']:.3f}, fitted on {row['num']}; the expected "
                    f"calibration error here was {row['before']:.4f} and is {row['after']:.4f}"
                )
                continue
            lines.append(
                f"{row['group']}{label}: scores from {row['cutoff']:.3f} up, fitted on {row['num']}; the rate here was "
                f"{row['before']:.1%} and is {row['after']:.1%}, of further ones {row['low']:.1%} to {row['high']:.1%} "
                "(95 %)"
            )
        general = sum(not row["own"] for row in self.rows)
        if len(names) > 1 and general:
            lines.append(
                f"{general} pairs of group and label have the general rule: too few images of them"
            )
        lines.append(
            f"{self.metric} here: {self.before:.4f} by the general rule, {self.after:.4f} by those of the groups"
        )
        return [*lines, LEGAL]

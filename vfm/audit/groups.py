"""Group audit: metrics of each group and intersection, gaps to all others, false discoveries, power in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np

from vfm.audit.comparison import (
    LEVEL,
    Bools,
    ClusterSampler,
    Comparison,
    ImageMetric,
    RatioMetric,
    adjust_p_values,
    count_missing,
    find_smallest_gap,
    is_proportion,
)
from vfm.audit.kinds import Outcomes

MIN_GROUP = 10
"""Images below which a group is listed, but not compared."""
_ODDS = ("true_positive_rate", "false_positive_rate")


@dataclass(eq=False)
class GroupComparison:
    """One metric of one group beside all other images."""

    group: str
    """Name of the group, such as `site=a` or `site=a, age=old`."""
    num_images: int
    metric: ImageMetric
    result: Comparison
    is_intersection: bool
    adjusted: float = 1.0
    """The p-value once all comparisons are counted (Benjamini and Hochberg)."""
    smallest_gap: float | None = None
    """Smallest gap that would have been seen; None where none would, or the metric is no proportion."""
    num_missing: int | None = None
    """Further images that it takes to see the least gap that matters; None where that is not known."""
    unit: str = "images"
    """What is counted, in the plural."""

    @property
    def is_real(self) -> bool:
        """Whether the gap is called real."""
        return self.adjusted <= LEVEL

    @property
    def harm(self) -> float:
        """How far the group is worse off than the others; a rate for which neither is worse counts either way."""
        gap = self.result.gap.value
        if self.metric.higher_is_better is None:
            return abs(gap)
        return -gap if self.metric.higher_is_better else gap

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "group": self.group,
            "num_images": self.num_images,
            "metric": self.metric.name,
            "value": self.result.value.to_dict(),
            "gap": self.result.gap.to_dict(),
            "p_value": self.result.p_value,
            "adjusted_p_value": self.adjusted,
            "test": self.result.test,
            "found": self.is_real,
            "smallest_visible_gap": self.smallest_gap,
            "images_needed": self.num_missing,
        }

    def describe(self, min_gap: float) -> str:
        """Return a sentence or two on the gap; where none was found, on the smallest that could have been seen."""
        name, gap = self.metric.name.replace("_", " "), self.result.gap.value
        value = f"{self.group}: {name} {self.result.value}"
        if self.is_real:
            side = "below" if gap < 0 else "above"
            return (
                f"{value}, {_say_points(abs(gap), self.metric)} {side} all others "
                f"(95 % interval {self.result.gap.low:+.3f} to {self.result.gap.high:+.3f}; "
                f"p {self.result.p_value:.2g}, {self.adjusted:.2g} after all comparisons)."
            )
        if not is_proportion(self.metric):
            return f"{value}: no gap was found ({gap:+.3f}, p {self.result.p_value:.2g})."
        if self.smallest_gap is None:
            return f"{value}: with {self.num_images} {self.unit} of this group no gap at all can be seen."
        text = (
            f"{value}: no gap was found; with {self.num_images} {self.unit} of this group a gap under "
            f"{_say_points(self.smallest_gap, self.metric)} cannot be seen"
        )
        wanted = _say_points(min_gap, self.metric)
        if self.num_missing is None:
            return f"{text}; for one of {wanted} there are too few {self.unit} of all groups."
        if self.num_missing:
            unit = 10 ** max(0, len(str(self.num_missing)) - 2)  # a forecast has no more digits
            return f"{text}; {-(-self.num_missing // unit) * unit:,} more are needed for one of {wanted}."
        return f"{text}."


def _say_points(gap: float, metric: ImageMetric) -> str:
    return f"{100 * gap:.1f} points" if is_proportion(metric) else f"{gap:.3f}"


@dataclass(eq=False)
class GroupReport:
    """All comparisons of an audit."""

    comparisons: list[GroupComparison]
    small: dict[str, int]
    """Groups of too few images to be compared, and how many these are."""
    notes: list[str] = field(default_factory=list)
    min_gap: float = 0.05

    @property
    def found(self) -> list[GroupComparison]:
        """Gaps that are called real, the worst first."""
        return sorted((c for c in self.comparisons if c.is_real), key=lambda c: -c.harm)

    def find_worst(self) -> GroupComparison | None:
        """Return the group that is worst off by the first metric that is compared; None where there is no group."""
        if not self.comparisons:
            return None
        first = self.comparisons[0].metric
        return max((c for c in self.comparisons if c.metric is first), key=lambda c: c.harm)

    def compute_odds_difference(self) -> float | None:
        """Return the equalized odds difference: the largest difference of a rate between two groups of one column."""
        gaps = []
        for name in _ODDS:
            columns: dict[str, list[float]] = {}
            for each in self.comparisons:
                if each.metric.name == name and not each.is_intersection:
                    column = each.group.partition("=")[0]
                    columns.setdefault(column, []).append(each.result.value.value)
            gaps += [max(values) - min(values) for values in columns.values()]
        return max(gaps, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        worst = self.find_worst()
        return {
            "num_comparisons": len(self.comparisons),
            "false_discovery_rate": LEVEL,
            "comparisons": [each.to_dict() for each in self.comparisons],
            "worst": None if worst is None else worst.to_dict(),
            "equalized_odds_difference": self.compute_odds_difference(),
            "too_small": self.small,
            "notes": self.notes,
        }


def list_groups(columns: Mapping[str, Sequence[str]]) -> list[tuple[str, Bools, bool]]:
    """List groups and their intersections: name, which images, bool [N], and whether it is an intersection.

    An intersection that holds the same images as a group before it is left out.
    """
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    groups: list[tuple[str, Bools, bool]] = []
    seen: set[bytes] = set()
    for size in range(1, min(len(arrays), 2) + 1):
        for names in combinations(arrays, size):
            rows = list(zip(*(arrays[name].tolist() for name in names), strict=True))
            for row in sorted(set(rows)):
                member = np.all(
                    [arrays[name] == value for name, value in zip(names, row, strict=True)], axis=0
                )
                if member.tobytes() in seen:
                    continue
                # Of a column with two values the second one has the gap of the first, the other way round: it is
                # listed all the same, as readers look for it.
                seen.add(member.tobytes())
                title = ", ".join(
                    f"{name}={value or '(empty)'}" for name, value in zip(names, row, strict=True)
                )
                groups.append((title, member, size > 1))
    return groups


def compare_groups(
    outcomes: Outcomes,
    columns: Mapping[str, Sequence[str]],
    sampler: ClusterSampler,
    *,
    min_gap: float = 0.05,
    states_power: bool = True,
) -> GroupReport:
    """Compare each group with all other images by every metric that groups are compared by.

    Args:
        outcomes: What was predicted of N images.
        columns: A value for each image, [N], by the name of the column.
        sampler: Draws of the images by cluster.
        min_gap: Least gap of a proportion that matters; how many images it takes to see it is said.
        states_power: Whether it is computed what each comparison could have seen, which takes a while.
    """
    groups = list_groups(columns)
    report = GroupReport([], {}, min_gap=min_gap)
    for name, member, is_intersection in groups:
        number = int(member.sum())
        if number < MIN_GROUP:
            report.small[name] = number
            continue
        if outcomes.truth is not None and not is_intersection:
            classes = {outcomes.truth[i] for i in np.flatnonzero(member)}
            if len(classes) == 1 and len(set(outcomes.truth)) > 1:
                report.notes.append(
                    f"All {number} {outcomes.unit} of {name} are '{classes.pop()}': its gap may be that of the class, "
                    f"and rates of other classes are not defined for it. Add {outcomes.unit} of other classes."
                )
        for metric in outcomes.compared:
            result = sampler.compare(metric, member)
            if result is not None:
                report.comparisons.append(
                    GroupComparison(
                        name, number, metric, result, is_intersection, unit=outcomes.unit
                    )
                )
    report.comparisons.sort(key=lambda c: outcomes.compared.index(c.metric))
    adjusted = adjust_p_values([c.result.p_value for c in report.comparisons])
    members = {name: member for name, member, _ in groups}
    effects = {id(m): sampler.compute_design_effect(m) for m in outcomes.compared}
    for each, value in zip(report.comparisons, adjusted, strict=True):
        each.adjusted = value
        if states_power and is_proportion(each.metric):
            _add_power(each, members[each.group], effects[id(each.metric)], report)
    return report


def _add_power(each: GroupComparison, member: Bools, effect: float, report: GroupReport) -> None:
    """Say of a comparison which gap it could have seen, and how many images it lacks for the gap that matters."""
    metric = each.metric
    assert isinstance(metric, RatioMetric)
    inside = float((metric.denominator * member).sum()) / effect
    outside = float((metric.denominator * ~member).sum()) / effect
    other = each.result.value.value - each.result.gap.value
    rate = 1 - other if metric.higher_is_better else other
    options = {"num_comparisons": len(report.comparisons)}
    each.smallest_gap = find_smallest_gap(inside, outside, rate, **options)
    if each.is_real or metric is not report.comparisons[0].metric:
        return
    needed = count_missing(report.min_gap, inside, outside, rate, **options)
    share = max(float(metric.denominator[member].mean()), 1e-9)
    each.num_missing = None if needed is None else int(np.ceil(needed * effect / share))

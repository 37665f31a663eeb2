"""Before and after: what a mitigation changed, group by group, on the same images with paired intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vfm.audit.comparison import Bools, ClusterSampler, Floats, ImageMetric
from vfm.audit.groups import MIN_GROUP, list_groups
from vfm.audit.kinds import Outcomes
from vfm.audit.source import AuditedData, AuditedModel, AuditError, PredictedImages
from vfm.metrics.intervals import Interval
from vfm.report import Page
from vfm.report.plots import COLORS, FONT_SIZE, encode_png, make_figure, style_axes, truncate_text

_MOST_BARS = 24


class JudgedModel(NamedTuple):
    """A model, and what it said of the images of an audit."""

    model: AuditedModel
    source: AuditedData
    predicted: PredictedImages

    def judge(self, positions: Sequence[int], positive: str | None) -> Outcomes:
        """Return the metrics of the images at some positions of the source."""
        rank = {position: k for k, position in enumerate(self.predicted.positions.tolist())}
        return self.model.kind.judge(
            [self.source.records[i] for i in positions],
            [self.predicted.predictions[rank[i]] for i in positions],
            self.source.columns,
            self.model.labels,
            positive,
        )


def require_comparable(after: AuditedModel, before: AuditedModel) -> None:
    """Refuse two models whose answers cannot be compared.

    Raises:
        AuditError: They are of other tasks, or know other labels.
    """
    tasks = [each.predictor.task_type.name for each in (before, after)]
    if tasks[0] != tasks[1]:
        raise AuditError(
            f"--before is {before.path}, of the task '{tasks[0]}', but {after.path} is of '{tasks[1]}'. Give two "
            "models of one task."
        )
    if set(before.labels) != set(after.labels):
        odd = sorted(set(before.labels) ^ set(after.labels))
        raise AuditError(
            f"--before is {before.path}, and only one of it and {after.path} knows the label '{odd[0]}'. Give two "
            "models of the same labels."
        )


def compare_models(
    after: JudgedModel,
    before: JudgedModel,
    columns: Mapping[str, Sequence[str]],
    clusters: Sequence[str] | None,
    *,
    positive: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Compare two models on the images that both could read, by the same draws of these; ready for JSON.

    Args:
        after: Model that is audited, with what it said of its images.
        before: Model that it is compared with, on the same images.
        columns: A value for each image of the source, by the name of the column of groups.
        clusters: Key of what belongs together, for each image of the source; None where each stands alone.
        positive: Label whose rates count; None for the usual one.
        seed: Seed of the draws.

    Raises:
        AuditError: The images are not the same.
    """
    names = [[r.name for r in each.source.records] for each in (after, before)]
    if names[0] != names[1]:
        raise AuditError(
            f"--before is {before.model.path}, whose test images are others than those of {after.model.path}. Name "
            "images for both: --data PATH."
        )
    read = set(before.predicted.positions.tolist())
    positions = [i for i in after.predicted.positions.tolist() if i in read]
    keys = None if clusters is None else [clusters[i] for i in positions]
    sampler = ClusterSampler.from_keys(keys, len(positions), seed)
    outcomes = [each.judge(positions, positive) for each in (before, after)]
    chosen = {name: [values[i] for i in positions] for name, values in columns.items()}
    groups = [
        (name, member) for name, member, _ in list_groups(chosen) if member.sum() >= MIN_GROUP
    ]
    everyone = np.ones(len(positions), bool)
    metrics = {
        pair[1].name: describe_change(sampler, pair, everyone)
        for pair in _pair_metrics(outcomes, "metrics")
    }
    pairs = _pair_metrics(outcomes, "compared")
    return {
        "before": str(before.model.path),
        "num_images": len(positions),
        "metrics": metrics,
        "groups": [
            {
                "group": name,
                "num_images": int(member.sum()),
                "metric": pair[1].name,
                "value": describe_change(sampler, pair, member),
                "gap": describe_change(sampler, pair, member, ~member),
            }
            for pair in pairs
            for name, member in groups
        ],
        "worst_group_gap": _compare_worst(sampler, pairs[0], [member for _, member in groups]),
    }


def _pair_metrics(outcomes: Sequence[Outcomes], kind: str) -> list[tuple[ImageMetric, ImageMetric]]:
    """Return the metrics that both have, before and after."""
    named = {metric.name: metric for metric in getattr(outcomes[0], kind)}
    return [(named[m.name], m) for m in getattr(outcomes[1], kind) if m.name in named]


def describe_change(
    sampler: ClusterSampler,
    pair: tuple[ImageMetric, ImageMetric],
    member: Bools,
    others: Bools | None = None,
) -> dict[str, Any] | None:
    """Return a metric before and after, and the change with its paired 95 % interval; None where it is not defined.

    Args:
        sampler: Draws, the same for both models.
        pair: The metric before, and after.
        member: Images that count, bool [N].
        others: Images whose metric is taken off, bool [N]; None for none.
    """
    values, draws = [], []
    for metric in pair:
        value = float(metric.compute(member[None].astype(np.int64))[0])
        drawn = sampler.resample(metric, member)
        if others is not None:
            value -= float(metric.compute(others[None].astype(np.int64))[0])
            drawn = drawn - sampler.resample(metric, others)
        values.append(value)
        draws.append(drawn)
    if not np.isfinite(values).all():
        return None
    return _describe(values, draws)


def _describe(values: Sequence[float], draws: Sequence[Floats]) -> dict[str, Any]:
    low, high = np.nanquantile(draws[1] - draws[0], [0.025, 0.975]).tolist()
    change = values[1] - values[0]
    interval = Interval(change, min(change, low), max(change, high))
    return {"before": values[0], "after": values[1], "change": interval.to_dict()}


def _compare_worst(
    sampler: ClusterSampler, pair: tuple[ImageMetric, ImageMetric], members: Sequence[Bools]
) -> dict[str, Any] | None:
    """Return how far the worst group is worse off than all others, whichever it is, before and after."""
    sign = -1.0 if pair[1].higher_is_better else 1.0
    values, draws = [], []
    for metric in pair:
        gaps, drawn = [], []
        for member in members:
            counts = np.stack([member, ~member]).astype(np.int64)
            inside, outside = metric.compute(counts).tolist()
            if np.isfinite([inside, outside]).all():
                gaps.append(sign * (inside - outside))
                drawn.append(
                    sign * (sampler.resample(metric, member) - sampler.resample(metric, ~member))
                )
        if not gaps:
            return None
        values.append(max(0.0, *gaps))
        draws.append(np.nanmax([np.zeros_like(drawn[0]), *drawn], axis=0))
    return _describe(values, draws)


def list_changes(result: Mapping[str, Any]) -> list[str]:
    """Return sentences on what changed: the headline metric, and the gap of the worst group."""
    name, first = next(iter(result["metrics"].items()))
    rows = {name.replace("_", " "): first, "gap of the worst group": result["worst_group_gap"]}
    return [
        f"{title}: {row['before']:.4f} before, {row['after']:.4f} after, {row['change']['value']:+.4f} (paired 95 % "
        f"interval {row['change']['low']:+.4f} to {row['change']['high']:+.4f})."
        for title, row in rows.items()
        if row is not None
    ]


def add_changes(page: Page, result: Mapping[str, Any]) -> None:
    """Add what changed to the page of an audit."""
    page.add_heading("Before and after")
    page.add_text(
        f"Compared with {result['before']} on the same {result['num_images']} images; intervals are of the difference, "
        "by the same draws for both."
    )
    for sentence in list_changes(result):
        page.add_text(sentence)
    rows = [{"group": "all", "metric": name, "value": v} for name, v in result["metrics"].items()]
    if result["groups"]:
        page.add_figure(
            draw_changes(result["groups"]),
            "Gap of each group to all other images, before (gray) and after",
        )
    page.add_table(
        [
            {
                "group": row["group"],
                "metric": row["metric"].replace("_", " "),
                "before": row["value"]["before"],
                "after": row["value"]["after"],
                "change": row["value"]["change"]["value"],
                "95 % interval": "{low:+.3f} to {high:+.3f}".format(**row["value"]["change"]),
                "gap before": (row.get("gap") or {}).get("before"),
                "gap after": (row.get("gap") or {}).get("after"),
            }
            for row in [*rows, *result["groups"]]
            if row["value"] is not None
        ]
    )


def draw_changes(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return the gaps of the first metric before and after, a line for each group, as PNG."""
    name = rows[0]["metric"]
    chosen = [row for row in rows if row["metric"] == name and row["gap"] is not None][:_MOST_BARS]
    drawing = make_figure(7.4, 1.0 + 0.32 * len(chosen))
    axes = drawing.subplots()
    for index, row in enumerate(chosen):
        before, after = row["gap"]["before"], row["gap"]["after"]
        axes.plot([before, after], [index, index], color="#9aa3ad", linewidth=1.2)
        axes.plot([before], [index], "o", color="#9aa3ad", markersize=5)
        axes.plot([after], [index], "o", color=COLORS[0], markersize=6)
    axes.axvline(0.0, color="#9aa3ad", linewidth=0.8)
    names = [f"{truncate_text(row['group'], 36)} ({row['num_images']})" for row in chosen]
    axes.set_yticks(range(len(chosen)), names, fontsize=FONT_SIZE, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(f"{name.replace('_', ' ')}, group less all others", fontsize=FONT_SIZE)
    style_axes(axes)
    return encode_png(drawing)

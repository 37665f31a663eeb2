"""Audit of detectors: false positive rate, AUC and true positive rate of scored videos or images, by group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vfm.audit.calibration import measure_calibration
from vfm.audit.comparison import ClusterSampler, CountedMetric, ImageMetric, RatioMetric
from vfm.audit.groups import compare_groups
from vfm.audit.kinds import Outcomes
from vfm.audit.origins import describe_origins
from vfm.audit.report import AuditReport, describe_coverage
from vfm.audit.source import AuditError, refuse_leaks
from vfm.data.group_columns import check_groups, read_columns
from vfm.metrics.ranking import Ranking
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.scored_units import ScoredUnits

_NOT_OF_DETECTORS = (
    *("groups without labels", "conformal sets", "images of another kind"),
    "what predictions hang on",
)


def judge_units(scored: ScoredUnits, negative: str, positive: str) -> Outcomes:
    """Return the metrics of a detector: AUC, and at its threshold the rates of both kinds of error.

    Groups are compared by the false positive rate first: a false alarm is what harms whom a detector is turned on.

    Args:
        scored: Scores of N videos or images.
        negative: Label of what is to pass.
        positive: Label of what is to be found.
    """
    truth = scored.positive.astype(float)
    called = scored.scores > scored.threshold
    false = RatioMetric("false_positive_rate", called * (1 - truth), 1 - truth, False)
    hits = RatioMetric("true_positive_rate", called * truth, truth)
    auroc = CountedMetric("auroc", Ranking(scored.scores, scored.positive).auroc)
    names = np.array([negative, positive])
    metrics: list[ImageMetric] = [auroc, false, hits]
    return Outcomes(
        metrics,
        [false, auroc, hits],
        names[called.astype(int)].tolist(),
        names[scored.positive.astype(int)].tolist(),
        confidence=np.where(called, scored.scores, 1 - scored.scores),
        right=called == scored.positive,
        positive=positive,
        unit=scored.name,
    )


def read_unit_columns(
    scored: ScoredUnits, names: list[str], table: Path | None, option: str
) -> dict[str, list[str]]:
    """Return columns of the table of the images: a value for each video, [N].

    Raises:
        DataError: There is no table, or no such column.
        AuditError: The images of one video have different values.
    """
    columns = {}
    rows = read_columns(scored.records, names, table or scored.table, option, source=scored.source)
    for name, values in rows.items():
        # The first image of each speaks for it.
        _, first = np.unique(scored.positions, return_index=True)
        chosen = [values[i] for i in first]
        for index, value in enumerate(values):
            other = chosen[scored.positions[index]]
            if value != other:
                raise AuditError(
                    f"{scored.records[index].name} has '{value}' in the column '{name}', but another image of the same "
                    f"video has '{other}'. A video is in one group: give all its images one value, or name another "
                    f"column ({option})."
                )
        columns[name] = chosen
    return columns


def measure_units(
    path: Path,
    checkpoint: Checkpoint,
    scored: ScoredUnits,
    *,
    groups: list[str],
    cluster: str | None = None,
    table: Path | None = None,
    min_gap: float = 0.05,
    seed: int = 0,
) -> AuditReport:
    """Measure all that the scores of a detector tell.

    Args:
        path: Path of the checkpoint.
        checkpoint: Checkpoint of the detector.
        scored: What it says of N videos or images.
        groups: Columns by whose values these are compared.
        cluster: Column of what belongs together; None for what the data itself says, such as people.
        table: Table with these columns; None for that of the data.
        min_gap: Least gap of a rate that matters.
        seed: Seed of all draws.

    Raises:
        AuditError: Most images are those of the training, or a video is in two groups.
        DataError: A column is missing, constant, or names single videos.
    """
    columns = read_unit_columns(scored, groups, table, "--groups")
    check_groups(columns)
    keys = scored.clusters
    if cluster is not None:
        keys = read_unit_columns(scored, [cluster], table, "--cluster")[cluster]
    leaks, notes = refuse_leaks(checkpoint, scored.records)
    outcomes = judge_units(scored, *checkpoint.task.labels)
    sampler = ClusterSampler.from_keys(keys, len(scored.scores), seed)
    report = compare_groups(outcomes, columns, sampler, min_gap=min_gap)
    intervals = {each.name: sampler.estimate(each) for each in outcomes.metrics}
    assert outcomes.confidence is not None
    assert outcomes.right is not None
    content: dict[str, Any] = {
        "model": str(path),
        "is_bundle": False,
        "task": checkpoint.task.kind,
        "data": scored.source,
        "unit": scored.name,
        "num_images": len(scored.scores),
        "num_clusters": sampler.num_clusters,
        "num_skipped": len(scored.skipped),
        "skipped": scored.skipped,
        "seed": seed,
        "labels": list(checkpoint.task.labels),
        "positive": outcomes.positive,
        "threshold": scored.threshold,
        "metrics": {k: None if v is None else v.to_dict() for k, v in intervals.items()},
        "groups": report.to_dict(),
        "leaks": leaks,
        "lineage": describe_origins(path, checkpoint),
        "calibration": measure_calibration(outcomes.confidence, outcomes.right, columns, seed=seed),
        "notes": [*scored.notes, *notes, *report.notes],
    }
    number = f"{sampler.num_clusters} values of {cluster}"
    content["coverage"] = describe_coverage(
        content,
        columns,
        clusters=number if cluster else f"{sampler.num_clusters} {scored.cluster_name}",
        others={
            "shortcuts": "vfm doctor DATA --shortcuts, for models of this task",
            "worse pictures": "vfm audit --robustness writes a page of its own for models of this task",
            **dict.fromkeys(_NOT_OF_DETECTORS, "not for models of this task"),
        },
    )
    return AuditReport(content, report, outcomes, list(scored.records))

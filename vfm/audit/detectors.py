"""Audit of detectors: false positive rate, AUC and true positive rate of scored videos or images, by group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vfm.audit.calibration import measure_abstention, measure_calibration
from vfm.audit.comparison import ClusterSampler, CountedMetric, ImageMetric, RatioMetric
from vfm.audit.explain import ExplainedPicture, choose_images, compute_maps, explain_pictures
from vfm.audit.groups import compare_groups
from vfm.audit.kinds import Outcomes, ScoredAnswers
from vfm.audit.null_score import measure_null_scores, read_null_values
from vfm.audit.origins import describe_origins
from vfm.audit.report import AuditReport, describe_coverage
from vfm.audit.robustness import estimate_row, measure_curves
from vfm.audit.source import AuditError, refuse_leaks
from vfm.data.corruptions import Corruption
from vfm.data.file_metadata import Metadata
from vfm.data.group_columns import check_groups, read_columns
from vfm.data.records import read_source
from vfm.metrics.ranking import Ranking
from vfm.report import draw_contact_sheet
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.predictor import TorchPredictor
from vfm.tasks.scored_units import AuditedUnits, ScoredUnits

_NOT_OF_DETECTORS = ("groups without labels", "conformal sets", "images of another kind")


def judge_units(scored: ScoredUnits, negative: str, positive: str) -> Outcomes:
    """Return the metrics of a detector: AUC, and at its threshold the rates of both kinds of error.

    Groups are compared by the false positive rate first: a false alarm is what harms whom a detector is turned on.

    Args:
        scored: Scores of N videos or images.
        negative: Label of what is to pass.
        positive: Label of what is to be found.
    """
    truth = scored.positive.astype(float)
    limits = scored.threshold if scored.group_thresholds is None else scored.group_thresholds
    called = scored.scores > limits
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


def read_unit_values(units: AuditedUnits, scored: ScoredUnits) -> list[Metadata]:
    """Return what the first image of each unit has beside its content, N entries; errors are those of reading it."""
    _, first = np.unique(scored.positions, return_index=True)
    values = []
    for index in first.tolist():
        source = read_source(scored.records[index])
        content = Path(source).read_bytes() if isinstance(source, str) else source
        pixels = units.open(scored.records[index])
        values.append(read_null_values(content if isinstance(content, bytes) else None, pixels))
    return values


def measure_unit_robustness(
    units: AuditedUnits,
    scored: ScoredUnits,
    labels: Sequence[str],
    kinds: Sequence[str],
    *,
    number: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Return AUC and rates of a detector under each corruption, ready for JSON.

    Args:
        units: Images or videos that can be scored under each corruption.
        scored: What the detector says of them as they are.
        labels: What is to pass, and what is to be found.
        kinds: Corruptions to measure, keys of those of the units.
        number: Most units that are looked at under every corruption.
        seed: Seed of the intervals.

    Raises:
        AuditError: All units have one label.
    """
    if len(set(scored.positive.tolist())) < 2:
        only = labels[int(scored.positive[0])]
        raise AuditError(
            f"All {len(scored.positive)} {scored.name} of {scored.source} are {only}, so --robustness has nothing to "
            "tell them from. Give data with both labels, or another --split."
        )

    def measure(corruption: Corruption | None, level: float) -> dict[str, Any]:
        changed = units.score(corruption, level, number=number)
        outcomes = judge_units(changed, labels[0], labels[1])
        every = np.ones((1, len(changed.scores)), np.int64)
        rates = {each.name: float(each.compute(every)[0]) for each in outcomes.metrics[1:]}
        return estimate_row(outcomes, changed.clusters, seed) | {"rates": rates}

    return measure_curves(
        measure,
        {kind: units.corruptions[kind] for kind in kinds},
        families={"all kinds": kinds},
        averaged=kinds,
        about=units.about_corruptions,
        unit=scored.name,
    )


def draw_corrupted(units: AuditedUnits, kinds: Sequence[str]) -> bytes:
    """Return a picture of an image with the positive label, as it is and under each corruption, as PNG."""
    record = next(each for each in units.records if each.label == 1)
    shown = [("as it is", units.open(record))]
    for kind in kinds:
        corruption = units.corruptions[kind]
        shown += [
            (corruption.text.format(level), units.open(record, corruption, level))
            for level in corruption.levels
        ]
    return draw_contact_sheet([pixels for _, pixels in shown], [text for text, _ in shown])


def list_unit_pictures(
    units: AuditedUnits, scored: ScoredUnits, outcomes: Outcomes, number: int, seed: int = 0
) -> Iterator[ExplainedPicture]:
    """Yield some units that are called positive, by the image of each that has the highest score, with its maps.

    Args:
        units: Images or videos that are scored.
        scored: What the detector says of the N of them.
        outcomes: What was predicted of them, and what is true.
        number: Most units: half of them right ones, by chance, and half the surest false alarms.
        seed: Seed of the choice.
    """
    assert outcomes.right is not None
    assert outcomes.positive is not None
    assert outcomes.truth is not None
    called = np.flatnonzero(np.array(outcomes.predicted) == outcomes.positive)
    for k in choose_images(outcomes.right[called], scored.scores[called], number, seed):
        unit = int(called[k])
        images = np.flatnonzero(scored.positions == unit)
        best = int(images[scored.image_scores[images].argmax()])
        pixels = units.open(scored.records[best])
        maps = {"heatmap": units.compute_heatmap(pixels)}
        if isinstance(units.predictor, TorchPredictor):
            maps = compute_maps(units.predictor.task, pixels[None], 0) | maps
        yield ExplainedPicture(
            scored.records[best].name,
            outcomes.truth[unit],
            outcomes.positive,
            float(scored.image_scores[best]),
            bool(outcomes.right[unit]),
            pixels,
            units.score_pixels,
            maps,
        )


def measure_units(
    path: Path,
    checkpoint: Checkpoint | None,
    units: AuditedUnits,
    scored: ScoredUnits,
    *,
    groups: list[str],
    cluster: str | None = None,
    table: Path | None = None,
    min_gap: float = 0.05,
    kinds: Sequence[str] = (),
    num_corrupted: int = 200,
    num_explained: int = 0,
    seed: int = 0,
) -> AuditReport:
    """Measure all that the scores of a detector tell.

    Args:
        path: Path of the checkpoint, or of the bundle's folder.
        checkpoint: Checkpoint of the detector; None of a bundle.
        units: N videos or images that it scores.
        scored: What it says of them.
        groups: Columns by whose values these are compared.
        cluster: Column of what belongs together; None for what the data itself says, such as people.
        table: Table with these columns; None for that of the data.
        min_gap: Least gap of a rate that matters.
        kinds: Corruptions under which robustness is measured; none for no such section.
        num_corrupted: Most units under each.
        num_explained: Most units whose score is explained by maps.
        seed: Seed of all draws.

    Raises:
        AuditError: Most images are those of the training, a video is in two groups, or robustness is asked for of one
            label alone.
        DataError: A column is missing, constant, or names single videos.
    """
    columns = read_unit_columns(scored, groups, table, "--groups")
    check_groups(columns)
    keys = scored.clusters
    if cluster is not None:
        keys = read_unit_columns(scored, [cluster], table, "--cluster")[cluster]
    leaks, notes = refuse_leaks(checkpoint, scored.records)
    labels = units.predictor.labels
    outcomes = judge_units(scored, labels[0], labels[1])
    sampler = ClusterSampler.from_keys(keys, len(scored.scores), seed)
    report = compare_groups(outcomes, columns, sampler, min_gap=min_gap)
    intervals = {each.name: sampler.estimate(each) for each in outcomes.metrics}
    assert outcomes.confidence is not None
    assert outcomes.right is not None
    images = np.arange(len(outcomes.right))
    answers = ScoredAnswers(outcomes.confidence, outcomes.right, images, "verdicts")
    content: dict[str, Any] = {
        "model": str(path),
        "is_bundle": checkpoint is None,
        "task": units.predictor.task_type.name,
        "data": scored.source,
        "unit": scored.name,
        "num_images": len(scored.scores),
        "num_clusters": sampler.num_clusters,
        "num_skipped": len(scored.skipped),
        "skipped": scored.skipped,
        "seed": seed,
        "labels": list(labels),
        "positive": outcomes.positive,
        "threshold": scored.threshold,
        "metrics": {k: None if v is None else v.to_dict() for k, v in intervals.items()},
        "groups": report.to_dict(),
        "leaks": leaks,
        "lineage": describe_origins(path, checkpoint or units.predictor),
        "calibration": measure_calibration(answers, columns, seed=seed)
        | measure_abstention(outcomes.confidence, outcomes.right),
        "notes": [*scored.notes, *notes, *report.notes],
    }
    null = measure_null_scores(
        read_unit_values(units, scored), scored.positive.astype(np.int64), keys=keys, seed=seed
    )
    content["null_scores"] = {name: score.to_dict() for name, score in null.items()}
    corrupted = b""
    if kinds:
        content["robustness"] = measure_unit_robustness(
            units, scored, labels, kinds, number=num_corrupted, seed=seed
        )
        corrupted = draw_corrupted(units, kinds)
    maps = b""
    pictures = list(list_unit_pictures(units, scored, outcomes, num_explained, seed))
    if pictures:
        about = (
            f"The score that is explained is that of {outcomes.positive}, of the image of each of the {scored.name} "
            f"that has the highest; what is called {labels[0]} has no map. The model's own heatmap is what its head "
            "says of each place, as production shows it."
        )
        content["explain"], maps = explain_pictures(pictures, seed, about)
    number = f"{sampler.num_clusters} values of {cluster}"
    content["coverage"] = describe_coverage(
        content,
        columns,
        clusters=number if cluster else f"{sampler.num_clusters} {scored.cluster_name}",
        robustness=bool(kinds),
        num_explained=len(pictures) if num_explained else None,
        others=dict.fromkeys(_NOT_OF_DETECTORS, "not for models of this task"),
    )
    return AuditReport(
        content, report, outcomes, list(scored.records), maps=maps, corrupted=corrupted
    )

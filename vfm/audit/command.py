"""`vfm audit`: what may be trusted of a model, by group, with what could not be seen: a page, JSON, an exit code."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import vfm_runtime
from vfm_runtime.bundle.manifest import read_bundle
from vfm_runtime.bundle.model import Model
from vfm_runtime.errors import OptionError

from vfm.audit.before import JudgedModel, compare_models, require_comparable
from vfm.audit.calibration import measure_abstention, measure_calibration
from vfm.audit.comparison import ClusterSampler, RatioMetric
from vfm.audit.conformal import check_level, measure_conformal
from vfm.audit.cost_line import MeasuredPass, describe_cost
from vfm.audit.detectors import measure_units
from vfm.audit.explain import (
    Answer,
    ExplainedPicture,
    explain_pictures,
    list_answers,
    list_pictures,
    open_maps,
    require_number,
)
from vfm.audit.explain_boxes import (
    ABOUT_BOXES,
    list_box_answers,
    list_box_pictures,
    require_gradients,
)
from vfm.audit.groups import compare_groups
from vfm.audit.null_score import measure_null_scores
from vfm.audit.ood_auroc import measure_ood, open_other_images
from vfm.audit.origins import describe_origins
from vfm.audit.page import build_page, format_report
from vfm.audit.report import AuditReport, describe_coverage
from vfm.audit.robustness import choose_kinds, measure_robustness
from vfm.audit.rules import AuditFailed, Rule, check_rules, parse_rules
from vfm.audit.slices import find_slices, list_traits
from vfm.audit.source import (
    AuditedData,
    AuditedModel,
    PredictedImages,
    open_data,
    open_model,
    predict_images,
    read_rule_groups,
    require_known,
)
from vfm.data.group_columns import check_groups
from vfm.data.records import Record
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.results import describe_metric
from vfm.tasks.scored_units import AuditedUnits, find_units
from vfm.training.meter import EnergyMeter

RESULTS = "audit.json"
PAGE = "audit.html"


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """What an audit looks at.

    Args:
        before: Another checkpoint or bundle of the same task and labels, such as the one before a mitigation: what
            changed is said for each group, on the same images with paired intervals.
        groups: Columns of the table by whose values images are compared, separated by commas: site,age.
        cluster: Column of what belongs together (patient, video, camera); intervals and tests take it as one.
        table: Table with a row for each image (path, and the columns), where the data itself is no table.
        positive: Label whose rates are compared between groups; of two labels by default the second.
        find_groups: Look for images with something in common on which the model is worse: clusters of embeddings,
            brightness, contrast, blur, size, shape. Found on one half, and shown where the other half confirms it.
        min_gap: Least gap between groups that matters; how many images it takes to see it is said.
        fail_on: Rules that must hold, such as "accuracy>0.9,worst_group_gap<0.1"; else the exit status is 1.
        conformal: Fraction of images whose set of labels shall hold the true one, such as 0.9: one half of the images
            sets the threshold of such sets, and the other half measures how often they hold it and how large they are.
        ood_data: Folder or table of images of another kind than those that the model is for: it is measured whether
            their distance from the training tells them from those of the audit.
        split: Split that is audited; by default test, where the data states none val, else all.
        robustness: Measure what is left of the model when pictures get worse: the 15 corruptions of ImageNet-C (noise,
            blur, weather, digital) and JPEG, resize, crop, rotation and darkness, each of 5 strengths; of models that
            answer for videos JPEG, blur, resize, noise and H.264.
        kinds: Corruptions, separated by commas; all by default.
        num_corrupted: Most images, or videos, under each corruption; 200 images of a model of 20 ms an image take some
            10 minutes.
        explain: Number of images whose prediction is explained by maps, half of them right ones, half the most
            confident mistakes; each map is measured beside random ones, which takes some 200 predictions. Where several
            labels may apply, each that is given has a map; of models that answer for videos, those of the label that
            is to be found, and of boxes the best right ones and false alarms. A bundle gives what takes no gradients.
        num_frames: Most frames of a video, spread evenly.
        format: Layout of the data, for models that answer for videos.
        cropped: Says that images without crop.json show one face each, cut out already.
        native: Says that images are not about faces.
        batch_size: Images in a batch.
        num_workers: Processes that open images, for models that answer for videos.
        device: cpu, cuda, or auto for a GPU where there is one.
        seed: Seed of all draws.
    """

    before: Path | None = None
    groups: str = ""
    cluster: str | None = None
    table: Path | None = None
    positive: str | None = None
    find_groups: bool = False
    min_gap: float = 0.05
    fail_on: str = ""
    conformal: float | None = None
    ood_data: Path | None = None
    split: str | None = None
    robustness: bool = False
    kinds: str = ""
    num_corrupted: int = 200
    explain: int = 0
    num_frames: int = 8
    format: str = "auto"
    cropped: bool = False
    native: bool = False
    batch_size: int = 32
    num_workers: int = 0
    device: str = "auto"
    seed: int = 0


_DEFAULTS = AuditOptions()
_OF_VIDEOS = ("num_frames", "format", "cropped", "native", "num_workers")


def audit(
    model: Path,
    images: Path | None = None,
    *,
    data: Path | None = None,
    out: Path | None = None,
    options: AuditOptions = _DEFAULTS,
    trust: Sequence[str] = (),
) -> None:
    """Audit a checkpoint or a bundle: metrics, groups, calibration, each with what could not be seen.

    Writes audit.json and audit.html. A gap between a group and all others is called real by a test over all
    comparisons, of which at most one in twenty is false; where none is, the smallest gap that would have been seen is
    said.

    Args:
        model: A .ckpt file of a training run, or the folder of a bundle.
        images: The same as --data, without its name.
        data: Folder or table of images with labels; by default the test split of the training.
        out: Folder for what is written; by default that of the checkpoint, or the current one. -o for short.
        options: What is looked at.
        trust: Packages besides vfm whose code the checkpoint may name.

    Raises:
        AuditError: The model, the images or the groups cannot be audited.
        AuditFailed: A rule of --fail-on does not hold.
        OptionError: An option has a value that it cannot have.
    """
    data = data or images
    checkpoint = None if model.is_dir() else Checkpoint.open(model, trust=trust)
    task_name = read_bundle(model).task if checkpoint is None else checkpoint.task.kind
    if (open_units := find_units(task_name)) is not None:
        _audit_units(model, checkpoint, open_units, data, out, options)
        return
    for name in _OF_VIDEOS:
        if getattr(options, name) != getattr(_DEFAULTS, name):
            raise OptionError(
                f"--{name.replace('_', '-')} is for models that answer for videos, which {model} does not. Leave it "
                "out."
            )
    rules = parse_rules(options.fail_on)
    energy, start = EnergyMeter(), time.perf_counter()
    audited = open_model(model, checkpoint, device=options.device)
    kinds = choose_kinds(options.kinds, locates=audited.kind.locates)
    if options.num_corrupted < 1:
        raise OptionError(f"--num-corrupted is {options.num_corrupted}. Give at least 1.")
    list_explained = open_pictures(audited, options.explain)
    check_level(options.conformal, audited.kind, audited.predictor.task_type.name)
    if options.positive is not None:
        require_known("positive", options.positive, audited.labels)
    earlier = None if options.before is None else open_before(audited, options, trust)
    source = open_data(audited, data, options.split)
    columns, clusters = read_groups(source, options)
    others = open_other_images(audited, options.ood_data, source.records)
    print(f"Predicting {len(source.records)} images of {source.source} ...", flush=True)
    rule_groups = read_rule_groups(audited, source, options.table)
    embeds = options.find_groups and audited.choose_embedding()
    joules = energy.read()
    predicted = predict_images(
        audited, source.records, batch_size=options.batch_size, embeds=embeds, groups=rule_groups
    )
    cost = describe_cost(
        MeasuredPass(len(predicted.predictions), predicted.seconds, predicted.model_seconds),
        energy,
        joules,
        batch_size=options.batch_size,
        device=audited.device,
    )
    report = measure(audited, source, predicted, columns, clusters, options)
    if others:
        keys = None if clusters is None else [clusters[i] for i in predicted.positions]
        report.content["ood"] = measure_ood(
            audited, predicted, keys, others, batch_size=options.batch_size, seed=options.seed
        )
    if earlier is not None:
        before = predict_before(earlier, data, options)
        notes = (*before.model.notes, *before.source.notes)
        report.content["notes"] += [f"Before: {note}" for note in notes]
        report.content["changes"] = compare_models(
            JudgedModel(audited, source, predicted),
            before,
            columns,
            clusters,
            positive=options.positive,
            seed=options.seed,
        )
    if options.robustness and source.columns is not None:
        report.content["robustness"] = measure_robustness(
            audited,
            source,
            clusters,
            kinds,
            num_images=options.num_corrupted,
            rule_groups=rule_groups,
            positive=options.positive,
            batch_size=options.batch_size,
            seed=options.seed,
        )
    if list_explained is not None and report.answers:
        print(f"Explaining {len(report.answers)} answers ...", flush=True)
        report.content["explain"], report.maps = explain_pictures(
            list_explained(report.records, report.answers),
            options.seed,
            ABOUT_BOXES if audited.kind.locates else "",
        )
    report.content["cost"] = {"seconds": time.perf_counter() - start, **cost}
    write_report(report, rules, out or choose_folder(model), report.list_sheets(audited))


def choose_folder(model: Path) -> Path:
    """Return the folder to write to where none is named: that of a checkpoint, of a bundle the current one."""
    return Path() if model.is_dir() else model.parent


def write_report(
    report: AuditReport, rules: list[Rule], folder: Path, sheets: Sequence[bytes] = ()
) -> None:
    """Check the rules, and write and print an audit.

    Raises:
        AuditFailed: A rule does not hold.
    """
    report.content["rules"] = check_rules(rules, report.values)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.content, indent=2, allow_nan=False) + "\n"
    (folder / RESULTS).write_text(text, encoding="utf-8")
    build_page(report.content, report.groups, sheets, report.maps, report.corrupted).write(
        folder / PAGE
    )
    print(
        f"{format_report(report.content, report.groups)}\n\nWritten: {folder / RESULTS} and {folder / PAGE}"
    )
    broken = [row for row in report.content["rules"] if not row["holds"]]
    if broken:
        listed = "; ".join(
            f"{row['rule']} (it is {describe_metric(row['value'])[0]})" for row in broken
        )
        raise AuditFailed(
            f"{len(broken)} of {len(rules)} rules of --fail-on do not hold: {listed}. See {folder / PAGE}."
        )


_OF_UNITS = (
    *("groups", "cluster", "table", "min_gap", "fail_on", "seed"),
    *("robustness", "kinds", "num_corrupted", "explain"),
)


def _audit_units(
    model: Path,
    checkpoint: Checkpoint | None,
    open_units: Callable[..., AuditedUnits],
    data: Path | None,
    out: Path | None,
    options: AuditOptions,
) -> None:
    """Audit a checkpoint or bundle whose task opens and scores its images by itself.

    Raises:
        OptionError: An option is not for this task.
        AuditError: Robustness is asked for, and there is one label only.
    """
    opening = inspect.signature(open_units).parameters
    chosen = {k: v for k, v in vars(options).items() if v != getattr(_DEFAULTS, k)}
    if idle := [option for option in chosen if option not in {*opening, *_OF_UNITS}]:
        choices = [option for option in vars(options) if option in {*opening, *_OF_UNITS}]
        raise OptionError(
            f"--{idle[0].replace('_', '-')} does not go with {model}, which opens its images by itself. Choices: "
            f"{', '.join(choices)}. Leave it out."
        )
    rules = parse_rules(options.fail_on)
    energy, start = EnergyMeter(), time.perf_counter()
    opened = checkpoint or vfm_runtime.load(model, device=options.device, precision="fp32")
    units = open_units(opened, data, **{k: v for k, v in chosen.items() if k in opening})
    kinds = choose_kinds(options.kinds, units.corruptions) if options.robustness else []
    require_number(options.explain)
    joules = energy.read()
    scored = units.score()
    cost = describe_cost(
        MeasuredPass(len(scored.records), scored.seconds, scored.model_seconds),
        energy,
        joules,
        batch_size=options.batch_size,
        device=opened.device if isinstance(opened, Model) else opened.task.device.type,
    )
    report = measure_units(
        model,
        checkpoint,
        units,
        scored,
        groups=split_names(options.groups),
        cluster=options.cluster,
        table=options.table,
        min_gap=options.min_gap,
        kinds=kinds,
        num_corrupted=options.num_corrupted,
        num_explained=options.explain,
        seed=options.seed,
    )
    report.content["cost"] = {"seconds": time.perf_counter() - start, **cost}
    write_report(report, rules, out or choose_folder(model))


def open_pictures(
    model: AuditedModel, number: int
) -> Callable[[Sequence[Record], Sequence[Answer]], Iterator[ExplainedPicture]] | None:
    """Return what yields pictures of answers with their maps; None where no image is to be explained.

    Raises:
        OptionError: The number is no number of images, or the model is a bundle that gives no such maps.
    """
    require_number(number)
    if not number:
        return None
    if model.kind.locates:
        require_gradients(model)
        return partial(list_box_pictures, model)
    return partial(list_pictures, model, open_maps(model))


def open_before(after: AuditedModel, options: AuditOptions, trust: Sequence[str]) -> AuditedModel:
    """Open the model that another one is compared with.

    Raises:
        AuditError: It is of another task, or knows other labels.
    """
    path = options.before
    assert path is not None
    checkpoint = None if path.is_dir() else Checkpoint.open(path, trust=trust)
    before = open_model(path, checkpoint, device=options.device)
    require_comparable(after, before)
    return before


def predict_before(before: AuditedModel, data: Path | None, options: AuditOptions) -> JudgedModel:
    """Predict the images of an audit by the model that its model is compared with.

    Raises:
        AuditError: It was trained on the images.
    """
    source = open_data(before, data, options.split)
    groups = read_rule_groups(before, source, options.table)
    predicted = predict_images(before, source.records, batch_size=options.batch_size, groups=groups)
    return JudgedModel(before, source, predicted)


def split_names(text: str) -> list[str]:
    """Return names that are separated by commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def read_groups(
    source: AuditedData, options: AuditOptions
) -> tuple[dict[str, list[str]], list[str] | None]:
    """Return the values of the group columns, and the key of each image; None where each stands alone."""
    columns = source.read_columns(split_names(options.groups), options.table, "--groups")
    check_groups(columns)
    if options.cluster is None:
        return columns, None
    keys = source.read_columns([options.cluster], options.table, "--cluster")[options.cluster]
    return columns, keys


def measure(
    model: AuditedModel,
    source: AuditedData,
    predicted: PredictedImages,
    columns: dict[str, list[str]],
    clusters: list[str] | None,
    options: AuditOptions,
) -> AuditReport:
    """Measure all that predictions tell."""
    positions = predicted.positions.tolist()
    records = [source.records[i] for i in positions]
    chosen = {name: [values[i] for i in positions] for name, values in columns.items()}
    keys = None if clusters is None else [clusters[i] for i in positions]
    outcomes = model.kind.judge(
        records, predicted.predictions, source.columns, model.labels, options.positive
    )
    sampler = ClusterSampler.from_keys(keys, len(records), options.seed)
    groups = compare_groups(outcomes, chosen, sampler, min_gap=options.min_gap)
    metrics = {}
    for metric in outcomes.metrics:
        interval = sampler.estimate(metric)
        metrics[metric.name] = None if interval is None else interval.to_dict()
    content: dict[str, Any] = {
        "model": str(model.path),
        "is_bundle": model.checkpoint is None,
        "task": model.predictor.task_type.name,
        "data": source.source,
        "unit": "images",
        "num_images": len(records),
        "num_clusters": sampler.num_clusters if keys is not None else None,
        "num_skipped": len(predicted.skipped),
        "skipped": predicted.skipped,
        "seed": options.seed,
        "labels": list(model.labels),
        "positive": outcomes.positive,
        "metrics": metrics,
        "groups": groups.to_dict(),
        "leaks": source.leaks,
        "lineage": describe_origins(model.path, model.checkpoint or model.predictor),
    }
    if outcomes.scored is not None:
        has_logits = outcomes.scores is not None and len(model.labels) > 1
        content["calibration"] = measure_calibration(
            outcomes.scored,
            chosen,
            fit=outcomes.fit_temperature if has_logits else None,
            seed=options.seed,
        )
        if outcomes.confidence is not None and outcomes.right is not None:
            content["calibration"] |= measure_abstention(outcomes.confidence, outcomes.right)
    if (
        options.conformal is not None
        and outcomes.scores is not None
        and outcomes.target is not None
    ):
        content["conformal"] = measure_conformal(
            outcomes.scores, outcomes.target, chosen, sampler, options.conformal
        )
    if outcomes.target is not None:
        scores = measure_null_scores(
            predicted.values, outcomes.target, keys=keys, seed=options.seed
        )
        content["null_scores"] = {name: score.to_dict() for name, score in scores.items()}
    slices = None
    if options.find_groups and isinstance(outcomes.compared[0], RatioMetric) and outcomes.truth:
        traits = list_traits(predicted.values)
        slices = find_slices(outcomes.compared[0], traits, predicted.vectors, sampler)
        content["found_groups"] = slices.to_dict()
    has_truth = source.columns is not None
    answers = []
    if options.explain and source.columns is not None:
        answers = (
            list_box_answers(
                records,
                predicted.predictions,
                source.columns,
                model.labels,
                options.explain,
                options.seed,
            )
            if model.kind.locates
            else list_answers(outcomes, model.labels, options.explain, options.seed)
        )
    content["coverage"] = describe_coverage(
        content,
        chosen,
        clusters=f"{sampler.num_clusters} values of {options.cluster}" if options.cluster else None,
        robustness=options.robustness,
        ood_data=options.ood_data,
        num_explained=len(answers) if options.explain and has_truth else None,
    )
    content["notes"] = [*model.notes, *source.notes, *outcomes.notes, *groups.notes]
    return AuditReport(content, groups, outcomes, records, slices, answers)

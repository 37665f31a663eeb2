"""`vfm audit`: what may be trusted of a model, by group, with what could not be seen: a page, JSON, an exit code."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from vfm_runtime.errors import OptionError

from vfm.audit.before import JudgedModel, compare_models, require_comparable
from vfm.audit.calibration import measure_calibration
from vfm.audit.comparison import ClusterSampler, RatioMetric
from vfm.audit.conformal import check_level, measure_conformal
from vfm.audit.cost_line import describe_cost
from vfm.audit.groups import GroupReport, compare_groups
from vfm.audit.kinds import Outcomes
from vfm.audit.null_score import measure_null_scores
from vfm.audit.ood_auroc import measure_ood, open_other_images
from vfm.audit.origins import describe_origins
from vfm.audit.page import build_page, format_report
from vfm.audit.robustness import choose_kinds, measure_robustness
from vfm.audit.rules import AuditFailed, check_rules, parse_rules
from vfm.audit.slices import SliceSearch, find_slices, list_traits
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
from vfm.data.dataset import Record, read_source
from vfm.data.group_columns import check_groups
from vfm.report import draw_contact_sheet
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.results import describe_metric
from vfm.training.meter import EnergyMeter

RESULTS = "audit.json"
PAGE = "audit.html"

_NUM_SHOWN = 6


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
        robustness: Measure what is left of the model when pictures get worse: compressed, blurred, shrunk, noisy, dark,
            bright, pale; on at most 500 of them.
        kinds: Corruptions, separated by commas; all by default.
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
    if checkpoint is not None and checkpoint.task.audit_function is not None:
        _audit_by_task(checkpoint, data, out, options, trust)
        return
    for name in _OF_VIDEOS:
        if getattr(options, name) != getattr(_DEFAULTS, name):
            raise OptionError(
                f"--{name.replace('_', '-')} is for models that answer for videos, which {model} does not. Leave it "
                "out."
            )
    kinds = choose_kinds(options.kinds)
    rules = parse_rules(options.fail_on)
    energy, start = EnergyMeter(), time.perf_counter()
    audited = open_model(model, checkpoint, device=options.device)
    check_level(options.conformal, audited.kind, audited.predictor.task_type.name)
    if options.positive is not None:
        require_known("positive", options.positive, audited.labels)
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
        predicted, energy, joules, batch_size=options.batch_size, device=audited.device
    )
    report = measure(audited, source, predicted, columns, clusters, options)
    if others:
        keys = None if clusters is None else [clusters[i] for i in predicted.positions]
        report.content["ood"] = measure_ood(
            audited, predicted, keys, others, batch_size=options.batch_size, seed=options.seed
        )
    if options.before is not None:
        before = predict_before(options.before, audited, data, options, trust)
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
            rule_groups=rule_groups,
            positive=options.positive,
            batch_size=options.batch_size,
            seed=options.seed,
        )
    report.content["cost"] = {"seconds": time.perf_counter() - start, **cost}
    report.content["rules"] = check_rules(rules, report.values)
    folder = out or (Path() if checkpoint is None else model.parent)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report.content, indent=2, allow_nan=False) + "\n"
    (folder / RESULTS).write_text(text, encoding="utf-8")
    build_page(report.content, report.groups, report.list_sheets(audited)).write(folder / PAGE)
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


def _audit_by_task(
    checkpoint: Checkpoint,
    data: Path | None,
    out: Path | None,
    options: AuditOptions,
    trust: Sequence[str],
) -> None:
    """Audit a checkpoint by the function of its task, with the options that were set.

    Raises:
        OptionError: One of them is not for this task.
    """
    module, _, name = str(checkpoint.task.audit_function).partition(":")
    audit_task = getattr(import_module(module), name)
    chosen = {k: v for k, v in vars(options).items() if v != getattr(_DEFAULTS, k)}
    taken = inspect.signature(audit_task).parameters
    if idle := [option for option in chosen if option not in taken]:
        choices = [option for option in vars(options) if option in taken]
        raise OptionError(
            f"--{idle[0].replace('_', '-')} does not go with {checkpoint.path}, whose task has an audit of its own. "
            f"Choices: {', '.join(choices)}. Leave it out."
        )
    audit_task(checkpoint.path, data, out=out, trust=trust, **chosen)


def predict_before(
    path: Path, after: AuditedModel, data: Path | None, options: AuditOptions, trust: Sequence[str]
) -> JudgedModel:
    """Predict the images of an audit by the model that its model is compared with.

    Raises:
        AuditError: It is of another task, or knows other labels, or was trained on the images.
    """
    checkpoint = None if path.is_dir() else Checkpoint.open(path, trust=trust)
    before = open_model(path, checkpoint, device=options.device)
    require_comparable(after, before)
    source = open_data(before, data, options.split)
    groups = read_rule_groups(before, source, options.table)
    predicted = predict_images(before, source.records, batch_size=options.batch_size, groups=groups)
    return JudgedModel(before, source, predicted)


def read_groups(
    source: AuditedData, options: AuditOptions
) -> tuple[dict[str, list[str]], list[str] | None]:
    """Return the values of the group columns, and the key of each image; None where each stands alone."""
    names = [name.strip() for name in options.groups.split(",") if name.strip()]
    columns = source.read_columns(names, options.table, "--groups")
    check_groups(columns)
    if options.cluster is None:
        return columns, None
    keys = source.read_columns([options.cluster], options.table, "--cluster")[options.cluster]
    return columns, keys


@dataclass(eq=False)
class AuditReport:
    """All that an audit measured."""

    content: dict[str, Any]
    """Plain values, ready for JSON."""
    groups: GroupReport
    outcomes: Outcomes
    records: list[Record]
    """Records of the images that could be read."""
    slices: SliceSearch | None = None
    """Groups found without labels; None where none were looked for."""

    def list_sheets(self, model: AuditedModel) -> list[bytes]:
        """Return a contact sheet for each group that was found: its worst images first, then its best."""
        metric = self.outcomes.compared[0]
        sheets = []
        truth = self.outcomes.truth or [""] * len(self.records)
        for each in () if self.slices is None else self.slices.confirmed:
            assert isinstance(metric, RatioMetric)
            members = np.flatnonzero(each.candidate.member & (metric.denominator > 0))
            quality = metric.numerator[members] / metric.denominator[members]
            order = members[np.argsort(quality, kind="stable")].tolist()
            half = min(_NUM_SHOWN, len(order) // 2)
            chosen = [*order[:half], *order[-half:]]
            sheets.append(
                draw_contact_sheet(
                    [model.predictor.open_pixels(read_source(self.records[i])) for i in chosen],
                    [f"{truth[i]}\n-> {self.outcomes.predicted[i]}" for i in chosen],
                    columns=_NUM_SHOWN,
                    marks=[metric.numerator[i] == metric.denominator[i] for i in chosen],
                )
            )
        return sheets

    @property
    def values(self) -> dict[str, float | None]:
        """The figures that a rule may name."""
        values = {
            name: None if metric is None else metric["value"]
            for name, metric in self.content["metrics"].items()
        }
        if (calibration := self.content.get("calibration")) is not None:
            values["ece"] = calibration["ece"]
        for method, row in self.content.get("conformal", {}).get("methods", {}).items():
            values[f"conformal_coverage_{method}"] = row["coverage"]["value"]
        if (ood := self.content.get("ood")) is not None:
            values["ood_auroc"] = ood["auroc"]["value"]
        worst = self.groups.find_worst()
        if (robustness := self.content.get("robustness")) is not None:
            values["mean_corruption_error"] = robustness["mean_corruption_error"]
        values["num_found_gaps"] = float(len(self.groups.found))
        values["num_skipped"] = float(self.content["num_skipped"])
        leaks = self.content["leaks"]
        values["num_leaks"] = float(len(leaks["copies"])) if leaks["is_checked"] else None
        if (changes := self.content.get("changes")) is not None:
            rows = {**changes["metrics"], "worst_group_gap": changes["worst_group_gap"]}
            for name, change in rows.items():
                values[f"{name}_change"] = None if change is None else change["change"]["value"]
        if worst is not None:
            values["worst_group_gap"] = max(0.0, worst.harm)
            values[f"worst_group_{worst.metric.name}"] = worst.result.value.value
            values["equalized_odds_difference"] = self.groups.compute_odds_difference()
        return values


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
        "lineage": describe_origins(model),
    }
    if outcomes.confidence is not None and outcomes.right is not None:
        content["calibration"] = measure_calibration(
            outcomes.confidence, outcomes.right, chosen, seed=options.seed
        )
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
    content["coverage"] = describe_coverage(content, chosen, options)
    content["notes"] = [*model.notes, *source.notes, *outcomes.notes, *groups.notes]
    return AuditReport(content, groups, outcomes, records, slices)


def describe_coverage(
    content: dict[str, Any], columns: dict[str, list[str]], options: AuditOptions
) -> list[dict[str, str]]:
    """Return a row for each subject of an audit: whether it was looked at, and how, or what it takes."""
    has_labels = "calibration" in content or len(content["metrics"]) > 2

    def row(subject: str, looked: bool, text: str) -> dict[str, str]:
        return {"subject": subject, "looked at": "yes" if looked else "NO", "how": text}

    names = ", ".join(columns)
    return [
        row(
            "errors",
            has_labels,
            f"{content['num_images']} images, {content['num_skipped']} could not be read"
            if has_labels
            else "no labels: give images with labels (--data)",
        ),
        row("training images among these", content["leaks"]["is_checked"], content["leaks"]["how"]),
        row(
            "images that belong together",
            options.cluster is not None,
            f"{content['num_clusters']} values of {options.cluster}"
            if options.cluster
            else "each image counts as independent; where several show one patient or video, intervals are too narrow "
            "(--cluster)",
        ),
        row(
            "groups",
            bool(columns),
            f"{names}: {content['groups']['num_comparisons']} comparisons"
            if columns
            else "name columns of the table: --groups site,age",
        ),
        row(
            "groups without labels",
            "found_groups" in content,
            f"{content['found_groups']['num_candidates']} candidates"
            if "found_groups" in content
            else "clusters, brightness, blur, size: --find-groups (takes labels)",
        ),
        row(
            "shortcuts",
            bool(content.get("null_scores")),
            "null score: metadata, border and look alone"
            if content.get("null_scores")
            else "too few images of two labels, or no labels",
        ),
        row(
            "worse pictures",
            options.robustness and has_labels,
            "compression, blur, size, noise, light: --robustness (takes labels)"
            if not (options.robustness and has_labels)
            else "corruptions of at most 500 images",
        ),
        row(
            "calibration",
            "calibration" in content,
            "confidence of the predicted label"
            if "calibration" in content
            else "not of this task, or no labels",
        ),
        row(
            "conformal sets",
            "conformal" in content,
            "LAC and APS, measured on the half that did not set their threshold"
            if "conformal" in content
            else "sets of labels that hold the true one: --conformal 0.9 (one label an image, with labels)",
        ),
        row(
            "images of another kind",
            options.ood_data is not None,
            f"{options.ood_data}"
            if options.ood_data
            else "whether distance from the training tells them: --ood-data FOLDER",
        ),
    ]

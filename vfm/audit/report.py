"""Audit report: all that an audit measured, the figures that a rule may name, and what was not looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vfm.audit.comparison import RatioMetric
from vfm.audit.explain import Answer
from vfm.audit.groups import GroupReport
from vfm.audit.kinds import Outcomes
from vfm.audit.slices import SliceSearch
from vfm.audit.source import AuditedModel
from vfm.data.records import Record, read_source
from vfm.report import draw_contact_sheet

_NUM_SHOWN = 6


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
    answers: Sequence[Answer] = ()
    """Labels that are to be explained."""
    maps: bytes = b""
    """Sheet of explained images, PNG; empty where none were."""
    corrupted: bytes = b""
    """Sheet of an image under each corruption, PNG; empty where none was drawn."""

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


def describe_coverage(
    content: Mapping[str, Any],
    columns: Mapping[str, Sequence[str]],
    *,
    clusters: str | None = None,
    robustness: bool = False,
    ood_data: Path | None = None,
    num_explained: int | None = None,
    others: Mapping[str, str] | None = None,
) -> list[dict[str, str]]:
    """Return a row for each subject of an audit: whether it was looked at, and how, or what it takes.

    Args:
        content: Result of the audit so far, ready for JSON.
        columns: A value for each image by the name of a group column.
        clusters: What belongs together, in words; None where each image stands alone.
        robustness: Whether worse pictures are looked at.
        ood_data: Images of another kind; None where there are none.
        num_explained: Number of answers that are explained by maps; None where that was not asked for.
        others: What it takes to look at a subject, by its name, where the task has another way.
    """
    others = others or {}
    has_labels = "calibration" in content or len(content["metrics"]) > 2

    def row(subject: str, looked: bool, text: str) -> dict[str, str]:
        how = text if looked else others.get(subject, text)
        return {"subject": subject, "looked at": "yes" if looked else "NO", "how": how}

    names = ", ".join(columns)
    return [
        row(
            "errors",
            has_labels,
            f"{content['num_images']} {content['unit']}, {content['num_skipped']} images could not be read"
            if has_labels
            else "no labels: give images with labels (--data)",
        ),
        row("training images among these", content["leaks"]["is_checked"], content["leaks"]["how"]),
        row(
            "images that belong together",
            clusters is not None,
            clusters
            or "each image counts as independent; where several show one patient or video, intervals are too narrow "
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
            robustness and has_labels,
            "noise, blur, weather, compression, size, crop, rotation: --robustness (takes labels)"
            if not (robustness and has_labels)
            else "corruptions: see Robustness",
        ),
        row(
            "calibration",
            "calibration" in content,
            f"scores of {content['calibration']['answers']}"
            if "calibration" in content
            else "no labels, or no answer above its threshold",
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
            ood_data is not None,
            f"{ood_data}"
            if ood_data
            else "whether distance from the training tells them: --ood-data FOLDER",
        ),
        row(
            "what predictions hang on",
            bool(num_explained),
            f"answers with maps: {num_explained}"
            if num_explained
            else "maps of some images: --explain 8 (takes labels)"
            if num_explained is None
            else "nothing is above its threshold, so there is nothing to explain (vfm calibrate)",
        ),
    ]

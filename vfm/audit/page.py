"""Audit page: the result of `vfm audit` as text to print and as HTML, in the order in which a risk officer reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from vfm.audit.before import add_changes, list_changes
from vfm.audit.calibration import draw_calibration
from vfm.audit.conformal import add_conformal, describe_conformal
from vfm.audit.cost_line import list_costs
from vfm.audit.explain import add_explanations, list_explanations
from vfm.audit.groups import GroupComparison, GroupReport
from vfm.audit.leaks import add_leaks
from vfm.audit.ood_auroc import add_ood, list_ood_sentences
from vfm.audit.origins import add_origins, list_warnings
from vfm.audit.robustness import add_robustness, describe_robustness
from vfm.report import Page
from vfm.report.plots import (
    COLORS,
    FONT_SIZE,
    encode_png,
    make_figure,
    style_axes,
    truncate_text,
)
from vfm.tasks.results import describe_metric

_MOST_SENTENCES = 12
_MOST_BARS = 24
_GROUPS_ABOUT = (
    "Each group and each pair of groups beside all other images. A gap is called real where its p-value holds once all "
    "comparisons are counted: of the gaps that are called real, at most one in twenty is chance (Benjamini and "
    "Hochberg). No gap found is no proof that there is none: what could not have been seen is said."
)
_CALIBRATION_ABOUT = (
    "How far scores lie from how often they are right, in bins of equal mass. Beside the error stands the one that "
    "perfectly calibrated scores would not exceed in 95 of 100 audits of as many answers, if each stood alone."
)


def build_page(
    content: Mapping[str, Any],
    groups: GroupReport,
    sheets: Sequence[bytes] = (),
    maps: bytes = b"",
    corrupted: bytes = b"",
) -> Page:
    """Return the page of an audit.

    Args:
        content: Result of the audit.
        groups: Comparisons of groups, with what could not be seen.
        sheets: A picture of each group that was found without labels.
        maps: Picture of the maps that explain predictions.
        corrupted: Picture of an image under each corruption.
    """
    page = Page(
        f"Audit of {content['model']}",
        f"{content['data']}: {content['num_images']} {content['unit']}; task {content['task']}; seed {content['seed']}",
    )
    page.add_facts(_list_facts(content, groups))
    if content["rules"]:
        page.add_heading("Rules")
        page.add_table(
            [row | {"holds": "yes" if row["holds"] else "NO"} for row in content["rules"]]
        )
    page.add_heading("What was looked at, and what was not")
    page.add_table(content["coverage"])
    for note in content["notes"]:
        page.add_text(f"Note: {note}")
    add_leaks(page, content["leaks"])
    page.add_heading("Metrics")
    page.add_text(
        "Intervals of 95 % by bootstrap"
        + (
            f" over {content['num_clusters']} clusters of {content['unit']} that belong together."
            if content["num_clusters"]
            else " over images."
        )
    )
    page.add_table(
        [{"metric": name, **(metric or {})} for name, metric in content["metrics"].items()],
        ["metric", "value", "low", "high"],
    )
    _add_sections(page, content, {"null_scores": _add_null_scores, "changes": add_changes})
    if groups.comparisons:
        _add_groups(page, groups)
    if "found_groups" in content:
        _add_slices(page, content["found_groups"], sheets)
    _add_sections(
        page,
        content,
        {
            "calibration": _add_calibration,
            "conformal": add_conformal,
            "ood": add_ood,
            "robustness": partial(add_robustness, sheet=corrupted),
        },
    )
    if maps:
        add_explanations(page, content["explain"], maps)
    page.add_heading("Cost")
    for sentence in list_costs(content["cost"]):
        page.add_text(sentence)
    add_origins(page, content["lineage"])
    if content["skipped"]:
        page.add_heading("Files that could not be read")
        page.add_table(
            [{"file": name, "reason": reason} for name, reason in content["skipped"].items()]
        )
    return page


def _add_sections(
    page: Page,
    content: Mapping[str, Any],
    sections: Mapping[str, Callable[[Page, Mapping[str, Any]], None]],
) -> None:
    """Add a section for each key of the result that holds something."""
    for key, add in sections.items():
        if content.get(key):
            add(page, content[key])


def _list_facts(content: Mapping[str, Any], groups: GroupReport) -> dict[str, Any]:
    """Return the headline figures by name."""
    facts: dict[str, Any] = {
        name.replace("_", " "): describe_metric(metric)
        for name, metric in list(content["metrics"].items())[:4]
    }
    worst = groups.find_worst()
    if worst is not None:
        facts["worst group"] = (
            f"{worst.result.value.value:.4f}",
            f"{worst.group}; {'a real gap' if worst.is_real else 'no gap found'} of {worst.result.gap.value:+.3f}",
        )
    if "calibration" in content:
        calibration = content["calibration"]
        facts["calibration error"] = (
            f"{calibration['ece']:.4f}",
            f"perfect scores: up to {calibration['ece_of_perfect_scores']:.4f}",
        )
    return facts


def _add_groups(page: Page, groups: GroupReport) -> None:
    page.add_heading("Groups")
    page.add_text(_GROUPS_ABOUT)
    for sentence in list_sentences(groups):
        page.add_text(sentence)
    page.add_figure(
        draw_gaps(groups), "Gap of each group to all other images, with its 95 % interval"
    )
    odds = groups.compute_odds_difference()
    if odds is not None:
        page.add_text(
            f"Equalized odds difference: {odds:.3f}, the largest difference of the true or false positive rate between "
            "two groups of one column."
        )
    page.add_table(
        [
            {
                "group": each.group,
                each.unit: each.num_images,
                "metric": each.metric.name.replace("_", " "),
                "value": each.result.value.value,
                "gap": each.result.gap.value,
                "95 % interval": f"{each.result.gap.low:+.3f} to {each.result.gap.high:+.3f}",
                "p of all": f"{each.adjusted:.2g}",
                "real": "yes" if each.is_real else "",
                "smallest visible": each.smallest_gap,
            }
            for each in groups.comparisons
        ]
    )
    if groups.small:
        listed = ", ".join(f"{name} ({number})" for name, number in groups.small.items())
        page.add_text(f"Too few to be compared: {listed}.")


def _add_null_scores(page: Page, scores: Mapping[str, Any]) -> None:
    page.add_heading("Shortcuts: the null score")
    page.add_text(
        "How well the labels of these images are told without their content: by metadata of the file, the colors of "
        "the border, brightness, contrast and sharpness alone, cross-validated. Where that comes near to the model, "
        "the metrics above say little."
    )
    page.add_table(
        [
            {
                "by": name,
                "AUROC": score["auroc"]["value"],
                "accuracy": None if score["accuracy"] is None else score["accuracy"]["value"],
                "commonest label": score["majority"],
                "warning": "yes" if score["warning"] else "",
            }
            for name, score in scores.items()
        ]
    )


def _add_slices(page: Page, result: Mapping[str, Any], sheets: Sequence[bytes]) -> None:
    page.add_heading("Groups found without labels")
    page.add_text(
        f"{result['num_candidates']} sets of images with something in common were looked at on one half of the images; "
        f"{result['num_tried']} stood out there and were tried on the other half, which confirmed "
        f"{len(result['confirmed'])}. Values and gaps are those of the other half."
    )
    for each, sheet in zip(result["confirmed"], sheets, strict=True):
        page.add_text(describe_slice(each))
        page.add_figure(
            sheet, "The worst images of the group, then its best, which speak against it"
        )


def describe_slice(each: Mapping[str, Any]) -> str:
    """Say in a sentence what a group found without labels is, and how the model does there."""
    return (
        f"{each['name']} ({each['num_images']} images): {each['value']['value']:.3f}, {each['gap']['value']:+.3f} to "
        f"all others (95 % interval {each['gap']['low']:+.3f} to {each['gap']['high']:+.3f}; p "
        f"{each['adjusted_p_value']:.2g})."
    )


def _add_calibration(page: Page, result: Mapping[str, Any]) -> None:
    page.add_heading("Calibration")
    page.add_text(_CALIBRATION_ABOUT)
    page.add_text(f"{result['num_answers']:,} {result['answers']}. {describe_calibration(result)}")
    if "risk_coverage" in result:
        caption = "Reliability, and the errors among the most confident answers"
        page.add_figure(draw_calibration(result), caption)
        page.add_text("What abstaining buys: answering only the most confident images.")
        page.add_table(result["risk_coverage"])
    else:
        page.add_figure(draw_calibration(result), "Reliability")
    if "temperature" in result:
        page.add_text(
            f"Temperature {result['temperature']:.2f}: what the logits would best be divided by. Above 1 the scores "
            "are too sure, below it not sure enough; by group it says which scores are off more than the rest."
        )
    if result["groups"]:
        page.add_table(
            [
                {
                    "group": row["group"],
                    "answers": row["num_answers"],
                    "ECE": row["ece"],
                    "perfect scores up to": row["ece_of_perfect_scores"],
                    "overconfidence": row["overconfidence"],
                    **({"temperature": row["temperature"]} if "temperature" in row else {}),
                }
                for row in result["groups"]
            ]
        )


def describe_calibration(result: Mapping[str, Any]) -> str:
    """Say in a sentence whether scores are probabilities."""
    error, limit = result["ece"], result["ece_of_perfect_scores"]
    if result["is_calibrated"]:
        return f"Calibration error {error:.3f}: no more than that of perfect scores ({limit:.3f})."
    side = "too sure" if result["overconfidence"] > 0 else "not sure enough"
    return (
        f"Calibration error {error:.3f}, more than perfect scores would have ({limit:.3f}): the model is {side} by "
        f"{abs(result['overconfidence']):.3f} on average. {result['remedy']}"
    )


def list_sentences(groups: GroupReport) -> list[str]:
    """Return what is to be read first: every real gap, then what could not have been seen of the first metric."""
    first = groups.comparisons[0].metric
    others = [c for c in groups.comparisons if not c.is_real and c.metric is first]
    others.sort(key=lambda c: -(c.smallest_gap or 1.0))
    chosen = [*groups.found, *others]
    sentences = [each.describe(groups.min_gap) for each in chosen[:_MOST_SENTENCES]]
    if len(chosen) > _MOST_SENTENCES:
        sentences.append(f"{len(chosen) - _MOST_SENTENCES} more in the table.")
    return sentences


def draw_gaps(groups: GroupReport) -> bytes:
    """Return the gaps of the first metric with their intervals, the worst on top, as PNG."""
    first = groups.comparisons[0].metric
    rows = sorted((c for c in groups.comparisons if c.metric is first), key=lambda c: -c.harm)
    return _draw_rows(rows[:_MOST_BARS], first.name.replace("_", " "))


def _draw_rows(rows: Sequence[GroupComparison], name: str) -> bytes:
    drawing = make_figure(7.4, 1.0 + 0.32 * len(rows))
    axes = drawing.subplots()
    for index, each in enumerate(rows):
        gap = each.result.gap
        color = COLORS[1] if each.is_real else COLORS[0]
        errors = [[gap.value - gap.low], [gap.high - gap.value]]
        axes.errorbar(
            [gap.value], [index], xerr=errors, fmt="o", color=color, capsize=3, markersize=4
        )
    axes.axvline(0.0, color="#9aa3ad", linewidth=0.8)
    names = [f"{truncate_text(each.group, 36)} ({each.num_images})" for each in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=FONT_SIZE, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel(f"{name}, group less all others (orange: a real gap)", fontsize=FONT_SIZE)
    style_axes(axes)
    return encode_png(drawing)


def format_report(content: Mapping[str, Any], groups: GroupReport) -> str:
    """Return the printed result."""
    lines = []
    for name, metric in content["metrics"].items():
        value, note = describe_metric(metric)
        lines.append(f"{name:<24} {value}  {note}")
    if "changes" in content:
        lines += [f"Change: {sentence}" for sentence in list_changes(content["changes"])]
    if "calibration" in content:
        lines.append(describe_calibration(content["calibration"]))
    lines += describe_conformal(content.get("conformal", {"methods": {}}))
    lines += list_ood_sentences(content.get("ood"))
    if groups.comparisons:
        lines += ["", *list_sentences(groups)]
    if content.get("null_scores"):
        null = content["null_scores"]["all"]
        worst = "" if null["accuracy"] is None else f", accuracy {null['accuracy']['value']:.3f}"
        lines.append(
            f"Null score (metadata, border, look alone): AUROC {null['auroc']['value']:.3f}{worst}."
        )
    if "robustness" in content:
        lines.append(describe_robustness(content["robustness"]))
    lines += list_explanations(content.get("explain"))
    for each in content.get("found_groups", {}).get("confirmed", ()):
        lines.append(f"Found without labels: {describe_slice(each)}")
    lines += [f"Cost: {list_costs(content['cost'])[0]}"]
    lines += [f"Lineage: {sentence}" for sentence in list_warnings(content["lineage"])]
    missing = [row for row in content["coverage"] if row["looked at"] == "NO"]
    if missing:
        lines += ["", *(f"Not looked at: {row['subject']} ({row['how']})." for row in missing)]
    lines += [f"Note: {note}" for note in content["notes"]]
    for row in content["rules"]:
        lines.append(f"{'holds ' if row['holds'] else 'BROKEN'} {row['rule']}")
    return "\n".join(lines)

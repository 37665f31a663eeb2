"""Deepfake results page: metrics, curves, methods, decisions, and the videos that were worst."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.deepfake.evidence import sigmoid
from vfm_runtime.media.bit_depth import ValueRange

from vfm.data.records import Record
from vfm.deepfake.metrics import Videos, select_method
from vfm.metrics.ranking import Ranking
from vfm.report import Curve, plot_curves
from vfm.report.plots import COLORS, FONT_SIZE, encode_png, make_figure, style_axes
from vfm.tasks.results import ResultsPage, describe_metric, make_sheet, open_record

_FACTS = {
    "video_auc": "Video AUC",
    "macro_auc": "AUC, mean of methods",
    "frame_auc": "Frame AUC",
}
_METHOD_COLUMNS = {
    "num_fakes": "fakes",
    "num_reals": "reals",
    "auc": "AUC",
    "low": "low",
    "high": "high",
    "average_precision": "AP",
    "eer": "EER",
    "tpr_at_fpr_0.01": "TPR at 1 % FPR",
}
_NUM_SHOWN = 12
_MOST_CURVES = 9
_NUM_BINS = 40
_CELL = 150


def write_deepfake_page(
    folder: Path,
    split: str,
    results: Mapping[str, Any],
    videos: Videos,
    logits: NDArray[np.float32],
    records: Sequence[Record],
    value_range: ValueRange | None = None,
) -> None:
    """Write `report_<split>.html` and the PNG files of its pictures, from logits [N] and records of N scored images.

    The range is that of images of more than 8 bits.
    """
    page = ResultsPage(
        folder,
        split,
        f"{results['num_videos']} videos ({results['num_reals']} real, {results['num_fakes']} fake) of "
        f"{results['num_identities']} people or groups of people, {results['num_samples']} images; "
        f"{results.get('checkpoint') or 'no checkpoint'}",
    )
    for warning in results["warnings"]:
        page.add_text(f"⚠ {warning}")
    page.add_facts(_list_facts(results))
    _show_scores(page, results, videos)
    _show_methods(page, results, videos)
    _show_decision(page, results)
    _show_worst(page, videos, logits, records, partial(open_record, value_range=value_range))
    _show_failures(page, results)
    page.finish(results)


def _list_facts(results: Mapping[str, Any]) -> dict[str, Any]:
    video = results["video"]
    facts = {name: describe_metric(results[key]) for key, name in _FACTS.items()}
    facts["Equal error rate"] = describe_metric(video["eer"])
    facts["Average precision"] = describe_metric(
        video["average_precision"], f"of fakes; chance is {video['prevalence']:.3f}"
    )
    for row in video["tpr_at_fpr"]:
        allowed = row["false_alarms_allowed"]
        note = f"{allowed} of {results['num_reals']} reals may be called fake"
        facts[f"Fakes found at {100 * row['fpr']:g} % FPR"] = describe_metric(row, note)
    worst = results["worst_method"]
    if worst is not None and worst["auc"] is not None:
        facts["Worst method"] = (f"{worst['auc']:.4f}", f"AUC of {_name_method(worst)}")
    if results["unseen_auc"] is not None:
        facts["AUC, unseen methods"] = (f"{results['unseen_auc']:.4f}", "not in the training")
    if results["metadata_auc"] is not None:
        facts["AUC of metadata alone"] = describe_metric(
            results["metadata_auc"], "no pixel was looked at"
        )
    return facts


def _name_method(row: Mapping[str, Any]) -> str:
    return "/".join(part for part in (row["dataset"], row["method"]) if part) or "unnamed"


def _show_scores(page: ResultsPage, results: Mapping[str, Any], videos: Videos) -> None:
    page.add_heading("Scores")
    limit = results["video"]["eer_threshold"]
    point = results["operating_point"]
    lines = {} if limit is None else {"equal errors (fitted here)": limit}
    if point is not None and point["threshold"] is not None:
        lines["operating point"] = point["threshold"] * results["calibration"]["temperature"]
    drawing = make_figure(8.0, 3.2)
    axes = drawing.subplots()
    edges = np.histogram_bin_edges(videos.logits, bins=_NUM_BINS).tolist()
    for chosen, name, color in (
        (~videos.fake, "real", COLORS[0]),
        (videos.fake, "fake", COLORS[1]),
    ):
        if chosen.any():
            weights = np.full(int(chosen.sum()), 1 / chosen.sum())
            label = f"{name} ({int(chosen.sum())})"
            axes.hist(
                videos.logits[chosen], edges, weights=weights, color=color, alpha=0.6, label=label
            )
    for (name, logit), style in zip(lines.items(), ("--", "-")[: len(lines)], strict=True):
        axes.axvline(logit, color="#1b1f24", linewidth=1.1, linestyle=style, label=name)
    axes.set_xlabel("mean logit of a video (above: more fake)", fontsize=FONT_SIZE)
    axes.set_ylabel("share of its class", fontsize=FONT_SIZE)
    axes.legend(fontsize=FONT_SIZE - 1, frameon=False)
    style_axes(axes)
    page.show(
        "scores",
        encode_png(drawing),
        "Mean logit of each video, reals and fakes each as shares of their own number.",
    )


def _show_methods(page: ResultsPage, results: Mapping[str, Any], videos: Videos) -> None:
    rows = results["per_method"]
    if any(row["auc"] is not None for row in rows):
        page.add_heading("By method, the worst first")
        page.add_text(
            "Fakes of each method against the same reals: those of its data set, or all where that has none."
        )
        seen = {True: {"in training": "yes"}, False: {"in training": "no"}, None: {}}
        page.add_table(
            [{"method": _name_method(r)} | _select_columns(r) | seen[r["seen"]] for r in rows]
        )
        few = (
            ""
            if len(rows) <= _MOST_CURVES
            else f" The {_MOST_CURVES} worst of {len(rows)} methods."
        )
        page.show(
            "curves",
            _plot_methods(rows, videos),
            f"By video; all methods together, and each alone against the same reals.{few}",
        )
    if results["without_method"]:
        page.add_heading("With one method left out")
        page.add_text(
            "What is left of the figures without each method: an easy one carries the mean."
        )
        page.add_table(
            [
                {
                    "left out": _name_method(row | {"method": row["left_out"]}),
                    "mean AUC of the others": row["macro_auc"],
                    "AUC of the others pooled": row["auc"],
                }
                for row in results["without_method"]
            ]
        )
    if len(results["per_dataset"]) > 1:
        page.add_heading("By data set")
        page.add_table(
            [{"data set": row["dataset"]} | _select_columns(row) for row in results["per_dataset"]]
        )


def _select_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[key] for key, name in _METHOD_COLUMNS.items()}


def _plot_methods(rows: Sequence[Mapping[str, Any]], videos: Videos) -> bytes:
    parts = {"all": np.arange(len(videos.keys))} if len(rows) > 1 else {}
    for row in rows[:_MOST_CURVES]:
        parts[_name_method(row)] = select_method(videos, row["dataset"], row["method"])
    drawn = {}
    for name, part in parts.items():
        ranking = Ranking(videos.logits[part], videos.fake[part])
        areas = ranking.to_dict()
        # Without reals there is no method to draw.
        assert areas["auroc"] is not None
        assert areas["average_precision"] is not None
        drawn[name] = Curve(
            ranking.roc_curve(), ranking.pr_curve(), areas["auroc"], areas["average_precision"]
        )
    return plot_curves(drawn)


def _show_decision(page: ResultsPage, results: Mapping[str, Any]) -> None:
    calibration, point = results["calibration"], results["operating_point"]
    if calibration["ece"] is None:
        return
    page.add_heading("Decision")
    if point is None:
        page.add_text(
            "There is no operating point: no threshold was fitted at which a rate of false alarms is known, and the "
            "score is no calibrated probability. Fit both on videos that are neither trained on nor tested on: vfm "
            "calibrate CHECKPOINT DATA."
        )
    else:
        texts = {
            key: "not defined" if value is None else f"{value:.2%}"
            for key, value in point.items()
            if key in _POINT_ROWS
        }
        texts["fpr"] += f" ({point['num_false_alarms']} videos)"
        if point["real_below"] is None:
            del texts["undecided"]
        page.add_table([{"": _POINT_ROWS[k], "value": texts[k]} for k in _POINT_ROWS if k in texts])
    page.add_table([{_CALIBRATION[name]: calibration[name] for name in _CALIBRATION}])
    drawing = make_figure(4.6, 4.2, layout="compressed")
    axes = drawing.subplots()
    axes.plot([0, 1], [0, 1], color="#9aa3ad", linewidth=0.8, linestyle=":")
    bins = calibration["bins"]
    scores, fractions = [row["score"] for row in bins], [row["share"] for row in bins]
    axes.plot(scores, fractions, color=COLORS[0], linewidth=1.4, marker="o", markersize=4)
    axes.set_xlim(-0.01, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_aspect("equal")
    axes.set_xlabel("mean score of the bin", fontsize=FONT_SIZE)
    axes.set_ylabel("share of fakes in it", fontsize=FONT_SIZE)
    style_axes(axes)
    page.show(
        "reliability",
        encode_png(drawing),
        f"Share of fakes by score, at a temperature of {calibration['temperature']:.3g}, as if reals and fakes were "
        "equally frequent; on the line a score is a probability.",
    )


_CALIBRATION = {
    "temperature": "temperature",
    "ece": "expected calibration error",
    "brier": "Brier score",
    "nll": "log-likelihood, negative",
}
_POINT_ROWS = {
    "fpr": "reals called fake",
    "fpr_at_most": "the true share, with 95 % confidence, is at most",
    "calibrated_fpr": "the threshold was fitted for",
    "tpr": "fakes called fake",
    "missed": "fakes called real",
    "balanced_accuracy": "balanced accuracy",
    "undecided": "undecided, of all videos",
}


def _show_worst(
    page: ResultsPage,
    videos: Videos,
    logits: NDArray[np.float32],
    records: Sequence[Record],
    open_picture: Callable[[Record], NDArray[np.uint8]],
) -> None:
    order = np.argsort(videos.logits, kind="stable")
    parts = {
        "missed": ("Fakes that look most real", order[videos.fake[order]]),
        "alarms": ("Reals that look most fake", order[~videos.fake[order]][::-1]),
    }
    for name, (title, chosen) in parts.items():
        pictures = _list_pictures(chosen, videos, logits, records, open_picture)
        if picture := make_sheet(pictures, _NUM_SHOWN, cell=_CELL):
            page.add_heading(title)
            page.show(
                name,
                picture,
                "A frame of each video, the most typical by its logit; below it the score at a temperature of 1.",
            )


def _list_pictures(
    chosen: NDArray[np.int64],
    videos: Videos,
    logits: NDArray[np.float32],
    records: Sequence[Record],
    open_picture: Callable[[Record], NDArray[np.uint8]],
) -> Iterator[tuple[Callable[[], NDArray[np.uint8]], str]]:
    for video in chosen:
        frames = np.flatnonzero(videos.of_frame == video)
        typical = frames[np.argmin(np.abs(logits[frames] - videos.logits[video]))]
        dataset, method, name = videos.keys[video]
        where = "/".join(part for part in (dataset, method) if part)
        score = f"{sigmoid(float(videos.logits[video])):.3f}"
        caption = f"{score}, {videos.num_frames[video]} frames\n{where or 'real'}\n{name}"
        yield partial(open_picture, records[typical]), caption


def _show_failures(page: ResultsPage, results: Mapping[str, Any]) -> None:
    lost = results["failures"]
    if lost["num_reals"] + lost["num_fakes"]:
        page.add_heading("Videos without a score")
        page.add_table(
            [
                {
                    "real": lost["num_reals"],
                    "fake": lost["num_fakes"],
                    "AUC without them": lost["excluded_auc"],
                    "AUC if each were a mistake": lost["worst_case_auc"],
                }
            ]
        )

"""Page of `vfm tune`: the ladder as a plot and a table, the learning curve, the most confident mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.media.bit_depth import make_range

from vfm.report import Page, plot_intervals, plot_learning_curves
from vfm.tasks.classification.mistakes import find_mistakes
from vfm.tasks.results import make_sheet, open_record
from vfm.tune.images import LabeledPool
from vfm.tune.ways import Way, format_points
from vfm.tune.words import TuneResult

_NUM_MISTAKES = 24
_METRICS = {"accuracy": "Accuracy", "mAP": "Mean average precision"}


def write_page(
    path: Path,
    result: TuneResult,
    backbones: Sequence[dict[str, Any]],
    pool: LabeledPool,
    scores: NDArray[np.float32],
    judged: NDArray[np.int64],
    *,
    subtitle: str,
    commands: Sequence[str],
) -> None:
    """Write the page.

    Args:
        path: HTML file to write.
        result: All ways with their scores, and the choice.
        backbones: A row for each backbone that was compared.
        pool: Images that were learned from.
        scores: Scores [n, C] of the chosen way, of images that it had not learned from.
        judged: Indices of these images in the pool, [n].
        subtitle: Line under the title.
        commands: Commands to go on with.
    """
    interval = result.chosen.interval
    page = Page("The best model for these images", subtitle)
    page.add_facts(
        {
            "Chosen": (result.chosen.title, f"fitted on all {result.num_images} images"),
            _METRICS[result.metric]: (
                f"{interval.value:.3f}",
                f"to be expected on new images; 95 % interval {interval.low:.3f} to {interval.high:.3f}",
            ),
            "Judged on": (
                f"{result.chosen.num_judged} images",
                "none of which it had learned from",
            ),
        }
    )
    for sentence in result.describe():
        page.add_text(sentence)
    page.add_heading("Ways that were tried")
    points = {
        way.title: (way.seconds / 60, way.interval.value, way.interval.low, way.interval.high)
        for way in result.tried
    }
    page.add_figure(
        plot_intervals(points, xlabel="minutes to judge it (log scale)", ylabel=result.metric),
        f"{_METRICS[result.metric]} on images that were not learned from, with 95 % intervals, by the minutes that it "
        "took. Ways that were judged on fewer images have wider intervals; the table compares them on the same ones.",
    )
    page.add_table([_make_row(way, result.metric) for way in result.tried])
    for way in result.untried:
        page.add_text(f"Not tried: {way.name}; {way.reason}.")
    page.add_text(
        "The interval of the chosen frozen head is that of choosing among all heads; points against frozen compare a "
        "fine-tuned way with the best frozen head on the same images, fitted on the same others."
    )
    if len(backbones) > 1:
        page.add_heading("Backbones")
        page.add_table(backbones)
    _add_curve(page, result)
    _add_mistakes(page, pool, scores, judged)
    page.add_heading("Next")
    page.add_code("\n".join(commands))
    page.write(path)


def _make_row(way: Way, metric: str) -> dict[str, Any]:
    row = {
        "way": way.title,
        metric: way.interval.value,
        "95 % interval": f"{way.interval.low:.3f} to {way.interval.high:.3f}",
        "images": way.num_judged,
        "folds": f"{way.folds[0]}/{way.folds[1]}",
        "minutes": round(way.seconds / 60, 2),
        "pixels": way.image_size,
        "steps": way.steps or None,
    }
    if way.gain is not None:
        row["against frozen, points"] = format_points(way.gain.interval)
    return row


def _add_curve(page: Page, result: TuneResult) -> None:
    page.add_heading("What more images would be worth")
    if result.curve is None:
        page.add_text("There are too few images for a learning curve.")
        return
    series = {"measured": result.curve.points, "extrapolated": result.curve.expected}
    plot = plot_learning_curves({result.metric: series}, xlabel="images learned from")
    caption = (
        "The best single frozen head, fitted on a quarter, a half and all of the images of each fold; means of three "
        "draws. Extrapolated: for all images, and for twice as many, by a power law of the error; not measured."
    )
    page.add_figure(plot, caption)


def _add_mistakes(
    page: Page, pool: LabeledPool, scores: NDArray[np.float32], judged: NDArray[np.int64]
) -> None:
    page.add_heading("Most confident mistakes")
    records = [pool.records[i] for i in judged]
    bit_depth = pool.data.bit_depth
    value_range = None if bit_depth is None else make_range(bit_depth)
    mistakes = find_mistakes(scores, pool.target[judged], records, pool.data.labels)
    pictures = (
        (
            partial(open_record, mistake.record, value_range),
            f"{mistake.answer} ({mistake.score:.2f})\ntrue: {mistake.truth}\n{mistake.record.name}",
        )
        for mistake in mistakes
    )
    if sheet := make_sheet(pictures, _NUM_MISTAKES):
        caption = (
            f"The first of {len(mistakes)} on images that were not learned from. Look here for wrong labels first: "
            "an image whose label is wrong is a confident mistake of a good model."
        )
        page.add_figure(sheet, caption)
    else:
        page.add_text("None.")

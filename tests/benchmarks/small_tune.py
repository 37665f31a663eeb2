"""Tables of `vfm tune`: what it leaves, what it passed over, and how far its printed intervals hold."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from small_baselines import BACKBONE, FEATURE_SIDE, SCIKIT, locate_weights
from small_linear import LINEAR_SETS, judge_head
from small_results import (
    Cell,
    Results,
    Values,
    Work,
    compare,
    find_accuracies,
    format_head,
    format_mean,
    format_row,
)
from small_sets import open_set
from small_ways import fit_way, tune_images, write_table

from vfm.tasks import ClassificationTask
from vfm.training.feature_cache import load_features
from vfm.training.frozen_heads import JOINED
from vfm.tune.frozen import PoolHeads
from vfm.tune.images import open_pool

TUNE_SIZES, TUNE_SEEDS, MINUTES = (10, 50), range(3), 10
TUNE, FINE_TUNED = "vfm tune", ("full", "ln", "lora")


def list_tune(_: Results) -> Iterator[tuple[Cell, Work]]:
    for seed in TUNE_SEEDS:
        for per_class in TUNE_SIZES:
            for name in LINEAR_SETS:
                cell = Cell("tune", TUNE, name, per_class, seed)
                yield cell, functools.partial(judge_tune, name, per_class, seed)
                for way in SCIKIT:
                    work = functools.partial(judge_head, way, name, per_class, seed)
                    yield cell._replace(way=way), work


def judge_tune(name: str, per_class: int, seed: int, minutes: float = MINUTES) -> Values:
    of_set = open_set(name)
    with tempfile.TemporaryDirectory() as folder:
        drawn = of_set.draw(per_class, seed)
        return tune_images(drawn, of_set.test, seed, Path(folder), minutes)


def list_others(results: Results) -> Iterator[tuple[Cell, Work]]:
    """The fine-tuned ways that tune tried and did not choose, in cells that tune has finished."""
    for cell, row in list(results.values.items()):
        for way in row.get("ways", ()):
            if cell.way == TUNE and way["name"] in FINE_TUNED and way["name"] != row["chosen"]:
                work = functools.partial(judge_other, way, cell.set, cell.per_class, cell.seed)
                yield cell._replace(way=way["name"]), work


def judge_other(way: dict[str, Any], name: str, per_class: int, seed: int) -> Values:
    of_set = open_set(name)
    with tempfile.TemporaryDirectory() as folder:
        return fit_way(way, of_set.draw(per_class, seed), of_set.test, seed, Path(folder))


def summarize_tune(results: Results) -> list[str]:
    lines = format_head(
        *("set", "a class", TUNE, *SCIKIT, f"{TUNE} less the best of these, points"),
        *("its loss to the best way tried, points", "chosen", "minutes"),
    )
    for name in LINEAR_SETS:
        everything: list[dict[Any, float]] = [{} for _ in (TUNE, *SCIKIT)]
        for per_class in TUNE_SIZES:
            rows = results.find("tune", TUNE, name, per_class)
            found = [
                {
                    s: v
                    for s, v in find_accuracies(results, "tune", way, name, per_class).items()
                    if s in rows
                }
                for way in (TUNE, *SCIKIT)
            ]
            for all_sizes, of_size in zip(everything, found, strict=True):
                all_sizes.update({(per_class, seed): value for seed, value in of_size.items()})
            if rows:
                losses = [_compute_loss(results, name, per_class, seed) for seed in rows]
                chosen = ", ".join(row["chosen"] for row in rows.values())
                minutes = statistics.mean(row["minutes"] for row in rows.values())
                last = (f"{100 * statistics.mean(losses):.1f}", chosen, f"{minutes:.1f}")
                lines.append(_tune_row(name, per_class, found, *last))
        if everything[0]:
            lines.append(_tune_row(name, "both", everything, "", "", ""))
    return lines


def _tune_row(name: str, per_class: object, found: list[dict[Any, float]], *last: str) -> str:
    # The single head that is best in the mean of these cells, not in each.
    best = max(found[1:], key=lambda values: statistics.mean(values.values() or [0]))
    return format_row(name, per_class, *map(format_mean, found), compare(found[0], best), *last)


def _compute_loss(results: Results, name: str, per_class: int, seed: int) -> float:
    ways = (TUNE, *SCIKIT, *FINE_TUNED)
    found = {
        way: find_accuracies(results, "tune", way, name, per_class).get(seed, 0) for way in ways
    }
    return max(found.values()) - found[TUNE]


# What tune prints of the frozen heads

COVERAGE_SIZES, COVERAGE_SEEDS = (10, 50), range(25)


def list_coverage(_: Results) -> Iterator[tuple[Cell, Work]]:
    for per_class in COVERAGE_SIZES:
        for name in LINEAR_SETS:
            for seed in COVERAGE_SEEDS:
                work = functools.partial(judge_interval, name, per_class, seed)
                yield Cell("coverage", "frozen heads", name, per_class, seed), work


def judge_interval(name: str, per_class: int, seed: int) -> Values:
    """The interval that tune prints, and the accuracy of the head it chose on all images that were not drawn.

    Classes count alike in the accuracy, as they do in what was drawn: of the others, some sets have twice as many.
    """
    everything, positions = _open_frozen(name)
    of_set = open_set(name)
    drawn = of_set.draw(per_class, seed)
    train, rest = (
        np.array([positions[path] for path, _ in samples])
        for samples in (drawn, of_set.list_rest(drawn))
    )
    features = {field: values[train] for field, values in everything.features.items()}
    frozen = PoolHeads(everything.pool.keep_only(train.tolist()), features)
    frozen.judge(60.0 * MINUTES)
    answers = everything.fit_and_score(frozen.best, train, rest).argmax(1)
    target = everything.pool.target[rest]
    accuracy = float(np.mean([(answers[target == c] == c).mean() for c in np.unique(target)]))
    interval = frozen.choice.interval
    printed = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {"accuracy": accuracy, "chosen": frozen.best.name, "printed": printed}


@functools.cache
def _open_frozen(name: str) -> tuple[PoolHeads, dict[Path, int]]:
    """All images of a set as tune sees them, and where each stands."""
    of_set = open_set(name)
    with tempfile.TemporaryDirectory() as folder:
        table = write_table(Path(folder) / "images.csv", train=of_set.pool + of_set.test)
        pool = open_pool(table, num_images=len(of_set.pool + of_set.test), seed=0)
        data = pool.select(range(len(pool.indices)))
        data.setup("fit")
        task = ClassificationTask(
            BACKBONE, weights=locate_weights(), image_size=FEATURE_SIDE, adapt="linear"
        ).eval()
        task.backbone.select_outputs(JOINED)
        stored = load_features(task.backbone, task.preprocess, data, "train", JOINED)
    features = {field: np.asarray(values) for field, values in stored.arrays.items()}
    positions = {Path(record.source): index for index, record in enumerate(pool.records)}
    return PoolHeads(pool, features), positions


def summarize_coverage(results: Results) -> list[str]:
    lines = format_head(
        "a class", "set", "draws", "covered", "mean printed", "mean of the rest", "width"
    )
    for per_class in COVERAGE_SIZES:
        everything: list[Values] = []
        for name in LINEAR_SETS:
            rows = list(results.find("coverage", "frozen heads", name, per_class).values())
            everything += rows
            lines += _coverage_row(per_class, name, rows)
        lines += _coverage_row(per_class, "all", everything)
    return lines


def _coverage_row(per_class: int, name: str, rows: list[Values]) -> list[str]:
    if not rows:
        return []
    printed = [row["printed"] for row in rows]
    covered = sum(
        p["low"] <= row["accuracy"] <= p["high"] for p, row in zip(printed, rows, strict=True)
    )
    means = (
        statistics.mean(p["value"] for p in printed),
        statistics.mean(row["accuracy"] for row in rows),
        statistics.mean(p["high"] - p["low"] for p in printed),
    )
    return [format_row(per_class, name, len(rows), covered, *(f"{mean:.3f}" for mean in means))]

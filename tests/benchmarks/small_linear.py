"""Tables of the solved linear head beside scikit-learn's heads, on the same frozen features."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sides import seconds
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from small_baselines import SCIKIT, compute_features, fit_scikit
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

from vfm.data.splits import draw_folds
from vfm.heads_on_features import solve_linear
from vfm.heads_on_features.linear import list_candidates


class Drawn(NamedTuple):
    """Features and classes of the images of a draw, and of those that judge."""

    train: np.ndarray
    train_target: np.ndarray
    test: np.ndarray
    test_target: np.ndarray
    folds: np.ndarray


def draw_features(name: str, per_class: int, seed: int, *, all_others: bool = False) -> Drawn:
    of_set = open_set(name)
    drawn = of_set.draw(per_class, seed)
    judging = of_set.list_rest(drawn) if all_others else of_set.test
    features, labels = _read_features(name), of_set.labels
    target = [labels.index(label) for _, label in drawn]
    folds = draw_folds(
        [str(path) for path, _ in drawn], [(t,) for t in target], min(5, len(drawn)), seed
    )
    return Drawn(
        np.stack([features[path] for path, _ in drawn]),
        np.array(target),
        np.stack([features[path] for path, _ in judging]),
        np.array([labels.index(label) for _, label in judging]),
        np.array(folds),
    )


@functools.cache
def _read_features(name: str) -> dict[Path, np.ndarray]:
    return compute_features(open_set(name))


# Solved linear heads

LINEAR_SETS = ("textile", "fashion_mnist", "emoji", "trees")
LINEAR_SIZES, LINEAR_SEEDS = (5, 10, 20, 50), range(5)
OURS = "solved linear"


def list_linear(_: Results) -> Iterator[tuple[Cell, Work]]:
    for name in LINEAR_SETS:
        for per_class in LINEAR_SIZES:
            for seed in LINEAR_SEEDS:
                for way in (OURS, *SCIKIT):
                    work = functools.partial(judge_head, way, name, per_class, seed)
                    yield Cell("linear", way, name, per_class, seed), work


def judge_head(way: str, name: str, per_class: int, seed: int) -> Values:
    drawn = draw_features(name, per_class, seed)
    if way == OURS:
        solved = solve_linear(drawn.train, drawn.train_target, drawn.folds)
        answers = solved.head.compute_logits(drawn.test).argmax(1)
        chosen = {"scaling": solved.scaling, "c": solved.c, "expected": solved.metric}
    else:
        answers = fit_scikit(way, drawn.train, drawn.train_target, seed).predict(drawn.test)
        chosen = {}
    return {"accuracy": float((answers == drawn.test_target).mean())} | chosen


def summarize_linear(results: Results) -> list[str]:
    ways = (OURS, *SCIKIT)
    lines = format_head("set", "a class", *ways, f"{OURS} less logistic (95 % interval), points")
    for name in LINEAR_SETS:
        for per_class in LINEAR_SIZES:
            found = [find_accuracies(results, "linear", way, name, per_class) for way in ways]
            if any(found):
                difference = compare(found[0], found[ways.index("logistic")])
                lines.append(format_row(name, per_class, *map(format_mean, found), difference))
    return lines


# The time of solving


def list_linear_time(_: Results) -> Iterator[tuple[Cell, Work]]:
    for seed in range(3):
        for way, solve in (("vfm", solve_ours), ("scikit-learn", solve_theirs)):
            work = functools.partial(time_solving, solve, seed)
            yield Cell("linear_time", way, "fashion_mnist", 50, seed), work


def time_solving(solve: Callable[[Drawn], object], seed: int) -> Values:
    drawn = draw_features("fashion_mnist", 50, seed)
    return {"seconds": round(seconds(lambda: solve(drawn)), 3)}


def solve_ours(drawn: Drawn) -> object:
    return solve_linear(drawn.train, drawn.train_target, drawn.folds)


def solve_theirs(drawn: Drawn) -> object:
    """The same values of C on features of norm 1, in the same folds, and a last fit of the best."""
    candidates = list_candidates(drawn.train)
    assert {candidate.scaling for candidate in candidates} == {"l2"}
    pairs = [(np.flatnonzero(drawn.folds != k), np.flatnonzero(drawn.folds == k)) for k in range(5)]
    cs = [candidate.c for candidate in candidates]
    model = LogisticRegressionCV(Cs=cs, cv=pairs, max_iter=1000, use_legacy_attributes=False)
    return make_pipeline(Normalizer(), model).fit(drawn.train, drawn.train_target)


def summarize_linear_time(results: Results) -> list[str]:
    lines = format_head("way", "seconds, median")
    for way in ("vfm", "scikit-learn"):
        found = results.find("linear_time", way, "fashion_mnist", 50).values()
        if found:
            lines.append(
                format_row(way, f"{statistics.median(row['seconds'] for row in found):.2f}")
            )
    return lines

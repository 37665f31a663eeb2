"""The tables of small_data.py: their cells, and how they are printed."""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sides import seconds
from sklearn.linear_model import LogisticRegressionCV
from small_baselines import SCIKIT, compute_features, fit_scikit, train_plain_loop
from small_results import Cell, Results, Values, compare
from small_sets import Sample, open_set
from small_ways import fit_recipe

from vfm.data.splits import draw_folds
from vfm.heads_on_features import SCALINGS, solve_linear
from vfm.heads_on_features.linear import STRENGTHS
from vfm.heads_on_features.logistic import compute_power

Work = Callable[[], Values]


class Table(NamedTuple):
    title: str
    list_cells: Callable[[], Iterator[tuple[Cell, Work]]]
    summarize: Callable[[Results], list[str]]


# Frozen features


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
    folds = draw_folds([str(path) for path, _ in drawn], [(t,) for t in target], 5, seed)
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


def list_linear() -> Iterator[tuple[Cell, Work]]:
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
    lines = _head("set", "a class", *ways, f"{OURS} less logistic (95 % interval), points")
    for name in LINEAR_SETS:
        for per_class in LINEAR_SIZES:
            found = [_accuracies(results, "linear", way, name, per_class) for way in ways]
            if any(found):
                difference = compare(found[0], found[ways.index("logistic")])
                lines.append(_row(name, per_class, *map(_mean, found), difference))
    return lines


# The time of solving


def list_linear_time() -> Iterator[tuple[Cell, Work]]:
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
    """The same 39 settings in 5 folds; its three last fits are of each scaling's best."""
    models = []
    for scaling in SCALINGS:
        features = drawn.train
        if scaling == "standardized":
            features = (features - features.mean(0)) / np.maximum(features.std(0), 1e-12)
        cs = [strength / compute_power(drawn.train, scaling) for strength in STRENGTHS]
        folds = [(drawn.folds != k, drawn.folds == k) for k in range(5)]
        pairs = [(np.flatnonzero(a), np.flatnonzero(b)) for a, b in folds]
        model = LogisticRegressionCV(Cs=cs, cv=pairs, max_iter=1000, use_legacy_attributes=False)
        models.append(model.fit(features, drawn.train_target))
    return models


def summarize_linear_time(results: Results) -> list[str]:
    lines = _head("way", "seconds, median")
    for way in ("vfm", "scikit-learn"):
        found = results.find("linear_time", way, "fashion_mnist", 50).values()
        if found:
            lines.append(_row(way, f"{statistics.median(row['seconds'] for row in found):.2f}"))
    return lines


# Fine-tuning

FINETUNE_SETS = ("textile", "emoji", "fashion_mnist", "trees")
FINETUNE_SIZES, FINETUNE_SEEDS = (20, 50), range(3)
PLAIN, FULL, LP_FT, SOLVED = "plain loop", "finetune.yaml", "lp_ft.yaml", "linear_probe.yaml"


def list_finetune() -> Iterator[tuple[Cell, Work]]:
    for seed in FINETUNE_SEEDS:
        for per_class in FINETUNE_SIZES:
            for name in FINETUNE_SETS:
                for way in (SOLVED, PLAIN, FULL, LP_FT):
                    work = functools.partial(judge_finetuning, way, name, per_class, seed)
                    yield Cell("finetune", way, name, per_class, seed), work


def judge_finetuning(way: str, name: str, per_class: int, seed: int) -> Values:
    of_set = open_set(name)
    return _train(way, of_set.draw(per_class, seed), of_set.test, of_set.labels, seed)


def _train(
    way: str, train: list[Sample], test: list[Sample], labels: list[str], seed: int, *more: str
) -> Values:
    if way == PLAIN:
        return {"accuracy": train_plain_loop(train, test, labels, seed)}
    with tempfile.TemporaryDirectory() as folder:
        if way == SOLVED:
            more = (*more, "--data.augment", "none")
        return fit_recipe(way, train, test, seed, Path(folder), *more)


def summarize_finetune(results: Results) -> list[str]:
    ways = (PLAIN, FULL, LP_FT, SOLVED)
    lines = _head(
        *("set", "a class", *ways),
        *(f"{FULL} less loop, points", f"{LP_FT} less loop", f"{LP_FT} less {SOLVED}"),
    )
    for name in FINETUNE_SETS:
        everything: list[dict[Any, float]] = [{} for _ in ways]
        for per_class in FINETUNE_SIZES:
            found = [_accuracies(results, "finetune", way, name, per_class) for way in ways]
            for all_sizes, of_size in zip(everything, found, strict=True):
                all_sizes.update({(per_class, seed): value for seed, value in of_size.items()})
            lines += _finetune_row(name, per_class, found)
        lines += _finetune_row(name, "both", everything)
    return lines


def _finetune_row(name: str, per_class: object, found: list[dict[Any, float]]) -> list[str]:
    plain, full, lp_ft, solved = found
    differences = (compare(full, plain), compare(lp_ft, plain), compare(lp_ft, solved))
    return [_row(name, per_class, *map(_mean, found), *differences)] if any(found) else []


# Printing


def _accuracies(results: Results, *key: Any) -> dict[Any, float]:
    return {seed: row["accuracy"] for seed, row in results.find(*key).items()}


def _mean(values: dict[Any, float]) -> str:
    return f"{statistics.mean(values.values()):.3f}" if values else ""


def _head(*names: str) -> list[str]:
    return [_row(*names), _row(*("---" for _ in names))]


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


TABLES = {
    "linear": Table("Solved linear heads: test accuracy", list_linear, summarize_linear),
    "linear_time": Table("500 x 1280, 10 classes", list_linear_time, summarize_linear_time),
    "finetune": Table("Fine-tuning at 128 pixels", list_finetune, summarize_finetune),
}


def measure_quick() -> None:
    """A tiny case of each table."""

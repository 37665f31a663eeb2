"""Table of fine-tuning by recipes as they are, beside a plain loop of PyTorch."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from small_baselines import train_plain_loop
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
from small_sets import Sample, open_set
from small_ways import fit_recipe

FINETUNE_SETS = ("textile", "emoji", "fashion_mnist", "trees")
FINETUNE_SIZES, FINETUNE_SEEDS = (20, 50), range(3)
PLAIN, FULL, LP_FT, SOLVED = "plain loop", "finetune.yaml", "lp_ft.yaml", "its solved head"
# One step that changes nothing, and a validation after it, leave what LP-FT starts from.
_STAND_STILL = (
    "--model.optim.lr",
    "1e-12",
    "--model.min_steps",
    "0",
    "--trainer.max_epochs",
    "1",
    "--trainer.limit_train_batches",
    "1",
)


def list_finetune(_: Results) -> Iterator[tuple[Cell, Work]]:
    for seed in FINETUNE_SEEDS:
        for per_class in FINETUNE_SIZES:
            for name in FINETUNE_SETS:
                for way in (SOLVED, PLAIN, FULL, LP_FT):
                    work = functools.partial(judge_finetuning, way, name, per_class, seed)
                    yield Cell("finetune", way, name, per_class, seed), work


def judge_finetuning(way: str, name: str, per_class: int, seed: int) -> Values:
    of_set = open_set(name)
    return train_way(way, of_set.draw(per_class, seed), of_set.test, of_set.labels, seed)


def train_way(
    way: str, train: list[Sample], test: list[Sample], labels: list[str], seed: int, *more: str
) -> Values:
    if way == PLAIN:
        return {"accuracy": train_plain_loop(train, test, labels, seed)}
    with tempfile.TemporaryDirectory() as folder:
        if way == SOLVED:
            way, more = LP_FT, (*more, *_STAND_STILL)
        return fit_recipe(way, train, test, seed, Path(folder), *more)


def summarize_finetune(results: Results) -> list[str]:
    ways = (PLAIN, FULL, LP_FT, SOLVED)
    lines = format_head(
        *("set", "a class", *ways),
        *(
            f"{FULL} less loop, points",
            f"{LP_FT} less loop, points",
            f"{LP_FT} less {SOLVED}, points",
        ),
    )
    for name in FINETUNE_SETS:
        everything: list[dict[Any, float]] = [{} for _ in ways]
        for per_class in FINETUNE_SIZES:
            found = [find_accuracies(results, "finetune", way, name, per_class) for way in ways]
            for all_sizes, of_size in zip(everything, found, strict=True):
                all_sizes.update({(per_class, seed): value for seed, value in of_size.items()})
            lines += _finetune_row(name, per_class, found)
        lines += _finetune_row(name, "both", everything)
    return lines


def _finetune_row(name: str, per_class: object, found: list[dict[Any, float]]) -> list[str]:
    plain, full, lp_ft, solved = found
    differences = (compare(full, plain), compare(lp_ft, plain), compare(lp_ft, solved))
    return (
        [format_row(name, per_class, *map(format_mean, found), *differences)] if any(found) else []
    )

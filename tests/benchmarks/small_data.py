"""Few images: vfm's solved linear head, fine-tuning recipes and `tune` beside scikit-learn and a plain loop.

    python tests/fetch_assets.py
    python tests/benchmarks/small_data.py [--table NAME ...] [--only TEXT ...] [--results FILE]
    python tests/benchmarks/small_data.py --summary
    python tests/benchmarks/small_data.py --quick

Needs Debian's packages dataset-fashion-mnist and fonts-noto-color-emoji. Each side learns from the same images, drawn
by seed, and is judged on the same others. A cell is written to the file of results as it ends; what is written is not
measured again. One core, but for `tune`. Tables:

- linear: the solved linear head and scikit-learn's heads, on the same frozen features of EfficientNet-Lite0.
- linear_time: their seconds for the same number of fits, 500 images of 10 classes.
- finetune: recipes as they are and a plain loop of PyTorch, at 128 pixels.
- tune: `vfm tune`, 10 minutes on 2 cores, beside scikit-learn's heads. Leave the cores to it.
- tune_others: what tune tried and did not choose, fitted on all images as well.
- coverage: how often tune's interval of the frozen heads covers their accuracy on all images that were not drawn.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import threadpoolctl
import torch
from sides import in_turns, report, seconds
from small_baselines import SCIKIT
from small_finetune import FULL, PLAIN, list_finetune, summarize_finetune, train_way
from small_linear import (
    OURS,
    draw_features,
    judge_head,
    list_linear,
    list_linear_time,
    solve_ours,
    solve_theirs,
    summarize_linear,
    summarize_linear_time,
)
from small_results import Cell, Results, Work
from small_sets import CACHE, open_set
from small_tune import list_coverage, list_others, list_tune, summarize_coverage, summarize_tune
from small_ways import tune_images


class Table(NamedTuple):
    title: str
    list_cells: Callable[[Results], Iterator[tuple[Cell, Work]]]
    summarize: Callable[[Results], list[str]]


TABLES = {
    "linear": Table("Solved linear heads: test accuracy", list_linear, summarize_linear),
    "linear_time": Table("500 x 1280, 10 classes", list_linear_time, summarize_linear_time),
    "finetune": Table(
        "Fine-tuning at 128 pixels: test accuracy", list_finetune, summarize_finetune
    ),
    "tune": Table("vfm tune: test accuracy", list_tune, summarize_tune),
    "tune_others": Table("vfm tune: test accuracy", list_others, summarize_tune),
    "coverage": Table("Printed intervals of the frozen heads", list_coverage, summarize_coverage),
}


def measure_quick() -> None:
    """Print a tiny case of each table, of 20 faces and other pictures and 20 to judge on."""
    faces = open_set("lfw")
    train, test = faces.draw(10, seed=0), faces.test[::5]
    drawn = draw_features("lfw", 10, seed=0)
    theirs = in_turns(
        lambda: seconds(lambda: solve_ours(drawn)), lambda: seconds(lambda: solve_theirs(drawn)), 1
    )
    report("linear_time, lfw/10", *theirs[:2], "s", 1 / theirs[2])
    heads = {way: judge_head(way, "lfw", 10, 0)["accuracy"] for way in (OURS, *SCIKIT)}
    _report_accuracy("linear, lfw/10", heads[OURS], heads["logistic"])
    plain, full = (
        train_way(way, train, test, faces.labels, 0, "--trainer.max_steps", "20")["accuracy"]
        for way in (PLAIN, FULL)
    )
    _report_accuracy("finetune, lfw/10, 20 steps of ours", full, plain)
    with tempfile.TemporaryDirectory() as folder:
        tuned = tune_images(train, test, 0, Path(folder), 0.2)["accuracy"]
    _report_accuracy("tune, lfw/10, 0.2 minutes", tuned, max(heads[way] for way in SCIKIT))


def _report_accuracy(name: str, ours: float, theirs: float) -> None:
    report(name, ours, theirs, "accuracy", ours / theirs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--table", action="append", choices=list(TABLES), help="default: all")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        help="cells that hold this text, such as textile/50",
    )
    parser.add_argument("--results", type=Path, default=CACHE / "small_sets" / "results.jsonl")
    parser.add_argument(
        "--summary", action="store_true", help="print the tables of what was measured"
    )
    parser.add_argument("--quick", action="store_true", help="tiny cases, nothing kept")
    options = parser.parse_args()
    if options.quick:
        measure_quick()
        return
    results = Results(options.results)
    for name in options.table or TABLES:
        table = TABLES[name]
        if not options.summary:
            results.measure_all(table.list_cells(results), options.only)
        print(f"\n{table.title}\n", *table.summarize(results), sep="\n", flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    torch.set_num_threads(1)
    with threadpoolctl.threadpool_limits(1):
        main()

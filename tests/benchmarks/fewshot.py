"""A few examples of each class: the heads of `vfm classify --examples` beside scikit-learn's on the same features.

    python tests/fetch_assets.py
    python tests/benchmarks/fewshot.py [--only TEXT ...] [--results FILE] [--plot FILE]
    python tests/benchmarks/fewshot.py --summary
    python tests/benchmarks/fewshot.py --quick

Needs Debian's packages dataset-fashion-mnist and fonts-noto-color-emoji. Frozen EfficientNet-Lite0 at 224 pixels, whose
features are computed once for each set. Of 1, 2, 4, 8 and 16 examples a class, five draws; all sides learn from the
same examples, and are judged on the same test images. A cell is written to the file of results as it ends; what is
written is not measured again. One core.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path

import threadpoolctl
from sides import report
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from small_baselines import SCIKIT, fit_scikit
from small_linear import Drawn, draw_features
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
from small_sets import CACHE

from vfm.incontext.few_shot import fit_few_shot
from vfm.incontext.support_curve import estimate_mean
from vfm.report import plot_learning_curves

SETS = ("fashion_mnist", "textile", "emoji")
SHOTS, SEEDS = (1, 2, 4, 8, 16), range(5)
OURS = "vfm classify"
MOST_BELOW = 0.5
"""Points that our mean may be below the best of scikit-learn's, of the most examples."""


def list_cells() -> Iterator[tuple[Cell, Work]]:
    for name in SETS:
        for shots in SHOTS:
            for seed in SEEDS:
                for way in (OURS, *list_scikit(shots)):
                    work = functools.partial(judge_way, way, name, shots, seed)
                    yield Cell("fewshot", way, name, shots, seed), work


def list_scikit(shots: int) -> tuple[str, ...]:
    """The heads that can be fitted: LDA needs two examples of a class, 5-NN is none of fewer than five."""
    least = {"1-NN": 1, "5-NN": 5, "logistic": 1, "LDA": 2}
    return tuple(way for way in SCIKIT if shots >= least[way])


def judge_way(way: str, name: str, shots: int, seed: int) -> Values:
    drawn = draw_features(name, shots, seed)
    return judge_ours(drawn, seed) if way == OURS else judge_theirs(drawn, way, shots, seed)


def judge_ours(drawn: Drawn, seed: int) -> Values:
    classifier = fit_few_shot(drawn.train, [f"{k:03d}" for k in drawn.train_target], seed=seed)
    answers = classifier.score(drawn.test).argmax(1)
    said = classifier.accuracy
    return {
        "accuracy": float((answers == drawn.test_target).mean()),
        "chosen": classifier.name,
        "printed": None if said is None else said.to_dict(),
    }


def judge_theirs(drawn: Drawn, way: str, shots: int, seed: int) -> Values:
    if way == "logistic" and shots == 1:  # nothing to choose C by
        model = make_pipeline(Normalizer(), LogisticRegression(max_iter=1000))
        model.fit(drawn.train, drawn.train_target)
    else:
        model = fit_scikit(way, drawn.train, drawn.train_target, seed)
    return {"accuracy": float((model.predict(drawn.test) == drawn.test_target).mean())}


def summarize(results: Results) -> list[str]:
    lines = format_head(
        *("set", "a class", OURS, "95 % interval of the mean", *SCIKIT),
        *(f"{OURS} less the best of these, points", "covered"),
    )
    for name in SETS:
        for shots in SHOTS:
            of_ways = [
                find_accuracies(results, "fewshot", way, name, shots) for way in (OURS, *SCIKIT)
            ]
            if not of_ways[0]:
                continue
            mean = estimate_mean(list(of_ways[0].values()))
            # The single head that is best in the mean of the draws, not in each.
            best = max(of_ways[1:], key=lambda values: statistics.mean(values.values() or [0]))
            printed = [
                (row["printed"], row["accuracy"])
                for row in results.find("fewshot", OURS, name, shots).values()
                if row["printed"]
            ]
            covered = sum(said["low"] <= accuracy <= said["high"] for said, accuracy in printed)
            ours, *theirs = map(format_mean, of_ways)
            interval = f"{mean.low:.3f} to {mean.high:.3f}"
            last = f"{covered} of {len(printed)}" if printed else ""
            lines.append(
                format_row(name, shots, ours, interval, *theirs, compare(of_ways[0], best), last)
            )
    return lines


def find_failures(results: Results) -> list[str]:
    """The sets of which our mean is further below the best of scikit-learn's than it may be, of the most examples."""
    failures = []
    for name in SETS:
        of_ways = [
            find_accuracies(results, "fewshot", way, name, SHOTS[-1]) for way in (OURS, *SCIKIT)
        ]
        if not all(of_ways):
            continue
        ours, *theirs = (statistics.mean(values.values()) for values in of_ways)
        if 100 * (max(theirs) - ours) > MOST_BELOW:
            failures.append(f"{name}: {ours:.3f}, and the best of scikit-learn's {max(theirs):.3f}")
    return failures


def draw_plot(results: Results) -> bytes:
    """A panel for each set; scikit-learn's line is the head that is best in the mean of the draws, at each size."""
    panels: dict[str, dict[str, list[tuple[float, float, float, float]]]] = {}
    for name in SETS:
        panels[name] = {OURS: [], "the best of scikit-learn": []}
        for shots in SHOTS:
            means = [
                (float(shots), mean.value, mean.low, mean.high)
                for way in (OURS, *SCIKIT)
                if (values := find_accuracies(results, "fewshot", way, name, shots))
                for mean in [estimate_mean(list(values.values()))]
            ]
            if means:
                panels[name][OURS].append(means[0])
                best = max(means[1:], key=lambda point: point[1])
                panels[name]["the best of scikit-learn"].append(best)
    return plot_learning_curves(panels, xlabel="examples a class", log_x=True)


def measure_quick() -> None:
    """Print two examples a class of each set, one draw, its features not computed anew."""
    for name in SETS:
        drawn = draw_features(name, 2, seed=0)
        ours = judge_ours(drawn, 0)["accuracy"]
        theirs = max(judge_theirs(drawn, way, 2, 0)["accuracy"] for way in list_scikit(2))
        report(f"fewshot, {name}/2", ours, theirs, "accuracy", ours / theirs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--only", action="append", default=[], help="such as textile/16")
    parser.add_argument("--results", type=Path, default=CACHE / "small_sets" / "fewshot.jsonl")
    parser.add_argument("--plot", type=Path, help="PNG file to write the plot to")
    parser.add_argument("--summary", action="store_true", help="print what was measured")
    parser.add_argument("--quick", action="store_true", help="tiny cases, nothing kept")
    options = parser.parse_args()
    if options.quick:
        measure_quick()
        return
    results = Results(options.results)
    if not options.summary:
        results.measure_all(list_cells(), options.only)
    print("", *summarize(results), *find_failures(results), sep="\n")
    if options.plot:
        options.plot.write_bytes(draw_plot(results))


if __name__ == "__main__":
    warnings.simplefilter("ignore", FutureWarning)
    with threadpoolctl.threadpool_limits(1):
        main()

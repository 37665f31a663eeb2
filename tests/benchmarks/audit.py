"""The audit's promises, in simulation: planted bias, false alarms, planted and invented slices, power.

    python tests/benchmarks/audit.py [--quick] [--only NAME ...]

Features and answers are drawn, so that the truth is known; they go through the same comparison, search and statements
as `vfm audit`. Prints a JSON line for each promise. --quick takes few seeds: it shows that the script runs.

- bias: a linear head learns from features of which 2 % are of another group, rotated. The gap of that group is found,
  with the right sign, and its interval excludes zero.
- alarms: groups that mean nothing (three columns and their intersections, images alone and in clusters). An audit that
  calls any gap real is a false alarm.
- slice: errors are more frequent in one cluster of embeddings that no column names. It is confirmed where a slice that
  is shown overlaps it by more than half.
- invented: the same without such a cluster: any slice that is shown is invented.
- power: a group has exactly the smallest gap that the audit says it could have seen, or half of it.
- mitigation: Fashion-MNIST (Debian's dataset-fashion-mnist), of which 2 % of the training and 20 % of the test images
  are turned by a quarter. A linear head on frozen features, random convolutions, is solved plainly and as by
  `--data.balance group` at two powers: the gap of the group, and the cost to upright images.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from vfm.audit.comparison import ClusterSampler, RatioMetric, find_smallest_gap
from vfm.audit.groups import GroupReport, compare_groups
from vfm.audit.kinds import Outcomes
from vfm.audit.slices import find_slices
from vfm.data.balance import compute_balance_weights
from vfm.data.idx import read_idx_files
from vfm.data.records import Record, read_source
from vfm.heads_on_features.logistic import fit_logistic_regression

Result = dict[str, Any]
FASHION = Path("/usr/share/datasets/fashion-mnist")


def judge(right: np.ndarray) -> Outcomes:
    metric = RatioMetric("accuracy", right.astype(float), np.ones(len(right)))
    return Outcomes([metric], [metric], [""] * len(right), None)


def compare(
    right: np.ndarray, columns: dict[str, np.ndarray], seed: int, keys: np.ndarray | None = None
) -> GroupReport:
    named = {name: values.astype(str).tolist() for name, values in columns.items()}
    listed = None if keys is None else keys.astype(str).tolist()
    sampler = ClusterSampler.from_keys(listed, len(right), seed)
    sampler.num_resamples = 300  # intervals are not what is counted here, but for `bias`
    return compare_groups(judge(right), named, sampler, states_power=False)


def run_bias(seeds: int) -> Iterator[Result]:
    found = excludes_zero = 0
    gaps = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        turn = np.linalg.qr(rng.standard_normal((16, 16)))[0]
        middles = rng.standard_normal((5, 16))

        def draw(
            number: int,
            fraction: float,
            rng: np.random.Generator = rng,
            middles: np.ndarray = middles,
            turn: np.ndarray = turn,
        ) -> tuple[np.ndarray, ...]:
            target = rng.integers(0, 5, number)
            is_rare = rng.random(number) < fraction
            rows = middles[target] + rng.standard_normal((number, 16)) * 0.9
            return np.where(is_rare[:, None], rows @ turn, rows), target, is_rare

        rows, target, _ = draw(3000, 0.02)
        head = LogisticRegression(max_iter=200).fit(rows, target)
        rows, target, is_rare = draw(1500, 0.2)
        report = compare(
            head.predict(rows) == target,
            {"group": is_rare, "other": rng.integers(0, 3, 1500)},
            seed,
        )
        (rare,) = (c for c in report.comparisons if c.group == "group=True")
        gaps.append(rare.result.gap.value)
        found += rare.is_real and gaps[-1] < 0
        excludes_zero += rare.result.gap.high < 0
    yield {
        "simulation": "bias",
        "seeds": seeds,
        "found_with_right_sign": found / seeds,
        "interval_excludes_zero": excludes_zero / seeds,
        "mean_gap": float(np.mean(gaps)),
    }


def run_alarms(seeds: int) -> Iterator[Result]:
    for name, per_cluster in (("alone", 1), ("clusters of 4", 4)):
        alarms = num_gaps = 0
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            keys = np.arange(2000) // per_cluster
            number = keys.max() + 1
            ease = rng.beta(4.5, 0.5, number)[keys] if per_cluster > 1 else np.full(2000, 0.9)
            right = rng.random(2000) < ease
            columns = {
                "site": rng.choice(5, number, p=[0.5, 0.3, 0.1, 0.06, 0.04])[keys],
                "age": rng.integers(0, 3, number)[keys],
                "sex": rng.integers(0, 2, number)[keys],
            }
            report = compare(right, columns, seed, keys if per_cluster > 1 else None)
            alarms += bool(report.found)
            num_gaps += len(report.found)
        yield {
            "simulation": "alarms",
            "images": name,
            "seeds": seeds,
            "comparisons": len(report.comparisons),
            "audits_with_an_alarm": alarms / seeds,
            "alarms": num_gaps,
        }


def run_slices(seeds: int, is_planted: bool) -> Iterator[Result]:
    shown = confirmed = 0
    for seed in range(seeds):
        rng = np.random.default_rng(1000 + seed)
        middles = rng.standard_normal((12, 32))
        cluster = rng.integers(0, 12, 2000)
        vectors = (middles[cluster] + rng.standard_normal((2000, 32)) * 0.5).astype(np.float32)
        planted = cluster == 3
        error = np.where(planted & is_planted, 0.3, 0.1)
        right = rng.random(2000) >= error
        traits = {name: rng.standard_normal(2000) for name in ("brightness", "sharpness", "size")}
        metric = RatioMetric("accuracy", right.astype(float), np.ones(2000))
        sampler = ClusterSampler.from_keys(None, 2000, seed)
        sampler.num_resamples = 100
        members = [
            each.candidate.member
            for each in find_slices(metric, traits, vectors, sampler).confirmed
        ]
        shown += bool(members)
        confirmed += any((m & planted).sum() / (m | planted).sum() > 0.5 for m in members)
    result: Result = {"simulation": "slice" if is_planted else "invented", "seeds": seeds}
    if is_planted:
        yield result | {"errors": "30 % in the slice, 10 % else", "confirmed": confirmed / seeds}
    else:
        yield result | {"audits_with_an_invented_slice": shown / seeds}


def run_power(seeds: int) -> Iterator[Result]:
    for inside, rate in ((62, 0.1), (200, 0.1), (400, 0.05)):
        columns = {
            "site": np.array([1] * inside + [0] * 1000 + [2] * 1000),
            "age": np.arange(inside + 2000) % 3,
        }
        comparisons = len(compare(np.arange(inside + 2000) % 10 > 0, columns, 0).comparisons)
        gap = find_smallest_gap(inside, 2000, rate, num_comparisons=comparisons)
        assert gap is not None
        counts = {1.0: 0, 0.5: 0}
        for factor in counts:
            for seed in range(seeds):
                rng = np.random.default_rng(seed)
                error = np.where(columns["site"] == 1, rate + factor * gap, rate)
                right = rng.random(inside + 2000) >= error
                report = compare(right, columns, seed)
                counts[factor] += any(c.group == "site=1" for c in report.found)
        yield {
            "simulation": "power",
            "images_of_group": inside,
            "error_rate": rate,
            "comparisons": comparisons,
            "smallest_gap": gap,
            "seeds": seeds,
            "found_at_that_gap": counts[1.0] / seeds,
            "found_at_half_of_it": counts[0.5] / seeds,
        }


def compute_random_features(images: np.ndarray) -> np.ndarray:
    """Two layers of fixed random convolutions, [N, 1152]: a frozen backbone that takes no weights file."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(64, 1, 5, 5, generator=generator)
    first -= first.mean((1, 2, 3), keepdim=True)
    second = torch.randn(128, 64, 3, 3, generator=generator) / 24
    rows = []
    for start in range(0, len(images), 500):
        part = torch.from_numpy(images[start : start + 500].copy()).float()[:, None] / 255
        part = torch.nn.functional.conv2d(part, first, padding=2).relu()
        part = torch.nn.functional.avg_pool2d(part, 2)
        part = torch.nn.functional.conv2d(part, second, padding=1).relu()
        rows.append(torch.nn.functional.adaptive_avg_pool2d(part, 3).flatten(1).numpy())
    return np.concatenate(rows)


def run_mitigation(seeds: int) -> Iterator[Result]:
    num_train, num_test = (5000, 4000) if seeds else (800, 500)
    splits = read_idx_files(FASHION).splits
    sets = []
    for records in (splits["train"][:num_train], splits["test"][:num_test]):
        images = np.stack(
            [np.asarray(read_source(record)).reshape(28, 28, -1)[..., 0] for record in records]
        )
        upright, turned = (
            compute_random_features(each) for each in (images, np.rot90(images, axes=(1, 2)))
        )
        sets.append((upright, turned, np.array([record.label for record in records])))
    powers = {"plain": None, "power 0.5": 0.5, "power 1": 1.0}
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in powers}
    for seed in range(max(1, seeds)):
        rng = np.random.default_rng(seed)
        parts = []
        for (upright, turned, target), fraction in zip(sets, (0.02, 0.2), strict=True):
            is_turned = rng.random(len(target)) < fraction
            parts.append((np.where(is_turned[:, None], turned, upright), target, is_turned))
        (features, target, is_turned), (others, truth, is_rare) = parts
        records = [
            Record("", int(label), str(i), (str(group),))
            for i, (label, group) in enumerate(zip(target, is_turned, strict=True))
        ]
        for name, power in powers.items():
            each = None
            if power is not None:
                each = compute_balance_weights(
                    records, "group", ["turned"], multilabel=False, power=power
                )
            head = fit_logistic_regression(
                features, target, c=5e-4, scaling="standardized", sample_weights=each
            )
            right = head.compute_logits(others).argmax(1) == truth
            rows[name].append((float(right[~is_rare].mean()), float(right[is_rare].mean())))
    for name, values in rows.items():
        upright, turned = np.mean(values, axis=0).tolist()
        yield {
            "simulation": "mitigation",
            "weights": name,
            "training_images": num_train,
            "accuracy_upright": round(upright, 4),
            "accuracy_turned": round(turned, 4),
            "gap": round(upright - turned, 4),
        }


SIMULATIONS: dict[str, tuple[int, int, Callable[[int], Iterator[Result]]]] = {
    "bias": (100, 3, run_bias),
    "alarms": (200, 3, run_alarms),
    "slice": (100, 3, lambda seeds: run_slices(seeds, True)),
    "invented": (100, 3, lambda seeds: run_slices(seeds, False)),
    "power": (200, 3, run_power),
    "mitigation": (1, 0, run_mitigation),
}
"""For each simulation its seeds, those of --quick (0: one, of fewer images), and what runs it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=list(SIMULATIONS), default=list(SIMULATIONS))
    arguments = parser.parse_args()
    for name in arguments.only:
        seeds, few, run = SIMULATIONS[name]
        start = time.perf_counter()
        for result in run(few if arguments.quick else seeds):
            seconds = round(time.perf_counter() - start, 1)
            print(json.dumps(result | {"seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()

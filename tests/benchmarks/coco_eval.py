"""Evaluating 5,000 images with 100 boxes each: all figures of `results.json` against torchmetrics' average precision.

    python tests/benchmarks/coco_eval.py [--quick]

80 classes, about 7 true boxes an image; the found ones are the true ones, moved, and others. torchmetrics computes on
faster-coco-eval too, and the twelve figures of COCO alone; vfm adds curves, thresholds, confusions and an interval.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from sides import report
from torchmetrics.detection import MeanAveragePrecision

from vfm.metrics.detection import DetectedBoxes, TrueBoxes
from vfm.tasks.detection.results import compute_box_results

CLASSES, EACH, SIDE = 80, 100, 640


def make(number: int) -> tuple[list[TrueBoxes], list[DetectedBoxes]]:
    random = np.random.default_rng(0)
    truth, found = [], []
    for _ in range(number):
        count = int(random.integers(1, 14))
        start = random.uniform(0, SIDE - 100, (EACH, 2))
        boxes = np.concatenate([start, start + random.uniform(8, 100, (EACH, 2))], 1).astype(
            np.float32
        )
        labels = random.integers(CLASSES, size=EACH)
        truth.append(TrueBoxes(boxes[:count], labels[:count], np.zeros(count, bool)))
        scores = np.sort(random.random(EACH).astype(np.float32))[::-1].copy()
        moved = boxes + random.normal(0, 4, boxes.shape).astype(np.float32)
        found.append(DetectedBoxes(moved, labels, scores))
    return truth, found


def by_torchmetrics(truth: list[TrueBoxes], found: list[DetectedBoxes]) -> float:
    metric = MeanAveragePrecision(backend="faster_coco_eval")
    tensors = [
        {
            "boxes": torch.from_numpy(f.corners),
            "labels": torch.from_numpy(f.labels),
            "scores": torch.from_numpy(f.scores),
        }
        for f in found
    ]
    wanted = [
        {"boxes": torch.from_numpy(t.corners), "labels": torch.from_numpy(t.labels)} for t in truth
    ]
    metric.update(tensors, wanted)
    return float(metric.compute()["map"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="500 images")
    number = 500 if parser.parse_args().quick else 5000
    truth, found = make(number)
    start = time.perf_counter()
    results = compute_box_results(truth, found, [str(k) for k in range(CLASSES)])
    ours = time.perf_counter() - start
    start = time.perf_counter()
    other = by_torchmetrics(truth, found)
    theirs = time.perf_counter() - start
    # torchmetrics turns corners into sides in 32 bits.
    assert abs(results["AP"] - other) < 1e-4, (results["AP"], other)
    report(f"evaluation, {number} images of {EACH} boxes", ours, theirs, "s", theirs / ours)


if __name__ == "__main__":
    main()

"""Which images to label: `vfm select` against images at random, k-means++ and k-center.

    python tests/benchmarks/selection.py [--quick]

Features of EfficientNet-Lite0 at 224 pixels, logistic regression (C of 10) on 50 chosen labels; accuracy on the test
images, mean and standard deviation of 4 draws. Lines with 50 labels before: these are at random, each way is told of
them, and the head learns from all 100.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from small_baselines import compute_features
from small_sets import open_set

from vfm.search.clusters import select_rows

SETS = ("fashion_mnist", "emoji", "textile")
COUNT = 50

Vectors = NDArray[np.float32]
Positions = NDArray[np.int64]


def choose_typical(vectors: Vectors, labeled: Positions, seed: int) -> Positions:
    is_labeled = np.isin(np.arange(len(vectors)), labeled)
    return select_rows(vectors, COUNT, is_labeled, seed=seed)[0]


def choose_at_random(vectors: Vectors, labeled: Positions, seed: int) -> Positions:
    free = np.setdiff1d(np.arange(len(vectors)), labeled)
    return np.random.default_rng(seed).permutation(free)[:COUNT]


def choose_far(
    vectors: Vectors, labeled: Positions, seed: int, draw: Callable[[Vectors], int]
) -> Positions:
    """One after another, by the distance to what is chosen or labeled already."""
    chosen = list(labeled) or [int(np.random.default_rng(seed).integers(len(vectors)))]
    squared = np.full(len(vectors), 4, np.float32)
    for position in chosen:
        squared = np.minimum(squared, 2 - 2 * vectors @ vectors[position])
    while len(chosen) < len(labeled) + COUNT:
        chosen.append(draw(np.maximum(squared, 0)))
        squared = np.minimum(squared, 2 - 2 * vectors @ vectors[chosen[-1]])
    return np.array(chosen[len(labeled) :])


def choose_center(vectors: Vectors, labeled: Positions, seed: int) -> Positions:
    return choose_far(vectors, labeled, seed, lambda squared: int(squared.argmax()))


def choose_plusplus(vectors: Vectors, labeled: Positions, seed: int) -> Positions:
    random = np.random.default_rng(seed)
    return choose_far(
        vectors,
        labeled,
        seed,
        lambda squared: int(random.choice(len(squared), p=squared / squared.sum(dtype=float))),
    )


WAYS = {
    "vfm select": choose_typical,
    "random": choose_at_random,
    "k-means++": choose_plusplus,
    "k-center": choose_center,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one set, one draw")
    quick = parser.parse_args().quick
    for name in SETS[1:2] if quick else SETS:
        of_set = open_set(name)
        features = compute_features(of_set)
        parts = []
        for samples in (of_set.pool, of_set.test):
            vectors = np.stack([features[path] for path, _ in samples]).astype(np.float32)
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            parts.append((vectors, np.array([label for _, label in samples])))
        (pool, target), (test, truth) = parts
        for before in (0, COUNT):
            for way, choose in WAYS.items():
                scores = []
                for seed in range(1 if quick else 4):
                    labeled = np.random.default_rng(100 + seed).permutation(len(pool))[:before]
                    chosen = np.concatenate([labeled, choose(pool, labeled, seed)])
                    head = LogisticRegression(C=10, max_iter=300).fit(pool[chosen], target[chosen])
                    scores.append(head.score(test, truth))
                row = {"set": name, "labeled before": before, "way": way}
                row |= {
                    "accuracy": round(float(np.mean(scores)), 4),
                    "deviation": round(float(np.std(scores)), 4),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

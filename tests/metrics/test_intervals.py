"""Bootstrap intervals against theory, their cost at 1000 classes, and their errors."""

import time

import numpy as np
import pytest

from vfm.metrics import (
    Interval,
    compute_accuracy,
    compute_confusion_matrix,
    compute_interval,
    compute_macro_f1,
)


def test_interval_prints_and_converts() -> None:
    interval = Interval(0.9731, 0.9612, 0.9838)
    assert str(interval) == "0.973 [0.961, 0.984]"
    assert interval.to_dict() == {"value": 0.9731, "low": 0.9612, "high": 0.9838}


def test_accuracy_interval_is_close_to_the_normal_approximation() -> None:
    matrix = [[360, 40], [60, 540]]
    interval = compute_interval(compute_accuracy, matrix, num_resamples=20_000)
    half_width = 1.96 * np.sqrt(0.9 * 0.1 / 1000)
    assert interval.value == pytest.approx(0.9, abs=1e-12)
    assert interval.low == pytest.approx(0.9 - half_width, abs=0.002)
    assert interval.high == pytest.approx(0.9 + half_width, abs=0.002)


def test_intervals_cover_the_true_accuracy_about_as_often_as_promised() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for seed in range(300):
        right = generator.binomial(200, 0.8)
        interval = compute_interval(compute_accuracy, [[right, 200 - right], [0, 0]], seed=seed)
        hits += interval.low <= 0.8 <= interval.high
    # 0.95 give or take three standard errors of 300 trials.
    assert 0.91 <= hits / 300 <= 0.99


def test_resampling_counts_equals_resampling_samples() -> None:
    generator = np.random.default_rng(1)
    target = generator.integers(0, 4, 150)
    predicted = np.where(generator.random(150) < 0.7, target, generator.integers(0, 4, 150))
    scores = []
    for _ in range(4000):
        drawn = generator.integers(0, 150, 150)
        scores.append(
            compute_macro_f1(compute_confusion_matrix(target[drawn], predicted[drawn], 4))
        )
    interval = compute_interval(
        compute_macro_f1, compute_confusion_matrix(target, predicted, 4), num_resamples=4000
    )
    low, high = np.quantile(scores, [0.025, 0.975])
    assert interval.low == pytest.approx(low, abs=0.01)
    assert interval.high == pytest.approx(high, abs=0.01)


def test_samples_are_resampled_when_given_as_ones() -> None:
    values = np.random.default_rng(2).normal(size=400)
    interval = compute_interval(lambda counts: counts @ values / 400, np.ones(400, dtype=int))
    assert interval.value == pytest.approx(values.mean(), abs=1e-12)
    width = 2 * 1.96 * values.std() / 20
    assert interval.high - interval.low == pytest.approx(width, rel=0.1)


def test_level_and_seed_matter_and_chunks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = [[50, 10], [5, 35]]
    whole = compute_interval(compute_accuracy, matrix)
    assert compute_interval(compute_accuracy, matrix, seed=1) != whole
    narrow = compute_interval(compute_accuracy, matrix, level=0.5)
    assert whole.low < narrow.low < narrow.high < whole.high
    monkeypatch.setattr("vfm.metrics.intervals._CHUNK_BYTES", 7 * 4 * 8)
    assert compute_interval(compute_accuracy, matrix) == whole


def test_a_perfect_score_has_no_width() -> None:
    assert compute_interval(compute_macro_f1, [[5, 0], [0, 7]]) == Interval(1.0, 1.0, 1.0)


def test_thousand_classes_take_seconds() -> None:
    generator = np.random.default_rng(3)
    target = generator.integers(0, 1000, 10_000)
    predicted = np.where(generator.random(10_000) < 0.8, target, 0)
    matrix = compute_confusion_matrix(target, predicted, 1000)
    start = time.process_time()
    interval = compute_interval(compute_macro_f1, matrix)
    assert time.process_time() - start < 10
    assert 0 < interval.high - interval.low < 0.1


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ([[0, 0], [0, 0]], {}, "at least one must be above 0"),
        ([[1, -1], [0, 1]], {}, "at least 0"),
        ([[0.5, 0.5]], {}, "dtype float64, but must be integers"),
        ([[1, 0], [0, 1]], {"level": 95}, "level is 95.*pass level=0.95"),
        ([[1, 0], [0, 1]], {"num_resamples": 0}, "num_resamples is 0"),
    ],
)
def test_bootstrap_refuses(counts: list[list[int]], options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_interval(compute_accuracy, counts, **options)


def test_bootstrap_refuses_a_statistic_that_reduces_the_batch() -> None:
    with pytest.raises(ValueError, match="one score for each resample"):
        compute_interval(lambda counts: counts.mean(), [[1, 0], [0, 1]])

"""Honest choice and paired comparison: bias taken out, intervals that cover, ties, keys."""

from __future__ import annotations

import numpy as np
import pytest

from vfm.metrics import Interval
from vfm.metrics.intervals import compute_wilson
from vfm.training.selection import (
    Gain,
    build_criterion,
    build_statistic,
    choose_honestly,
    compare_pairs,
    draw_counts,
)


def make_statistics(right):
    return [lambda counts, row=row: counts @ row / counts.sum(axis=1) for row in right]


def test_the_luck_of_a_choice_is_taken_out():
    # Of 60 heads that all guess, the best looks good on 80 images; it is right in half of the cases.
    values, lucky, covered = [], [], 0
    for seed in range(20):
        right = np.random.default_rng(seed).integers(0, 2, (60, 80)).astype(float)
        choice = choose_honestly(make_statistics(right), 80, num_resamples=200)
        lucky.append(right[choice.best].mean())
        values.append(choice.interval.value)
        covered += choice.interval.low <= 0.5 <= choice.interval.high
    assert np.mean(lucky) > 0.6
    assert abs(np.mean(values) - 0.5) < 0.03
    assert covered >= 19


def test_the_better_head_is_chosen_and_covered():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(50):
        right = (generator.random((2, 100)) < [[0.6], [0.8]]).astype(float)
        choice = choose_honestly(make_statistics(right), 100, num_resamples=200)
        assert choice.best == 1
        covered += choice.interval.low <= 0.8 <= choice.interval.high
    assert covered >= 45


def test_the_first_of_equals_is_chosen_or_what_the_criterion_says():
    right = np.ones((3, 10))
    assert choose_honestly(make_statistics(right), 10).best == 0
    criteria = make_statistics(np.arange(3)[:, None] * right)
    assert choose_honestly(make_statistics(right), 10, criteria=criteria).best == 2


def test_of_equally_accurate_heads_the_surer_one_has_the_higher_criterion():
    target, once = np.array([0, 1]), np.ones((1, 2), np.int64)
    sure = np.array([[0.9, 0.1], [0.1, 0.9]], np.float32)
    unsure = np.array([[0.6, 0.4], [0.4, 0.6]], np.float32)
    values = [build_criterion([scores], target)(once)[0] for scores in (sure, unsure)]
    assert values == pytest.approx([1 + 0.5 * np.log(0.9), 1 + 0.5 * np.log(0.6)])
    # Of several labels each yes and no counts.
    several = build_criterion([sure], np.eye(2, dtype=np.int64))(once)[0]
    assert several == pytest.approx(values[0])


def test_nothing_but_right_answers_prove_no_certainty():
    interval = choose_honestly(make_statistics(np.ones((2, 30))), 30).interval
    assert interval.value == 1
    assert interval.low == pytest.approx(compute_wilson(1.0, 30)[0])
    assert interval.low == pytest.approx(0.886, abs=1e-3)  # Wilson's interval of 30 of 30


def test_images_of_one_key_are_drawn_together():
    counts = draw_counts(4, ["a", "b", "a", "b"], 50, 0)
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, 1] == counts[:, 3]).all()
    assert (counts[:, 0] != counts[:, 1]).any()
    # A single key cannot be left out.
    interval = choose_honestly(make_statistics(np.ones((1, 3))), 3, keys=["a"] * 3).interval
    assert (interval.low, interval.high) == (0, 1)


def test_a_pair_is_told_apart_more_surely_than_two_intervals():
    right = np.array([1.0] * 60 + [0.0] * 40)
    better = right.copy()
    better[60:70] = 1
    gain = compare_pairs(*make_statistics([better, right]), 100)
    assert gain.interval.value == pytest.approx(0.1)
    assert gain.interval.low > 0.03  # each by itself is only known to about 0.1
    assert gain.expected > 0


def test_an_uncertain_gain_is_drawn_towards_what_is_usual():
    sure, unsure = (Gain(Interval(0.02, 0, 0), error) for error in (0.005, 0.2))
    assert sure.expected == pytest.approx(0.02, abs=0.001)
    assert unsure.expected < 0


def test_statistics_of_several_labels_are_mean_average_precision():
    target = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    once = np.ones((1, 4), np.int64)
    assert build_statistic([target.astype(np.float32)], target)(once)[0] == 1
    assert build_statistic([1 - target.astype(np.float32)], target)(once)[0] < 0.7


def test_repetitions_are_averaged():
    target = np.array([0, 1])
    scores = [np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32)[::-1]]
    assert build_statistic(scores, target)(np.ones((1, 2), np.int64))[0] == 0.5

"""Intervals by cluster, tests of gaps, false discoveries, and what an audit could have seen."""

import numpy as np
import pytest
from scipy.stats import fisher_exact

from vfm.audit.comparison import (
    ClusterSampler,
    CountedMetric,
    RatioMetric,
    adjust_p_values,
    count_missing,
    find_smallest_gap,
)


def draw(number=400, rate=0.8, seed=0):
    rng = np.random.default_rng(seed)
    right = (rng.random(number) < rate).astype(float)
    return RatioMetric("accuracy", right, np.ones(number)), rng


def test_ratio_of_a_group_is_that_of_its_images():
    metric, rng = draw()
    member = rng.random(400) < 0.3
    result = ClusterSampler.from_keys(None, 400).compare(metric, member)
    right = metric.numerator
    assert result.value.value == pytest.approx(right[member].mean())
    assert result.gap.value == pytest.approx(right[member].mean() - right[~member].mean())
    assert result.gap.low < result.gap.value < result.gap.high
    assert result.test == "exact (mid-p)"
    table = [[right[g].sum(), (1 - right[g]).sum()] for g in (member, ~member)]
    assert result.p_value <= 1.3 * fisher_exact(table).pvalue


def test_copies_of_an_image_make_no_interval_narrower():
    metric, _ = draw(200)
    alone = ClusterSampler.from_keys(None, 200).estimate(metric)
    copied = RatioMetric("accuracy", np.repeat(metric.numerator, 9), np.ones(1800))
    keys = [str(i // 9) for i in range(1800)]
    sampler = ClusterSampler.from_keys(keys, 1800)
    together = sampler.estimate(copied)
    assert together.high - together.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert sampler.compute_design_effect(copied) == pytest.approx(9, rel=0.2)


def test_clusters_are_permuted_whole():
    metric, _ = draw(100, seed=3)
    keys = [str(i // 20) for i in range(2000)]
    copied = RatioMetric("accuracy", np.repeat(metric.numerator, 20), np.ones(2000))
    member = np.arange(2000) < 800  # 40 of 100 clusters
    together = ClusterSampler.from_keys(keys, 2000).compare(copied, member)
    alone = ClusterSampler.from_keys(None, 100).compare(metric, np.arange(100) < 40)
    assert together.test == "permutation of clusters"
    assert together.p_value == pytest.approx(alone.p_value, abs=0.12)
    assert ClusterSampler.from_keys(None, 2000).compare(copied, member).p_value < together.p_value


def test_a_group_inside_of_clusters_is_compared_by_bootstrap():
    metric, _ = draw(400)
    sampler = ClusterSampler.from_keys([str(i // 4) for i in range(400)], 400)
    assert sampler.compare(metric, np.arange(400) % 2 == 0).test == "bootstrap"


def test_an_interval_of_few_that_are_all_right_says_little():
    metric = RatioMetric("accuracy", np.ones(12), np.ones(12))
    interval = ClusterSampler.from_keys(None, 12).estimate(metric)
    assert interval.high == 1
    assert 0.7 < interval.low < 0.8


def test_any_metric_of_counts_has_an_interval():
    values = np.random.default_rng(0).random(50)
    metric = CountedMetric("mean", lambda counts: counts @ values / counts.sum(1))
    interval = ClusterSampler.from_keys(None, 50).estimate(metric)
    assert interval.low < values.mean() < interval.high
    undefined = CountedMetric("nothing", lambda counts: np.full(len(counts), np.nan))
    assert ClusterSampler.from_keys(None, 50).estimate(undefined) is None


def test_benjamini_and_hochberg():
    # Their example 3.1 has 15 p-values, of which 4 are called real at 0.05.
    values = [
        *(0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240),
        *(0.4262, 0.5719, 0.6528, 0.7590, 1.0),
    ]
    adjusted = adjust_p_values(values[::-1])[::-1]
    assert sum(value <= 0.05 for value in adjusted) == 4
    assert adjusted[0] == pytest.approx(0.0015)
    assert adjusted == sorted(adjusted)


def test_the_smallest_gap_is_seen_in_four_of_five_audits():
    gap = find_smallest_gap(100, 500, 0.1)
    rng = np.random.default_rng(0)
    errors = np.concatenate(
        [rng.random((150, 100)) < 0.1 + gap, rng.random((150, 500)) < 0.1], axis=1
    )
    member = np.arange(600) < 100
    sampler = ClusterSampler.from_keys(None, 600)
    sampler.num_resamples = 2
    p_values = [
        sampler.compare(RatioMetric("accuracy", 1.0 - row, np.ones(600)), member).p_value
        for row in errors
    ]
    assert 0.7 < np.mean(np.array(p_values) <= 0.05) < 0.9


def test_more_images_see_smaller_gaps():
    gaps = [find_smallest_gap(number, 2000, 0.1) for number in (50, 200, 800)]
    assert gaps == sorted(gaps, reverse=True)
    assert find_smallest_gap(200, 2000, 0.1, num_comparisons=30) > gaps[1]
    assert find_smallest_gap(3, 2000, 0.6) is None
    needed = count_missing(0.05, 62, 2000, 0.1)
    assert find_smallest_gap(62 + needed, 2000, 0.1) == pytest.approx(0.05, rel=0.06)
    assert count_missing(0.05, 5000, 5000, 0.1) == 0
    assert count_missing(0.001, 62, 62, 0.1) is None

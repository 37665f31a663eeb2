"""Audit of detectors: rates at the threshold, by group, of scores alone."""

from pathlib import Path

import numpy as np
import pytest

from vfm.audit.comparison import ClusterSampler
from vfm.audit.detectors import judge_units
from vfm.audit.groups import compare_groups
from vfm.tasks.scored_units import ScoredUnits


def score(scores, positive, clusters):
    return ScoredUnits(
        name="videos",
        source="test",
        records=[],
        positions=np.arange(len(scores)),
        image_scores=np.asarray(scores, float),
        scores=np.asarray(scores, float),
        positive=np.asarray(positive, bool),
        threshold=0.6,
        clusters=clusters,
        cluster_name="people",
        table=Path("x.csv"),
        skipped={},
        notes=[],
        seconds=1.0,
        model_seconds=1.0,
    )


def test_a_planted_gap_of_false_alarms_is_found():
    rng = np.random.default_rng(0)
    positive = np.arange(400) % 2 == 1
    site = np.where(np.arange(400) % 8 < 2, "b", "a")
    scores = np.where(positive, 0.8, 0.3) + 0.1 * rng.random(400)
    scores[(site == "b") & ~positive] += 0.25
    # A real and a fake video of each person: of the reals each still stands alone.
    scored = score(scores, positive, [f"p{i // 2}" for i in range(400)])
    outcomes = judge_units(scored, "real", "fake")
    assert [metric.name for metric in outcomes.metrics] == [
        "auroc",
        "false_positive_rate",
        "true_positive_rate",
    ]
    sampler = ClusterSampler.from_keys(scored.clusters, 400)
    report = compare_groups(outcomes, {"site": site.tolist()}, sampler)
    worst = report.find_worst()
    expected = float((scores[(site == "b") & ~positive] > 0.6).mean())
    assert worst.group == "site=b"
    assert worst.is_real
    assert worst.result.value.value == pytest.approx(expected)
    assert (worst.metric.name, worst.result.test) == ("false_positive_rate", "exact (mid-p)")
    assert worst.result.gap.low > 0
    hits = [c for c in report.comparisons if c.metric.name == "true_positive_rate"]
    assert not any(c.is_real for c in hits)


def test_reals_alone_give_false_alarms_and_no_auc():
    scored = score([0.1, 0.7, 0.2, 0.9], [False] * 4, ["a", "b", "c", "d"])
    outcomes = judge_units(scored, "real", "fake")
    sampler = ClusterSampler.from_keys(scored.clusters, 4)
    values = [sampler.estimate(metric) for metric in outcomes.metrics]
    assert (values[0], values[2]) == (None, None)
    assert values[1].value == 0.5

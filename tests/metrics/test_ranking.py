import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from vfm.metrics import Interval
from vfm.metrics.ranking import Ranking, average_over_classes, estimate_metric, rank_classes

RNG = np.random.default_rng(0)


def draw(num_samples=300, ties=True):
    positive = RNG.random(num_samples) < 0.3
    scores = RNG.random(num_samples) + 0.4 * positive
    return (np.round(scores, 1) if ties else scores), positive


@pytest.mark.parametrize("ties", [False, True])
def test_areas_are_those_of_sklearn_for_every_resample(ties):
    scores, positive = draw(ties=ties)
    counts = RNG.multinomial(len(scores), np.full(len(scores), 1 / len(scores)), size=5)
    counts[0] = 1
    ranking = Ranking(scores, positive)
    auroc, precision = ranking.auroc(counts), ranking.average_precision(counts)
    for row, weight in enumerate(counts):
        assert auroc[row] == pytest.approx(roc_auc_score(positive, scores, sample_weight=weight))
        expected = average_precision_score(positive, scores, sample_weight=weight)
        assert precision[row] == pytest.approx(expected)


def test_equal_scores_know_nothing():
    positive = np.array([True, False, False, True])
    ranking = Ranking(np.ones(4), positive)
    once = np.ones((1, 4), int)
    assert ranking.auroc(once) == [0.5]
    assert ranking.average_precision(once) == [0.5]


def test_perfect_and_worst_order():
    positive = np.array([True, True, False, False])
    once = np.ones((1, 4), int)
    assert Ranking([4, 3, 2, 1], positive).auroc(once) == [1]
    assert Ranking([1, 2, 3, 4], positive).auroc(once) == [0]
    assert Ranking([4, 3, 2, 1], positive).average_precision(once) == [1]


def test_undefined_where_a_side_is_missing():
    once = np.ones((1, 3), int)
    assert np.isnan(Ranking([1, 2, 3], [False] * 3).auroc(once))
    assert np.isnan(Ranking([1, 2, 3], [False] * 3).average_precision(once))
    assert np.isnan(Ranking([1, 2, 3], [True] * 3).auroc(once))
    assert Ranking([1, 2, 3], [True] * 3).to_dict() == {"average_precision": 1.0, "auroc": None}


def test_curves_end_where_they_must():
    ranking = Ranking(*draw(3000, ties=False))
    roc, pr = ranking.roc_curve(), ranking.pr_curve()
    assert roc[0] == (0, 0)
    assert roc[-1] == (1, 1)
    assert 300 < len(roc) <= 400
    assert 300 < len(pr) <= 400
    assert pr[0][0] == 0
    assert pr[-1][0] == 1
    x, y = np.array(roc).T
    assert (np.diff(x) >= 0).all()
    assert (np.diff(y) >= 0).all()
    # The area under the thinned points is that of all.
    assert np.trapezoid(y, x) == pytest.approx(ranking.to_dict()["auroc"], abs=2e-3)


def test_thinning_keeps_the_shape_of_a_rare_class():
    positive = np.arange(50_000) < 60
    ranking = Ranking(RNG.normal(size=50_000) + 3.5 * positive, positive)
    recall, precision = np.array(ranking.pr_curve()).T
    assert len(recall) <= 400
    # In steps, as average precision sums them.
    area = (np.diff(recall) * precision[1:]).sum()
    assert area == pytest.approx(ranking.to_dict()["average_precision"], abs=5e-3)


def test_precision_recall_of_a_perfect_class_is_a_line_across():
    assert Ranking([1, 1, 0, 0], [True, True, False, False]).pr_curve() == [(0, 1), (1, 1)]


def test_mean_leaves_out_what_is_not_defined():
    scores = RNG.random((50, 3))
    positive = RNG.random((50, 3)) < 0.5
    positive[:, 1] = False
    rankings = rank_classes(scores, positive)
    once = np.ones((1, 50), int)
    mean = average_over_classes(Ranking.auroc, rankings)(once)[0]
    expected = [roc_auc_score(positive[:, k], scores[:, k]) for k in (0, 2)]
    assert mean == pytest.approx(np.mean(expected))


def test_interval_contains_the_figure_and_shrinks_with_samples():
    widths = []
    for num_samples in (100, 1600):
        scores, positive = draw(num_samples)
        ranking = Ranking(scores, positive)
        found = estimate_metric(ranking.auroc, (num_samples, 1), seed=0)
        assert found["low"] < found["value"] < found["high"]
        widths.append(found["high"] - found["low"])
    assert widths[1] < 0.4 * widths[0]


def test_blocks_of_resamples_do_not_matter(monkeypatch):
    ranking = Ranking(*draw(100))
    whole = estimate_metric(ranking.auroc, (100, 1), seed=0)
    monkeypatch.setattr("vfm.metrics.ranking._BLOCK", 7 * 100)
    assert estimate_metric(ranking.auroc, (100, 1), seed=0) == whole


@pytest.mark.parametrize(
    ("shape", "resamples"),
    [((100, 1), 1000), ((10_000, 35), 500), ((10_000, 100), 200), ((50_000, 100), 0)],
)
def test_resamples_fit_the_budget(monkeypatch, shape, resamples):
    taken = []

    def compute_interval(statistic, counts, *, num_resamples, seed):
        taken.append(num_resamples)
        return Interval(0.5, 0.4, 0.6)

    monkeypatch.setattr("vfm.metrics.ranking.compute_interval", compute_interval)
    estimate_metric(lambda counts: np.full(len(counts), 0.5), shape, seed=0)
    assert taken == [resamples][: resamples > 0]


def test_no_interval_for_very_large_data():
    scores, positive = draw(100)
    found = estimate_metric(Ranking(scores, positive).auroc, (100, 10**9), seed=0)
    assert found["value"] is not None
    assert found["low"] is None
    assert found["high"] is None


def test_a_figure_that_is_not_defined():
    found = estimate_metric(Ranking([1, 2], [True, True]).auroc, (2, 1), seed=0)
    assert found == {"value": None, "low": None, "high": None}


def test_resamples_without_the_rare_class_are_no_failure():
    positive = np.zeros(30, bool)
    positive[3] = True
    found = estimate_metric(Ranking(RNG.random(30), positive).auroc, (30, 1), seed=0)
    assert 0 <= found["low"] <= found["high"] <= 1

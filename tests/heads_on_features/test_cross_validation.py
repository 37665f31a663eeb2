"""Out-of-fold scores of heads on features, and the linear probe that is chosen by them."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.heads_on_features import fit_lda, fit_nearest_mean

from tests.heads_on_features.test_logistic import make_features
from vfm.heads_on_features import Candidate, CandidateScores, cross_validate, linear, solve_linear
from vfm.heads_on_features.cross_validation import score_folds
from vfm.heads_on_features.linear import choose_candidate


def make_folds(target, number=3):
    folds = np.zeros(len(target), int)
    for k in np.unique(target):
        folds[target == k] = np.arange((target == k).sum()) % number
    return folds


def test_each_image_is_scored_by_a_head_of_the_other_folds():
    features, target = make_features(45, 10, 3)
    folds = make_folds(target)
    candidates = [
        Candidate("logistic", "none", c=1.0),
        Candidate("lda", "none"),
        Candidate("nearest_mean", "none"),
        Candidate("neighbors", k=3),
        Candidate("logistic", "none", c=0.01),
    ]
    results = cross_validate(features, target, folds, candidates)
    assert [result.candidate for result in results] == candidates
    for number in range(3):
        inside = folds == number
        train = features[~inside], target[~inside]
        for index, c in ((0, 1.0), (4, 0.01)):
            expected = LogisticRegression(C=c, max_iter=5000).fit(*train).predict(features[inside])
            np.testing.assert_array_equal(results[index].scores[inside].argmax(axis=1), expected)
        for index, fit in ((1, fit_lda), (2, fit_nearest_mean)):
            logits = fit(*train).compute_logits(features[inside])
            scores = results[index].scores[inside]
            np.testing.assert_array_equal(scores.argmax(axis=1), logits.argmax(axis=1))
    for result in results:
        np.testing.assert_allclose(result.scores.sum(axis=1), 1)
        assert result.metric == (result.scores.argmax(axis=1) == target).mean()
        right = np.maximum(result.scores[np.arange(45), target], 1e-9)
        assert result.loss == pytest.approx(-np.log(right).mean(), rel=0.1)


def test_one_fold_is_refused():
    features, target = make_features(12, 4, 3)
    with pytest.raises(DataError, match=r"There is 1 fold. Give two or more"):
        cross_validate(features, target, np.zeros(12), [Candidate()])


def test_heads_of_one_label_refuse_several():
    features, target = make_features(12, 4, 3)
    with pytest.raises(OptionError, match=r"'lda' gives one label an image.*neighbors, logistic"):
        cross_validate(
            features, np.eye(3)[target], make_folds(target), [Candidate("lda")], multilabel=True
        )


def test_solved_head_is_fitted_on_all_images_and_scored_out_of_fold():
    features, target = make_features(60, 30, 3)
    before = features.copy()
    solved = solve_linear(features, target, make_folds(target))
    np.testing.assert_array_equal(features, before)
    assert (solved.head.compute_logits(features).argmax(axis=1) == target).mean() > 0.9
    assert solved.metric == (solved.scores.argmax(axis=1) == target).mean()
    again = solve_linear(features, target, make_folds(target))
    np.testing.assert_array_equal(solved.head.weight, again.head.weight)


def test_several_labels():
    features, target = make_features(60, 30, 3)
    labels = np.eye(3)[target]
    labels[::4, 1] = 1
    labels = np.hstack([labels, np.zeros((60, 1)), np.ones((60, 1))])
    solved = solve_linear(features, labels, make_folds(target), multilabel=True)
    assert solved.metric > 0.7
    scores = 1 / (1 + np.exp(-solved.head.compute_logits(features)))
    assert scores[:, 3].max() < 0.1
    assert scores[:, 4].min() > 0.9


def test_of_many_images_a_part_chooses_and_a_fold_judges(monkeypatch):
    monkeypatch.setattr(linear, "_GRID_IMAGES", 30)
    monkeypatch.setattr(linear, "_GRID_LABELS", 3)
    monkeypatch.setattr(linear, "_MOST_WORK", 0)
    features, target = make_features(120, 10, 4)
    folds = make_folds(target)
    tried = []
    monkeypatch.setattr(
        linear, "score_folds", lambda *args, **kw: tried.append(args) or score_folds(*args, **kw)
    )
    solved = solve_linear(features, target, folds)
    assert [len(values) for values in tried[0][:3]] == [30, 30, 30]
    assert set(tried[0][2]) == {0, 1, -1}
    assert set(tried[0][1]) == {0, 1, 2}
    assert solved.head.weight.shape == (4, 10)
    judged = np.isfinite(solved.scores).all(axis=1)
    np.testing.assert_array_equal(judged, folds == 0)
    assert solved.metric == (solved.scores.argmax(axis=1) == target)[judged].mean()


def test_among_nearly_equal_metrics_the_loss_chooses():
    def make(metric, loss):
        return CandidateScores(Candidate(c=loss), np.zeros((100, 2)), 1.0, metric, loss)

    # Half a standard error of 0.8 among 100 images is 0.02.
    results = [make(0.8, 0.6), make(0.785, 0.5), make(0.77, 0.4)]
    assert choose_candidate([results]) is results[1]
    assert (
        choose_candidate([results, [make(0.8, 0.6), make(0.7, 0.5), make(0.7, 0.4)]]) is results[0]
    )

"""Heads in closed form against scikit-learn's."""

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestCentroid
from vfm_runtime.errors import DataError
from vfm_runtime.heads_on_features import AffineHead, fit_lda, fit_nearest_mean, scale_features


def make_features(number, width, num_classes, seed=0):
    generator = np.random.default_rng(seed)
    target = np.arange(number) % num_classes
    means = generator.normal(size=(num_classes, width))
    return means[target] + 2 * generator.normal(size=(number, width)), target


@pytest.mark.parametrize("shape", [(120, 20, 3), (30, 80, 4), (7, 40, 3), (40, 10, 2)])
@pytest.mark.parametrize("solver", ["lsqr", "eigen"])
def test_lda_is_that_of_scikit_learn(shape, solver):
    features, target = make_features(*shape)
    features[:, 0] = 0.5
    reference = LinearDiscriminantAnalysis(solver=solver, shrinkage="auto").fit(features, target)
    others, _ = make_features(*shape, seed=1)
    others[:, 0] = 0.5
    log_scores = fit_lda(features, target).compute_logits(others)
    log_scores -= np.logaddexp.reduce(log_scores, axis=1, keepdims=True)
    np.testing.assert_allclose(np.exp(log_scores), reference.predict_proba(others), atol=1e-6)


def test_lda_of_single_images_is_the_nearest_mean():
    head = fit_lda(np.eye(3), [0, 1, 2])
    assert head.compute_logits(np.eye(3)).argmax(axis=1).tolist() == [0, 1, 2]
    assert np.isfinite(head.weight).all()


def test_nearest_mean_is_that_of_scikit_learn():
    features, target = make_features(60, 20, 5)
    others, _ = make_features(200, 20, 5, seed=1)
    center = features.mean(axis=0)
    reference = NearestCentroid().fit(scale_features(features, center, True), target)
    head = fit_nearest_mean(features, target)
    np.testing.assert_array_equal(
        head.compute_logits(others).argmax(axis=1),
        reference.predict(scale_features(others, center, True)),
    )


@pytest.mark.parametrize("fit", [fit_lda, fit_nearest_mean])
def test_an_absent_class_is_never_the_answer(fit):
    features, target = make_features(30, 5, 3)
    head = fit(features, np.where(target == 1, 3, target), 5)
    logits = head.compute_logits(features)
    assert np.isfinite(logits).all()
    assert set(logits.argmax(axis=1)) == {0, 2, 3}


def test_center_comes_before_the_norm():
    head = AffineHead(np.eye(2), np.array([0.0, 1.0]), np.array([1.0, 1.0]), True)
    np.testing.assert_allclose(head.compute_logits([[4.0, 5.0]]), [[0.6, 1.8]])


@pytest.mark.parametrize(
    ("features", "target", "num_classes", "text"),
    [
        (np.zeros((0, 3)), [], None, "one image or more"),
        (np.zeros((2, 3)), [0], None, r"have shape \(2, 3\) and their classes \(1,\)"),
        (np.zeros((2, 3)), [0, -1], None, "leave out images without a label"),
        (np.zeros((2, 3)), [0, 2], 2, "num_classes is 2, but a class is 2. Give 3 or more"),
    ],
)
def test_what_cannot_be_fitted_is_refused(features, target, num_classes, text):
    with pytest.raises(DataError, match=text):
        fit_lda(features, np.array(target, dtype=int), num_classes)

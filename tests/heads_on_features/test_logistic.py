"""Logistic regression against scikit-learn's, for every scaling, number of classes and kind of label."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from vfm.heads_on_features import SCALINGS, fit_logistic_regression

SCALERS = {"none": [], "l2": [Normalizer()], "standardized": [StandardScaler()]}


def make_features(number, width, num_classes, seed=0):
    generator = np.random.default_rng(seed)
    target = np.arange(number) % num_classes
    means = generator.normal(size=(num_classes, width))
    return means[target] + 2 * generator.normal(size=(number, width)), target


def compute_probabilities(logits):
    scores = np.exp(logits - logits.max(axis=1, keepdims=True))
    return scores / scores.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("shape", [(60, 20, 3), (30, 80, 4), (40, 10, 2)])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_probabilities_are_those_of_scikit_learn(scaling, shape, c):
    features, target = make_features(*shape)
    reference = make_pipeline(
        *SCALERS[scaling], LogisticRegression(C=c, tol=1e-9, max_iter=10_000)
    ).fit(features, target)
    head = fit_logistic_regression(features, target, c=c, scaling=scaling)
    others, _ = make_features(*shape, seed=1)
    scores = compute_probabilities(head.compute_logits(others))
    np.testing.assert_allclose(scores, reference.predict_proba(others), atol=1e-3)


def test_class_weights_are_those_of_scikit_learn():
    features, target = make_features(60, 20, 3)
    weights = [1.0, 5.0, 0.2]
    reference = LogisticRegression(
        C=0.1, tol=1e-9, max_iter=10_000, class_weight=dict(enumerate(weights))
    ).fit(features, target)
    head = fit_logistic_regression(features, target, c=0.1, scaling="none", class_weights=weights)
    scores = compute_probabilities(head.compute_logits(features))
    np.testing.assert_allclose(scores, reference.predict_proba(features), atol=1e-3)


def test_several_labels_are_a_sigmoid_each():
    features, target = make_features(60, 20, 3)
    labels = np.eye(3)[target]
    labels[::4, 1] = 1
    weights = [1.0, 3.0, 1.0]
    head = fit_logistic_regression(
        features, labels, c=0.1, scaling="none", class_weights=weights, multilabel=True
    )
    logits = head.compute_logits(features)
    for k, weight in enumerate(weights):
        reference = LogisticRegression(
            C=0.1, tol=1e-9, max_iter=10_000, class_weight={0: 1.0, 1: weight}
        ).fit(features, labels[:, k])
        np.testing.assert_allclose(logits[:, k], reference.decision_function(features), atol=2e-3)

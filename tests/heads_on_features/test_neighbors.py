"""kNN votes against scikit-learn's neighbours."""

import numpy as np
from sklearn.neighbors import NearestNeighbors

from vfm.heads_on_features.neighbors import score_neighbors


def test_votes_are_those_of_the_nearest_by_cosine():
    generator = np.random.default_rng(0)
    known, asked = generator.normal(size=(200, 16)), generator.normal(size=(1500, 16))
    labels = generator.integers(0, 4, 200)
    scores = score_neighbors(asked, known, np.eye(4)[labels], k=7)
    distance, nearest = (
        NearestNeighbors(n_neighbors=7, metric="cosine").fit(known).kneighbors(asked)
    )
    weights = np.exp((1 - distance) / 0.07)
    expected = np.zeros((1500, 4))
    for row in range(1500):
        np.add.at(expected[row], labels[nearest[row]], weights[row])
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(scores, expected, atol=1e-4)


def test_fewer_references_than_neighbours():
    scores = score_neighbors([[1.0, 0.0]], [[1.0, 0.1], [0.0, 1.0]], np.eye(2), k=20)
    assert scores.shape == (1, 2)
    np.testing.assert_allclose(scores.sum(), 1, atol=1e-6)
    assert scores[0, 0] > 0.99

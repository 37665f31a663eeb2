"""Recall of texts by images and of images by texts."""

import numpy as np
import pytest

from vfm.metrics.retrieval import measure_retrieval


def test_recall_counts_the_candidates_before_the_right_one():
    generator = np.random.default_rng(0)
    images = generator.normal(size=(12, 3)).astype(np.float32)
    texts = images + generator.normal(size=(12, 3)).astype(np.float32)
    found = measure_retrieval(images, texts, np.arange(12))
    recall = found["image_to_text"]
    assert (recall.num_queries, recall.num_candidates) == (12, 12)
    best = np.argsort(-(images @ texts.T), axis=1)
    for k, value in recall.at.items():
        assert value == pytest.approx(np.mean([i in best[i, :k] for i in range(12)]))
    assert recall.at[1] < recall.at[5] < recall.at[10]
    assert recall.to_dict()["recall_at_5"] == recall.at[5]


def test_equal_texts_are_one_candidate_and_any_of_their_images_is_right():
    images = np.eye(4, dtype=np.float32)
    texts = images[[1, 1, 2, 2]]
    found = measure_retrieval(images, texts, np.array([7, 7, -3, -3]), ranks=(1,))
    assert found["image_to_text"].num_candidates == 2
    assert found["text_to_image"].num_queries == 2
    assert found["text_to_image"].at[1] == 1.0
    assert found["image_to_text"].at[1] == 0.5  # the first and the last are as far from either text


def test_a_model_that_tells_nothing_apart_finds_nothing():
    same = np.ones((20, 3), np.float32) / np.sqrt(3)
    found = measure_retrieval(same, same, np.arange(20))
    assert {value for recall in found.values() for value in recall.at.values()} == {0.0}

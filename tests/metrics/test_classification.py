"""The scores agree with scikit-learn, and bad input is refused with a remedy."""

import json

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from vfm.metrics import (
    compute_accuracy,
    compute_classification_results,
    compute_confusion_matrix,
    compute_macro_f1,
)

LABELS = ["cat", "dog", "eel", "fox", "gnu"]


def _random_classes(seed: int, present: int = 5) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    target = generator.integers(0, present, 200)
    noise = generator.integers(0, present, 200)
    return target, np.where(generator.random(200) < 0.6, target, noise)


@pytest.mark.parametrize("present", [2, 4, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scores_equal_sklearn(seed: int, present: int) -> None:
    target, predicted = _random_classes(seed, present)
    matrix = compute_confusion_matrix(target, predicted, 5)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(
        matrix, sklearn_metrics.confusion_matrix(target, predicted, labels=range(5))
    )
    expected_f1 = sklearn_metrics.f1_score(target, predicted, average="macro")
    assert compute_accuracy(matrix) == pytest.approx(
        sklearn_metrics.accuracy_score(target, predicted), abs=1e-12
    )
    assert compute_macro_f1(matrix) == pytest.approx(expected_f1, abs=1e-12)


def test_per_class_equals_sklearn_also_for_absent_classes() -> None:
    target, predicted = _random_classes(3, present=4)
    rows = compute_classification_results(np.eye(5)[predicted], target, LABELS)["per_class"]
    expected = sklearn_metrics.precision_recall_fscore_support(
        target, predicted, labels=range(5), zero_division=0.0
    )
    assert [row["label"] for row in rows] == LABELS
    for key, column in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([row[key] for row in rows], column, atol=1e-12)


def test_macro_f1_counts_a_class_that_is_only_predicted_as_zero() -> None:
    # Class 0 is right throughout but for one sample called class 1, which has no truth.
    matrix = compute_confusion_matrix([0, 0, 0, 0], [0, 0, 0, 1], 3)
    assert compute_macro_f1(matrix) == pytest.approx((6 / 7 + 0) / 2, abs=1e-12)


def test_scores_of_a_batch_are_those_of_its_matrices() -> None:
    batch = np.stack([compute_confusion_matrix(*_random_classes(seed), 5) for seed in range(4)])
    for score in (compute_accuracy, compute_macro_f1):
        np.testing.assert_allclose(score(batch), [score(matrix) for matrix in batch], atol=1e-15)


def test_results_are_json_and_agree_with_the_scores() -> None:
    generator = np.random.default_rng(4)
    target = generator.integers(0, 5, 120)
    probabilities = generator.dirichlet(np.ones(5), 120) + 0.4 * np.eye(5)[target]
    results = compute_classification_results(probabilities, target, LABELS)
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    predicted = probabilities.argmax(axis=1)
    assert results["num_samples"] == 120
    assert results["level"] == 0.95
    assert results["accuracy"]["value"] == pytest.approx(np.mean(predicted == target), abs=1e-12)
    for name in ("accuracy", "macro_f1"):
        assert results[name]["low"] < results[name]["value"] < results[name]["high"]
    assert np.array(results["confusion_matrix"]).sum() == 120
    assert len(results["per_class"]) == 5
    assert results == compute_classification_results(probabilities, target, LABELS, seed=0)
    assert results != compute_classification_results(probabilities, target, LABELS, seed=1)


@pytest.mark.parametrize(
    ("target", "predicted", "num_classes", "message"),
    [
        ([0, 3], [0, 1], 3, "target contains class 3, .* choices are 0 to 2"),
        ([0, 1], [0, -1], 3, "predicted contains class -1"),
        ([0, 1], [0], 3, "target has 2 samples, predicted has 1"),
        ([0.0, 1.0], [0, 1], 3, "target has dtype float64"),
        ([0, 1], [[0.1, 0.9], [0.3, 0.7]], 3, "take argmax over the last axis"),
        ([0], [0], 0, "num_classes is 0"),
    ],
)
def test_confusion_matrix_refuses(
    target: list[int], predicted: list[int], num_classes: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compute_confusion_matrix(target, predicted, num_classes)


@pytest.mark.parametrize(
    ("probabilities", "target", "labels", "message"),
    [
        (np.zeros((0, 2)), [], ["a", "b"], r"no samples to score \(N = 0\)"),
        ([[0.1, 0.9], [np.nan, 0.5]], [0, 1], ["a", "b"], "1 of 2 samples .* is sample 1"),
        ([[0.1, 0.9]], [0, 1], ["a", "b"], r"target has shape \(2,\)"),
        ([[0.1, 0.9]], [0], ["a"], "There are 1 labels for 2 classes"),
        ([0.1, 0.9], [0, 1], ["a", "b"], r"must be \[N, C\]"),
        ([[0.1, 0.9]], [2], ["a", "b"], "target contains class 2"),
    ],
)
def test_results_refuse(
    probabilities: list[list[float]], target: list[int], labels: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compute_classification_results(probabilities, target, labels)


def test_scores_refuse_what_is_no_confusion_matrix() -> None:
    with pytest.raises(ValueError, match=r"is square.*shape is \(2, 3\)"):
        compute_accuracy(np.ones((2, 3), dtype=int))
    with pytest.raises(ValueError, match="counts no sample"):
        compute_macro_f1(np.zeros((2, 2), dtype=int))


def test_top5_and_auroc_are_those_of_sklearn():
    from sklearn.metrics import roc_auc_score, top_k_accuracy_score

    random = np.random.default_rng(3)
    target = random.integers(0, 8, 500)
    scores = random.random((500, 8))
    scores[np.arange(500), target] += 0.3
    scores /= scores.sum(1, keepdims=True)
    results = compute_classification_results(scores, target, [str(k) for k in range(8)])
    assert results["top5_accuracy"]["value"] == top_k_accuracy_score(target, scores, k=5)
    expected = roc_auc_score(target, scores, multi_class="ovr")
    assert results["auroc"]["value"] == pytest.approx(expected)
    assert results["auroc"]["low"] < expected < results["auroc"]["high"]
    row = results["per_class"][3]
    assert row["auroc"] == pytest.approx(roc_auc_score(target == 3, scores[:, 3]))


def test_no_top5_of_five_classes():
    scores = np.full((3, 5), 0.2)
    assert "top5_accuracy" not in compute_classification_results(scores, [0, 1, 2], list("abcde"))


def test_ties_at_the_fifth_place_are_not_all_hits():
    # All equal: the first five classes are the answer, so classes 5 and 6 are not among them.
    results = compute_classification_results(np.full((7, 7), 1 / 7), np.arange(7), list("abcdefg"))
    assert results["top5_accuracy"]["value"] == pytest.approx(5 / 7)


def test_a_single_true_class_has_no_auroc():
    results = compute_classification_results(np.full((4, 2), 0.5), [0, 0, 0, 0], ["a", "b"])
    assert results["auroc"] == {"value": None, "low": None, "high": None}
    assert results["per_class"][1]["average_precision"] is None

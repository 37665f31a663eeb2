import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from vfm.metrics import compute_mean_average_precision, compute_multilabel_results
from vfm.metrics.multilabel import compute_f1_scores

RNG = np.random.default_rng(0)
TARGET = (RNG.random((400, 4)) < [0.5, 0.3, 0.1, 0.02]).astype(np.float32)
SCORES = np.clip(RNG.random((400, 4)) * 0.7 + 0.3 * TARGET, 0, 1).round(2)
LABELS = ("a", "b", "c", "d")


def test_figures_are_those_of_sklearn():
    results = compute_multilabel_results(SCORES, TARGET, LABELS)
    applies = SCORES >= 0.5
    expected = {
        "mAP": average_precision_score(TARGET, SCORES),
        "auroc": roc_auc_score(TARGET, SCORES),
        "macro_f1": f1_score(TARGET, applies, average="macro"),
        "micro_f1": f1_score(TARGET, applies, average="micro"),
        "exact_match": (applies == TARGET).all(1).mean(),
    }
    for name, value in expected.items():
        found = results[name]
        assert found["value"] == pytest.approx(value), name
        assert found["low"] < value < found["high"], name
    assert results["num_samples"] == 400
    assert results["predicted_none"] == (~applies.any(1)).sum()
    row = results["per_class"][2]
    assert row["label"] == "c"
    assert row["support"] == TARGET[:, 2].sum()
    assert row["f1"] == pytest.approx(f1_score(TARGET[:, 2], applies[:, 2]))
    assert row["average_precision"] == pytest.approx(
        average_precision_score(TARGET[:, 2], SCORES[:, 2])
    )


def test_short_figures_are_the_same():
    results = compute_multilabel_results(SCORES, TARGET, LABELS)
    assert compute_mean_average_precision(SCORES, TARGET) == pytest.approx(results["mAP"]["value"])
    assert compute_f1_scores(SCORES, TARGET)["macro_f1"] == pytest.approx(
        results["macro_f1"]["value"]
    )
    assert compute_f1_scores(SCORES, TARGET)["micro_f1"] == pytest.approx(
        results["micro_f1"]["value"]
    )


def test_a_label_that_no_image_has():
    target = TARGET.copy()
    target[:, 3] = 0
    results = compute_multilabel_results(SCORES, target, LABELS)
    assert results["absent"] == ["d"]
    assert results["per_class"][3]["average_precision"] is None
    assert results["mAP"]["value"] == pytest.approx(
        average_precision_score(target[:, :3], SCORES[:, :3])
    )


def test_a_single_label():
    results = compute_multilabel_results(SCORES[:, :1], TARGET[:, :1], ["a"])
    expected = average_precision_score(TARGET[:, 0], SCORES[:, 0])
    assert results["mAP"]["value"] == pytest.approx(expected)
    assert results["macro_f1"] == results["micro_f1"]


def test_no_label_at_all():
    results = compute_multilabel_results(SCORES, TARGET * 0, LABELS)
    assert results["absent"] == list(LABELS)
    assert results["mAP"] == results["auroc"] == {"value": None, "low": None, "high": None}


def test_threshold():
    high = compute_multilabel_results(SCORES, TARGET, LABELS, threshold=0.9)
    assert high["threshold"] == 0.9
    assert high["predicted_none"] == (SCORES < 0.9).all(1).sum()


def test_results_are_json():
    target = TARGET.copy()
    target[:, 3] = 0
    text = json.dumps(compute_multilabel_results(SCORES, target, LABELS), allow_nan=False)
    assert "mAP" in text


@pytest.mark.parametrize(
    ("scores", "target", "text"),
    [
        (SCORES, TARGET[:, :3], r"target has shape \(400, 3\), scores have shape \(400, 4\)"),
        (SCORES, TARGET * 2, r"target holds 2\.0\. Pass ones where a label applies"),
        (SCORES * np.nan, TARGET, r"400 of 400 samples have NaN scores"),
        (SCORES[:0], TARGET[:0], r"There are no samples to score"),
    ],
)
def test_what_cannot_be_scored(scores, target, text):
    with pytest.raises(ValueError, match=text):
        compute_multilabel_results(scores, target, LABELS)


def test_names_that_do_not_fit():
    with pytest.raises(ValueError, match="There are 2 labels for 4 classes"):
        compute_multilabel_results(SCORES, TARGET, ("a", "b"))

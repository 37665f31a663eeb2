"""Metrics that predictions are judged by: of one label, of several, of boxes."""

import numpy as np
import pytest
from scipy.special import softmax
from vfm_runtime.tasks.classification import LabelPrediction
from vfm_runtime.tasks.detection import Detections

from vfm.audit.calibration import measure_calibration
from vfm.audit.comparison import ClusterSampler
from vfm.audit.explain_boxes import list_box_answers
from vfm.audit.kinds import KINDS, Outcomes, ScoredAnswers
from vfm.data.detection.annotation import Annotation
from vfm.data.records import Record


def measure(outcomes):
    sampler = ClusterSampler.from_keys(None, len(outcomes.predicted))
    values = {metric.name: sampler.estimate(metric) for metric in outcomes.metrics}
    return {name: value and value.value for name, value in values.items()}


def predict(rows, labels, **options):
    return [LabelPrediction.from_scores(row, labels, **options) for row in rows]


def test_rates_of_two_labels():
    truth = [0, 0, 0, 0, 1, 1, 1, 1, 1, 1]
    called = [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]
    rows = [(0.9 - 0.6 * c, 0.1 + 0.6 * c) for c in called]
    records = [Record("", label, str(i)) for i, label in enumerate(truth)]
    labels = ("bad", "good")
    # The data has the labels the other way round.
    outcomes = KINDS["classification"].judge(records, predict(rows, labels), [1, 0], labels, None)
    assert outcomes.truth[0] == "good"
    outcomes = KINDS["classification"].judge(records, predict(rows, labels), [0, 1], labels, None)
    assert outcomes.positive == "good"
    assert measure(outcomes) == pytest.approx(
        {
            "accuracy": 0.7,
            "macro_f1": (2 * 3 / (4 + 5) + 2 * 4 / (6 + 5)) / 2,
            "auroc": (4 * 3 + 4 * 0.5 + 2 * 3 * 0.5) / 24,
            "selection_rate": 0.5,
            "true_positive_rate": 4 / 6,
            "false_positive_rate": 1 / 4,
        }
    )
    assert [m.name for m in outcomes.compared][1:] == [
        "selection_rate",
        "true_positive_rate",
        "false_positive_rate",
    ]


def test_several_labels():
    labels = ("ant", "bee")
    rows = [(0.9, 0.8), (0.9, 0.1), (0.2, 0.1), (0.7, 0.6)]
    records = [Record("", label, str(i)) for i, label in enumerate([(0, 1), (0,), (1,), (0,)])]
    predictions = predict(rows, labels, multilabel=True)
    outcomes = KINDS["multilabel"].judge(records, predictions, [0, 1], labels, None)
    values = measure(outcomes)
    assert values["exact_match"] == 0.5
    assert values["recall"] == pytest.approx(4 / 5)
    assert values["precision"] == pytest.approx(4 / 5)
    assert values["labels_per_image"] == 1.25
    assert values["mAP"] == pytest.approx((1 + (1 + 2 / 3) / 2) / 2, abs=0.1)
    assert outcomes.truth[0] == "ant, bee"
    assert outcomes.predicted[2] == "none"
    assert outcomes.scored.scores.tolist() == pytest.approx(np.ravel(rows).tolist())
    assert outcomes.scored.right.tolist() == [True, True, True, False, False, True, True, False]
    assert outcomes.scored.image.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_boxes():
    box, other = [0, 0, 10, 10], [50, 50, 80, 80]
    annotations = [[box], [box, other], []]
    records = [
        Record("", (0,) * len(b), str(i), objects=annotate(b)) for i, b in enumerate(annotations)
    ]
    predictions = [
        Detections.from_arrays(
            [box, other], [0, 0], [0.9, 0.1], ("cat",)
        ),  # the second is not shown
        Detections.from_arrays([box], [0], [0.8], ("cat",)),
        Detections.from_arrays([other], [0], [0.7], ("cat",)),
    ]
    outcomes = KINDS["detection"].judge(records, predictions, [0], ("cat",), None)
    values = measure(outcomes)
    assert values["recall"] == pytest.approx(2 / 3)
    assert values["false_alarms_per_image"] == pytest.approx(1 / 3)
    assert values["precision"] == pytest.approx(2 / 3)
    assert values["boxes_per_image"] == 1
    assert values["AP50"] == pytest.approx(2 / 3)
    assert outcomes.truth == ["1 objects", "2 objects", "0 objects"]
    assert outcomes.scored.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert outcomes.scored.right.tolist() == [True, True, False]
    assert outcomes.scored.image.tolist() == [0, 1, 2]
    answers = list_box_answers(records, predictions, [0], ("cat",), 2)
    # One of the right boxes by chance, and the false alarm.
    assert [(each.right, each.truth) for each in answers] == [
        (True, "cat"),
        (False, "no such object"),
    ]
    assert answers[0].corners.tolist() == box
    assert answers[1].image == 2


def annotate(boxes):
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Annotation(corners, np.zeros(len(boxes), bool), (100, 100))


def test_a_group_whose_scores_are_too_sure_has_a_higher_temperature():
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((2000, 3))
    target = np.array([rng.choice(3, p=row) for row in softmax(logits, axis=1)])
    site = np.where(np.arange(2000) % 2, "a", "b")
    logits[site == "b"] *= 2
    scores = softmax(logits, axis=1).astype(np.float32)
    right = scores.argmax(1) == target
    outcomes = Outcomes([], [], [], None, target=target, scores=scores)
    answers = ScoredAnswers(scores.max(1).astype(float), right, np.arange(2000), "labels")
    result = measure_calibration(answers, {"site": site.tolist()}, fit=outcomes.fit_temperature)
    found = {row["group"]: row["temperature"] for row in result["groups"]}
    assert found["site=a"] == pytest.approx(1, abs=0.15)
    assert found["site=b"] == pytest.approx(2, abs=0.3)
    assert found["site=a"] < result["temperature"] < found["site=b"]

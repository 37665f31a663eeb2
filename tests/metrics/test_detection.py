"""Figures of boxes, against answers known by hand and against COCO's own."""

import numpy as np
import pytest
from vfm_runtime.tasks.detection import compute_iou

from vfm.metrics import detection
from vfm.metrics.detection import (
    DetectedBoxes,
    TrueBoxes,
    assign_boxes,
    compute_ap50,
    compute_coco_metrics,
    count_confusions,
    estimate_ap50,
    match_detections,
)


def truth(*rows, ignored=None):
    """Rows of class, left, top, right, bottom."""
    table = np.array(rows, float).reshape(-1, 5)
    flags = np.zeros(len(table), bool) if ignored is None else np.array(ignored)
    return TrueBoxes(table[:, 1:].astype(np.float32), table[:, 0].astype(np.int64), flags)


def found(*rows):
    """Rows of score, class, left, top, right, bottom."""
    table = np.array(rows, float).reshape(-1, 6)
    return DetectedBoxes(
        table[:, 2:].astype(np.float32),
        table[:, 1].astype(np.int64),
        table[:, 0].astype(np.float32),
    )


BOX = (10, 10, 60, 60)
OTHER = (100, 100, 180, 160)
AWAY = (200, 10, 260, 70)


def random_set(seed=0, images=40, classes=3):
    generator = np.random.default_rng(seed)
    true, answers = [], []
    for _ in range(images):
        number = int(generator.integers(0, 5))
        start = generator.uniform(0, 200, (number, 2))
        boxes = np.concatenate([start, start + generator.uniform(8, 120, (number, 2))], 1)
        labels = generator.integers(classes, size=number)
        ignored = generator.random(number) < 0.1
        true.append(TrueBoxes(boxes.astype(np.float32), labels, ignored))
        noise = generator.normal(0, 6, (number, 4))
        wrong = generator.uniform(0, 200, (3, 2))
        more = np.concatenate([wrong, wrong + generator.uniform(8, 90, (3, 2))], 1)
        flips = np.where(generator.random(number) < 0.2, (labels + 1) % classes, labels)
        answers.append(
            DetectedBoxes(
                np.concatenate([boxes + noise, more]).astype(np.float32),
                np.concatenate([flips, generator.integers(classes, size=3)]),
                generator.random(number + 3).astype(np.float32),
            )
        )
    return true, answers


def test_perfect_answers():
    true = [truth((0, *BOX), (1, *OTHER)), truth((1, *BOX))]
    answers = [found((0.9, 0, *BOX), (0.8, 1, *OTHER)), found((0.7, 1, *BOX))]
    stats, per_class = compute_coco_metrics(true, answers, 2)
    assert stats["AP"] == pytest.approx(1)
    assert stats["AR_100"] == pytest.approx(1)
    assert per_class == pytest.approx([1, 1])


def test_a_wrong_answer_above_a_right_one_halves_the_precision():
    stats, _ = compute_coco_metrics([truth((0, *BOX))], [found((0.9, 0, *AWAY), (0.5, 0, *BOX))], 1)
    assert stats["AP50"] == pytest.approx(0.5)


def test_a_loose_box_counts_at_low_overlap_alone():
    loose = (10, 10, 60, 43)  # two thirds of the box
    stats, _ = compute_coco_metrics([truth((0, *BOX))], [found((0.9, 0, *loose))], 1)
    assert stats["AP50"] == pytest.approx(1)
    assert stats["AP75"] == pytest.approx(0)
    assert stats["AP"] == pytest.approx(0.4)


def test_nothing_to_find_is_not_zero():
    stats, per_class = compute_coco_metrics([truth()], [found((0.9, 0, *BOX))], 1)
    assert stats["AP"] is None
    assert per_class == [None]
    assert estimate_ap50(match_detections([truth()], [found()], 1), [truth()])["value"] is None


def test_nothing_found():
    stats, per_class = compute_coco_metrics([truth((0, *BOX))], [found()], 2)
    assert stats["AP"] == 0
    assert per_class == [0, None]


def test_sizes():
    small, large = (0, 0, 20, 20), (0, 0, 150, 150)
    stats, _ = compute_coco_metrics(
        [truth((0, *small)), truth((0, *large))], [found((0.9, 0, *small)), found()], 1
    )
    assert stats["AP_small"] == pytest.approx(1)
    assert stats["AP_large"] == pytest.approx(0)
    assert stats["AP_medium"] is None


def test_answers_on_ignored_boxes_do_not_count():
    true = [truth((0, *BOX), (0, *OTHER), ignored=[False, True])]
    answers = [found((0.9, 0, *OTHER), (0.8, 0, *BOX))]
    assert compute_coco_metrics(true, answers, 1)[0]["AP"] == pytest.approx(1)
    (ranking,) = match_detections(true, answers, 1)
    assert ranking.right.tolist() == [True]
    assert ranking.num_true == 1


def test_a_box_is_found_once():
    (ranking,) = match_detections([truth((0, *BOX))], [found((0.9, 0, *BOX), (0.8, 0, *BOX))], 1)
    assert ranking.right.tolist() == [True, False]


@pytest.mark.parametrize("seed", range(4))
def test_own_ap50_is_nearly_that_of_coco(seed):
    """COCO reads precision at 101 recalls, this at every one."""
    true, answers = random_set(seed)
    stats, _ = compute_coco_metrics(true, answers, 3)
    own = compute_ap50(match_detections(true, answers, 3), true, np.ones((1, len(true)), int))[0]
    assert own == pytest.approx(stats["AP50"], abs=0.015)


def test_interval_contains_the_value_and_shrinks_with_more_images():
    widths = []
    for images in (20, 200):
        true, answers = random_set(1, images)
        interval = estimate_ap50(match_detections(true, answers, 3), true)
        assert interval["low"] <= interval["value"] <= interval["high"]
        widths.append(interval["high"] - interval["low"])
    assert widths[1] < widths[0]


def test_best_f1():
    true = [truth((0, *BOX), (0, *OTHER))]
    (ranking,) = match_detections(
        true, [found((0.9, 0, *BOX), (0.6, 0, *OTHER), (0.3, 0, *AWAY))], 1
    )
    threshold, f1 = ranking.find_best_f1()
    assert threshold == pytest.approx(0.6)
    assert f1 == pytest.approx(1)
    assert ranking.pr_curve()[0] == (0.5, 1.0)
    (nothing,) = match_detections(true, [found()], 1)
    assert nothing.find_best_f1() == (0.5, 0.0)


def test_confusion_with_background():
    true = [truth((0, *BOX), (1, *OTHER))]
    answers = [found((0.9, 1, *BOX), (0.8, 1, *AWAY), (0.2, 1, *OTHER))]
    matrix = count_confusions(true, answers, [0.5, 0.5])
    assert matrix.tolist() == [[0, 1, 0], [0, 0, 1], [0, 1, 0]]


def test_overlap_and_assignment():
    table = compute_iou(np.array([BOX, BOX, AWAY], float), np.array([BOX, OTHER], float))
    np.testing.assert_allclose(table, [[1, 0], [1, 0], [0, 0]])
    assert assign_boxes(table, np.array([False, False]), 0.5).tolist() == [0, -1, -1]
    assert assign_boxes(table, np.array([True, False]), 0.5).tolist() == [-2, -2, -1]
    assert assign_boxes(np.zeros((0, 2)), np.array([False, False]), 0.5).tolist() == []


def test_a_crowd_takes_in_detections_of_its_class_alike_in_every_metric():
    # A part of the crowd: of it 4 % overlap by IoU, but all of the detection lies inside.
    true = [truth((0, 0, 0, 100, 100), (0, *OTHER), ignored=[True, False])]
    answers = [found((0.9, 0, 10, 10, 30, 30), (0.8, 1, 40, 40, 60, 60), (0.7, 0, *OTHER))]
    _, per_class = compute_coco_metrics(true, answers, 2)
    assert per_class[0] == pytest.approx(1)
    first, second = match_detections(true, answers, 2)
    assert first.right.tolist() == [True]
    assert first.find_best_f1()[1] == 1
    assert second.right.tolist() == [False]
    assert estimate_ap50([first], true)["value"] == 1
    matrix = count_confusions(true, answers, [0.5, 0.5])
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_size_goes_by_the_area_that_the_file_states():
    large = (0, 0, 200, 200)
    true = truth((0, *large))
    answers = [found((0.9, 0, *large))]
    stats, _ = compute_coco_metrics([true], answers, 1)
    assert (stats["AP_small"], stats["AP_large"]) == (None, pytest.approx(1))
    # A thin thing on the diagonal fills little of its box.
    thin = true._replace(areas=np.array([500], np.float32))
    stats, _ = compute_coco_metrics([thin], answers, 1)
    assert (stats["AP_small"], stats["AP_large"]) == (pytest.approx(1), None)


def test_classes_judged_apart_are_judged_as_all_at_once(monkeypatch):
    true, answers = random_set(seed=3, images=30, classes=5)
    crowded = [boxes._replace(labels=boxes.labels % 2 * 3) for boxes in answers]
    # More of one class in an image than COCO looks at, the worst first.
    many = DetectedBoxes(
        np.tile(crowded[0].corners, (150, 1)),
        np.tile(crowded[0].labels, 150),
        np.linspace(0, 1, 150 * len(crowded[0].labels), dtype=np.float32),
    )
    answers = [many, *crowded[1:]]
    whole = compute_coco_metrics(true, answers, 5)
    monkeypatch.setattr(detection, "_BOXES_AT_ONCE", 1)
    assert compute_coco_metrics(true, answers, 5) == whole
    monkeypatch.setattr(detection, "_select_best", lambda boxes, most: boxes)
    assert compute_coco_metrics(true, answers, 5) == whole


def test_more_boxes_count_where_they_are_asked_for():
    corners = np.arange(150, dtype=np.float32)[:, None] * 20 + np.array([0, 0, 10, 10], np.float32)
    labels = np.zeros(150, np.int64)
    true = TrueBoxes(corners, labels, np.zeros(150, bool))
    answer = DetectedBoxes(corners, labels, np.linspace(1, 0.5, 150, dtype=np.float32))
    few, many = (compute_coco_metrics([true], [answer], 1, most)[0] for most in (100, 200))
    assert few["AR_100"] == pytest.approx(2 / 3, abs=0.01)
    assert many["AR_100"] == many["AP"] == pytest.approx(1)

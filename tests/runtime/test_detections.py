"""Boxes as answers: Python, COCO, supervision, pictures."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from vfm_runtime import Detections
from vfm_runtime.errors import DataError
from vfm_runtime.media.drawing import draw_boxes
from vfm_runtime.tasks.base import PredictionView
from vfm_runtime.tasks.confidence import ConfidenceRules
from vfm_runtime.tasks.detection import DetectionType

NAMES = ("ant", "bee", "cat")
BOXES = [[10, 20, 50, 60], [0, 0, 30, 15], [70, 70, 90, 99]]


def answer(scores=(0.9, 0.5, 0.1), boxes=BOXES, class_ids=(2, 0, 0)):
    return Detections.from_arrays(boxes, class_ids, scores, NAMES)


def test_labels_and_length():
    found = answer()
    assert found.labels == ["cat", "ant", "ant"]
    assert len(found) == 3
    assert repr(found) == "Detections(1 cat, 1 ant; scores of 0.3 and more)"
    assert repr(answer(scores=(0.1, 0.1, 0.1))) == "Detections(nothing; scores of 0.3 and more)"


def test_answers_cannot_be_changed_by_mistake():
    with pytest.raises(ValueError, match="read-only"):
        answer().boxes[0, 0] = 3


def test_threshold():
    assert answer().above(0.5).labels == ["cat", "ant"]
    assert len(answer().above(0.95)) == 0
    with pytest.raises(ValueError, match=r"threshold is 2\. Give a score, 0 to 1"):
        answer().above(2)


def test_plain_values():
    assert answer().to_dict(PredictionView(threshold=0.8)) == {
        "task": "detection",
        "boxes": [{"box": [10.0, 20.0, 50.0, 60.0], "label": "cat", "score": pytest.approx(0.9)}],
    }


def test_coco():
    (first, *rest) = answer().to_coco(7)
    assert first == {
        "image_id": 7,
        "category_id": 3,
        "bbox": [10.0, 20.0, 40.0, 40.0],
        "score": pytest.approx(0.9),
    }
    assert len(rest) == 2
    assert answer().to_coco(7, first_category=0)[0]["category_id"] == 2


def test_supervision(monkeypatch):
    made = SimpleNamespace(Detections=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "supervision", made)
    fields = answer().to_supervision(0.5)
    np.testing.assert_array_equal(fields["xyxy"], np.array(BOXES[:2], np.float32))
    assert fields["class_id"].tolist() == [2, 0]
    assert fields["data"]["class_name"].tolist() == ["cat", "ant"]


def test_supervision_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(
        ImportError, match=r"to_supervision needs a package: pip install supervision"
    ):
        answer().to_supervision()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"boxes": BOXES[:2]}, r"There are 3 scores, boxes of shape \[2, 4\]"),
        (
            {"scores": (0.5, float("nan"), 0.1)},
            r"NaN or infinite boxes or scores.*vfm-runtime check",
        ),
    ],
)
def test_malformed_answers(fields, match):
    with pytest.raises(ValueError, match=match):
        answer(**fields)


def test_equality():
    assert answer() == answer()
    assert answer() != answer(scores=(0.9, 0.5, 0.2))
    assert answer() != "boxes"


def test_boxes_on_the_picture():
    image = np.zeros((100, 120, 3), np.uint8)
    drawn = answer().draw(image, PredictionView(threshold=0.3))
    assert drawn.shape == image.shape
    assert not image.any()
    assert drawn[40, 10].any()  # left edge of the first box
    assert not drawn[85, 70].any()  # the third is below the threshold
    assert not drawn[40, 30].any()  # nothing inside


def test_captions_stay_in_the_picture():
    image = np.zeros((60, 60, 3), np.uint8)
    drawn = draw_boxes(image, [[50, 0, 60, 8]], captions=["a long caption"], colors=["#ff0000"])
    assert drawn[5, :20].any()


def test_draw_opens_files(tmp_path):
    Image.new("RGB", (120, 100)).save(tmp_path / "x.png")
    assert answer().draw(tmp_path / "x.png").shape == (100, 120, 3)


def test_agreement_of_the_same_boxes():
    found = answer().compare(answer(scores=(0.9004, 0.5, 0.1)))
    assert not found.changed
    assert found.difference == pytest.approx(0.0004, abs=1e-5)


def test_agreement_does_not_depend_on_the_order():
    order = [2, 0, 1]
    other = answer(
        scores=[(0.9, 0.5, 0.1)[i] for i in order],
        boxes=[BOXES[i] for i in order],
        class_ids=[(2, 0, 0)[i] for i in order],
    )
    assert answer().compare(other).changed is False
    assert answer().compare(other).difference == 0


def test_agreement_finds_a_box_that_moved():
    moved = [[12, 20, 52, 60], *BOXES[1:]]
    found = answer().compare(answer(boxes=moved))
    assert found.changed
    assert found.actual == "3 boxes, 2 of either without a partner"


def test_agreement_finds_another_class():
    assert answer().compare(answer(class_ids=(1, 0, 0))).changed


def test_agreement_of_quiet_boxes_is_not_asked_for():
    quiet = answer(scores=(0.9, 0.5, 0.01))
    moved = answer(scores=(0.9, 0.5, 0.01), boxes=[*BOXES[:2], [0, 0, 5, 5]])
    assert not quiet.compare(moved).changed


def test_agreement_of_nothing():
    nothing = Detections.from_arrays(np.zeros((0, 4)), [], [], NAMES)
    assert nothing.compare(nothing) == (0.0, False, "0 boxes", "0 boxes")
    assert answer().compare(nothing).changed


def test_coco_gets_the_ids_of_the_training_back():
    rules = {"category_ids": [3, 17, 90]}
    task = DetectionType(NAMES, rules)
    outputs = {"boxes": [BOXES], "labels": [(2, 0, 0)], "scores": [(0.9, 0.5, 0.1)]}
    (prediction,) = task.predictions({name: np.array(value) for name, value in outputs.items()})
    assert [row["category_id"] for row in prediction.above(0.2).to_coco(1)] == [90, 3]
    assert prediction.to_coco(1, first_category=0)[0]["category_id"] == 2
    assert task.rules_to_dict() == rules
    assert not list(task.describe_rules())
    both = {**ConfidenceRules(temperature=2.0).to_dict(), **rules}
    assert DetectionType(NAMES, both).rules_to_dict() == both
    assert DetectionType(NAMES, both).confidence.temperature == 2
    for wrong in ([1, 2], [1, 1, 2], [1, 2, "3"], 7):
        with pytest.raises(DataError, match="expected 3 different whole numbers, one a label"):
            DetectionType(NAMES, {"category_ids": wrong})

"""When an answer is unsure, and rules that are refused."""

import json

import numpy as np
import pytest
from vfm_runtime.tasks.confidence import ConfidenceRules

RULES = ConfidenceRules(temperature=1.5, thresholds=(0.5, 0.9), max_distance=3.0, reference=True)


def values(**changes):
    return RULES.to_dict() | changes


@pytest.mark.parametrize(
    ("label", "score", "distance", "reason"),
    [
        (0, 0.5, 3.0, None),
        (0, 0.49, 1.0, "low_score"),
        (1, 0.8, 1.0, "low_score"),
        (1, 0.9, None, None),
        (0, 0.99, 3.1, "unlike_training"),
        # Far from the training a score means nothing, so it is not the score that is to blame.
        (1, 0.1, 3.1, "unlike_training"),
    ],
)
def test_reason(label, score, distance, reason):
    assert RULES.find_reason(label, score, distance) == reason


def test_without_rules_every_answer_is_sure():
    assert ConfidenceRules().find_reason(0, 0.0, 1e9) is None
    assert not ConfidenceRules().is_unlike(1e9)


@pytest.mark.parametrize("distance", [float("nan"), float("inf")])
def test_a_distance_that_is_no_number_is_no_answer(distance):
    with pytest.raises(ValueError, match=r"NaN or infinite distances\. Check the bundle with"):
        RULES.is_unlike(distance)


def test_thresholds_of_boxes_follow_their_classes():
    classes = np.array([1, 0, 1])
    np.testing.assert_array_equal(RULES.get_thresholds(classes, 0.3), [0.9, 0.5, 0.9])
    np.testing.assert_array_equal(ConfidenceRules().get_thresholds(classes, 0.3), [0.3, 0.3, 0.3])
    assert RULES.get_thresholds(classes[:0], 0.3).shape == (0,)


def test_a_file_holds_them():
    again = ConfidenceRules.from_dict(json.loads(json.dumps(RULES.to_dict())))
    assert again == RULES
    assert hash(again) == hash(RULES)
    assert ConfidenceRules.from_dict(ConfidenceRules().to_dict()) == ConfidenceRules()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": 0}, "hold 0 as 'temperature'; expected a number above 0"),
        ({"temperature": True}, "hold True as 'temperature'"),
        ({"temperature": float("inf")}, "hold inf as 'temperature'"),
        ({"temperature": "1"}, "hold '1' as 'temperature'"),
        ({"thresholds": []}, "hold .. as 'thresholds'; expected a list of at least one number"),
        ({"thresholds": 0.5}, "hold 0.5 as 'thresholds'; expected a list"),
        ({"thresholds": [0.5, 1.1]}, "hold 1.1 as 'thresholds'; expected numbers from 0 to 1"),
        ({"thresholds": [0.5, None]}, "hold None as 'thresholds'"),
        ({"max_distance": -1}, "hold -1 as 'max_distance'; expected a number from 0 up or null"),
        ({"max_distance": "far"}, "hold 'far' as 'max_distance'"),
        ({"reference": 1}, "hold 1 as 'reference'; expected true or false"),
        ({"reference": False}, "hold 3.0 as 'max_distance'; expected null where 'reference' is"),
    ],
)
def test_values_that_cannot_be_meant(changes, said):
    with pytest.raises(ValueError, match=said):
        ConfidenceRules.from_dict(values(**changes))


def test_keys():
    missing = values()
    del missing["max_distance"]
    with pytest.raises(ValueError, match=r"have no key 'max_distance'\. Write them anew"):
        ConfidenceRules.from_dict(missing)
    with pytest.raises(ValueError, match=r"unknown key 'maxdistance'\. Known: temperature, thresh"):
        ConfidenceRules.from_dict(values(maxdistance=1))
    with pytest.raises(ValueError, match=r"are \[\]; expected an object"):
        ConfidenceRules.from_dict([])


def test_a_threshold_for_each_label():
    RULES.check_labels(["ant", "bee"])
    ConfidenceRules().check_labels(["ant"])
    with pytest.raises(ValueError, match="hold '2 numbers' as 'thresholds'; expected 3, one for"):
        RULES.check_labels(["ant", "bee", "cat"])

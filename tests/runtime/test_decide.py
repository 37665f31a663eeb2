"""From logits to an answer: means, thresholds, and when there is none."""

import json
import math

import numpy as np
import pytest
from vfm_runtime.deepfake.decision import Decision, decide
from vfm_runtime.deepfake.evidence import FrameEvidence, sigmoid
from vfm_runtime.tasks.confidence import AbstainReason


def frames(*logits, **more):
    return [FrameEvidence(frame=i, time=i / 25, logit=v, **more) for i, v in enumerate(logits)]


def video(*logits, num_asked=None, rules=None, **more):
    rules = Decision(threshold=0.0) if rules is None else rules
    return decide(frames(*logits, **more), num_asked or len(logits), True, rules)


def picture(*logits, rules=None, **more):
    found = [FrameEvidence(0, 0.0, logit, **more) for logit in logits]
    return decide(found, 1, False, Decision(threshold=0.0) if rules is None else rules)


def test_a_video_is_judged_by_its_mean_logit_not_its_mean_probability():
    verdict = video(8.0, -1.0, -1.0)
    assert verdict.logit == pytest.approx(2.0)
    assert verdict.score == pytest.approx(sigmoid(2.0))
    mean_probability = np.mean([sigmoid(v) for v in (8.0, -1.0, -1.0)])
    assert mean_probability < 0.52
    assert verdict.label == "fake"
    assert video(-8.0, 1.0, 1.0).label == "real"


def test_temperature_softens_the_score_and_moves_with_the_threshold():
    rules = Decision(temperature=4.0, threshold=1.0)
    verdict = video(3.9, rules=rules)
    assert verdict.label == "real"
    assert verdict.score == pytest.approx(sigmoid(3.9 / 4))
    assert verdict.threshold == pytest.approx(sigmoid(1.0))
    assert video(4.1, rules=rules).label == "fake"
    assert verdict.get_score(verdict.frames[0]) == pytest.approx(verdict.score)


def test_a_score_at_the_threshold_is_real():
    # The guarantee of a fitted threshold counts reals above it, not at it.
    assert video(1.5, rules=Decision(threshold=1.5)).label == "real"


def test_the_most_fake_face_of_a_frame_counts_for_it():
    both = [FrameEvidence(0, 0.0, -5.0), FrameEvidence(0, 0.0, 3.0), FrameEvidence(1, 0.1, 1.0)]
    rules = Decision(threshold=0.0)
    assert decide(both, 2, True, rules).logit == pytest.approx(2.0)
    assert decide(both, 2, True, rules, combine="mean").logit == pytest.approx(0.0)


def test_frames_without_a_face_are_no_score_but_count_as_asked():
    rules = Decision(threshold=0.0, min_frames=0.25)
    enough = decide(frames(2.0, 4.0), 8, True, rules)
    assert (enough.label, enough.logit) == ("fake", 3.0)
    few = decide(frames(2.0), 8, True, rules)
    assert (few.label, few.reason) == ("undecided", AbstainReason.TOO_FEW_FRAMES)
    assert few.explanation == "Only 1 of 8 frames can be judged; at least 25% are needed."


def test_trap_21_nothing_to_judge_is_never_a_score():
    nothing = decide([], 32, True, Decision(threshold=0.0))
    assert (nothing.label, nothing.reason) == ("undecided", AbstainReason.NO_FACE)
    assert nothing.score is None
    assert nothing.logit is None
    assert nothing.explanation == "No face was found in any of the 32 frames looked at."
    assert picture().explanation == "No face was found in the picture."
    # A rule that asks for no frames at all does not make one up either.
    assert decide([], 5, True, Decision(min_frames=0.0)).score is None


def test_small_faces_do_not_count():
    verdict = picture(9.0, face_px=30.0)
    assert (verdict.label, verdict.reason) == ("undecided", AbstainReason.FACE_TOO_SMALL)
    assert verdict.score is None
    assert verdict.explanation == (
        "Nothing in the picture can be judged: 1 face smaller than 64 pixels."
    )
    assert picture(9.0, face_px=64.0).label == "fake"
    assert len(verdict.frames) == 1
    mixed = [FrameEvidence(0, 0.0, 9.0, face_px=20.0), FrameEvidence(1, 0.1, -3.0, face_px=200.0)]
    assert decide(mixed, 2, True, Decision(threshold=0.0)).logit == -3.0


def test_blurred_crops_do_not_count():
    rules = Decision(threshold=0.0, min_sharpness=20.0)
    verdict = picture(9.0, sharpness=19.9, rules=rules)
    assert verdict.reason == AbstainReason.TOO_BLURRED
    assert verdict.explanation == "Nothing in the picture can be judged: 1 crop less sharp than 20."
    assert picture(9.0, sharpness=20.0, rules=rules).label == "fake"
    # What was not measured, as of native tiles, is not refused.
    assert picture(9.0, rules=rules).label == "fake"


def test_the_reason_of_a_video_is_the_most_common_one():
    rules = Decision(threshold=0.0, min_sharpness=20.0, min_frames=0.5)
    flawed = [
        FrameEvidence(0, 0.0, 1.0, sharpness=1.0),
        *(FrameEvidence(i, 0.1, 1.0, face_px=9.0) for i in (1, 2)),
    ]
    verdict = decide(flawed, 4, True, rules)
    assert verdict.reason == AbstainReason.FACE_TOO_SMALL
    assert verdict.explanation == (
        "Nothing in 4 frames can be judged: 2 faces smaller than 64 pixels, 1 crop less sharp than 20."
    )
    verdict = decide([*flawed, FrameEvidence(3, 0.2, 1.0)], 4, True, rules)
    assert verdict.reason == AbstainReason.TOO_FEW_FRAMES
    assert "(2 faces smaller than 64 pixels, 1 crop less sharp than 20 left out)" in (
        verdict.explanation
    )


def test_unlike_the_training_data():
    rules = Decision(threshold=0.0, max_distance=0.4)
    verdict = picture(9.0, distance=0.41, rules=rules)
    assert (verdict.label, verdict.reason) == ("undecided", AbstainReason.UNLIKE_TRAINING)
    assert verdict.score is not None
    assert verdict.explanation == (
        "This is unlike the training data: its distance is 0.410, answers are given up to 0.400."
    )
    # By the median: one odd frame does not silence a video.
    mixed = [FrameEvidence(i, 0.0, 9.0, distance=d) for i, d in enumerate((0.9, 0.1, 0.1))]
    assert decide(mixed, 3, True, rules).label == "fake"


def test_frames_that_disagree():
    rules = Decision(threshold=0.0, max_spread=2.0)
    verdict = video(6.0, -4.0, rules=rules)
    assert verdict.reason == AbstainReason.FRAMES_DISAGREE
    assert "a standard deviation of 5.00, answers are given up to 2.00" in verdict.explanation
    assert video(2.0, 1.0, rules=rules).label == "fake"
    # The faces of one picture may well differ.
    assert picture(6.0, -4.0, rules=rules).label == "fake"


def test_band_between_real_and_fake():
    rules = Decision(threshold=2.0, real_below=-1.0)
    assert picture(2.1, rules=rules).label == "fake"
    assert picture(-1.1, rules=rules).label == "real"
    for logit in (-1.0, 0.0, 2.0):
        verdict = picture(logit, rules=rules)
        assert (verdict.label, verdict.reason) == ("undecided", AbstainReason.NEAR_THRESHOLD)
        assert "lies between 0.269, below which the answer is real, and 0.881" in (
            verdict.explanation
        )


def test_trap_20_an_uncalibrated_threshold_says_so():
    verdict = picture(1.0, rules=Decision())
    assert not verdict.calibrated
    assert verdict.label == "fake"
    assert "not calibrated: 0.5 is assumed, and nothing is known of false alarms" in (
        verdict.explanation
    )
    fitted = picture(1.0, rules=Decision(threshold=0.0, fpr=0.01, num_reals=500))
    assert fitted.calibrated
    assert fitted.explanation == (
        "The score 0.731 is above the threshold 0.500. It was fitted on 500 real ones to call 1.0% of such fake."
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_answer_is_made_of_nan(bad):
    with pytest.raises(ValueError, match="The model answered with NaN or infinite logits"):
        picture(bad)
    with pytest.raises(ValueError, match="NaN or infinite logits or distances"):
        picture(1.0, distance=bad)


def test_more_frames_than_asked():
    with pytest.raises(ValueError, match="num_asked is 1, but there are crops of 2 frames"):
        video(1.0, 2.0, num_asked=1)


def test_sigmoid_at_its_ends():
    assert sigmoid(-1000.0) == 0.0
    assert sigmoid(1000.0) == 1.0
    assert sigmoid(0.0) == 0.5


def test_rules_survive_json():
    rules = Decision(
        num_frames=16,
        temperature=1.7,
        threshold=0.3,
        real_below=-0.2,
        fpr=0.01,
        num_reals=700,
        calibration="ab12",
        min_face=48.0,
        min_sharpness=5.0,
        max_distance=0.4,
        max_spread=3.0,
    )
    assert Decision.from_dict(json.loads(json.dumps(rules.to_dict()))) == rules
    assert Decision.from_dict(Decision().to_dict()) == Decision()


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"num_frames": 0}, "'num_frames' is 0; expected a whole number from 1 up"),
        ({"num_frames": 8.0}, "'num_frames' is 8.0; expected a whole number"),
        ({"temperature": 0}, "'temperature' is 0; expected a number above 0"),
        ({"temperature": math.inf}, "'temperature' is inf"),
        ({"temperature": None}, "'temperature' is None"),
        ({"threshold": math.nan}, "'threshold' is nan; expected a finite number or null"),
        ({"threshold": "0.5"}, "'threshold' is '0.5'"),
        ({"threshold": 1.0, "real_below": 1.5}, "'real_below' is 1.5; expected no more than"),
        ({"real_below": 0.5}, "'real_below' is 0.5; expected no more than the threshold, 0.0"),
        ({"fpr": 1.5}, "'fpr' is 1.5; expected a number from 0 to 1 or null"),
        ({"num_reals": True}, "'num_reals' is True"),
        ({"calibration": 3}, "'calibration' is 3; expected a string or null"),
        ({"min_face": -1}, "'min_face' is -1; expected a number from 0 up"),
        ({"min_frames": 2}, "'min_frames' is 2; expected a number from 0 to 1"),
        ({"max_spread": -0.1}, "'max_spread' is -0.1"),
    ],
)
def test_bad_rules(values, text):
    with pytest.raises(ValueError, match="The decision rules' " + text):
        Decision(**values)


def test_rules_with_other_keys():
    values = Decision().to_dict()
    with pytest.raises(ValueError, match=r"have an unknown key 'colour'. Known: num_frames, "):
        Decision.from_dict({**values, "colour": 1})
    del values["min_face"]
    with pytest.raises(ValueError, match=r"have no key 'min_face'. Write them anew"):
        Decision.from_dict(values)
    with pytest.raises(ValueError, match=r"The decision rules are \[\]; expected an object"):
        Decision.from_dict([])

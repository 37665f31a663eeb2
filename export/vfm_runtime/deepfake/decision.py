"""Decision rules of deepfake detection: calibration, thresholds, and when to abstain."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, NoReturn

import numpy as np

from vfm_runtime.deepfake.evidence import FAKE, REAL, UNDECIDED, FrameEvidence, Label, sigmoid
from vfm_runtime.deepfake.verdict import Verdict
from vfm_runtime.errors import DataError
from vfm_runtime.tasks.confidence import AbstainReason, require_finite
from vfm_runtime.validation import StoredRules, is_number, is_whole

Combine = Literal["max", "mean"]
"""How the crops of one frame become its logit: the most fake of its faces, or the mean of its tiles."""


@dataclass(frozen=True, kw_only=True)
class Decision(StoredRules):
    """The rules of an answer; part of a bundle. Checked when made."""

    title: ClassVar[str] = "decision rules"

    num_frames: int = 32
    """Frames of a video that are looked at, spread evenly."""

    temperature: float = 1.0
    """What the mean logit of a video is divided by, so that its sigmoid is a probability."""

    threshold: float | None = None
    """Calibrated logit above which the answer is fake; None, taken as 0, where none was fitted."""

    real_below: float | None = None
    """Calibrated logit below which the answer is real, and undecided up to `threshold`; None for no such band."""

    fpr: float | None = None
    """Fraction of real videos that `threshold` was fitted to call fake, 0 to 1."""

    num_reals: int | None = None
    """Real videos that `threshold` was fitted on."""

    calibration: str | None = None
    """Fingerprint of the data that `temperature` and `threshold` were fitted on."""

    min_face: float = 64.0
    """Least side of a face in pixels of the frame; smaller ones do not count."""

    min_frames: float = 0.25
    """Least fraction of the frames of a video that must count."""

    min_sharpness: float | None = None
    """Least sharpness of a crop that counts, in the unit of `vfm_runtime.deepfake.faces.quality.measure_sharpness`."""

    max_distance: float | None = None
    """Largest distance from the training data, by the median over the crops."""

    max_spread: float | None = None
    """Largest standard deviation of the logits of a video's frames."""

    def __post_init__(self) -> None:
        for name, (expected, is_valid, optional) in _VALUES.items():
            value = getattr(self, name)
            if not (optional and value is None) and not is_valid(value):
                _refuse(name, value, f"{expected} or null" if optional else expected)
        if self.real_below is not None and self.real_below > self.limit:
            _refuse("real_below", self.real_below, f"no more than the threshold, {self.limit}")

    @property
    def limit(self) -> float:
        """Calibrated logit above which the answer is fake."""
        return 0.0 if self.threshold is None else self.threshold


def decide(
    frames: Sequence[FrameEvidence],
    num_asked: int,
    is_video: bool,
    rules: Decision,
    *,
    combine: Combine = "max",
    notes: Sequence[str] = (),
) -> Verdict:
    """Answer for a picture or a video from what the model says of its crops.

    The score of a video is the sigmoid of the mean logit over its frames, divided by the temperature.

    Args:
        frames: One entry a crop; those of one frame share `frame`. A frame in which there was nothing to cut has none.
        num_asked: Frames that were looked at; 1 for a picture.
        is_video: Whether the rules for videos apply (`min_frames`, `max_spread`).
        rules: Thresholds and limits of the model.
        combine: How the crops of one frame become its logit.
        notes: What is unusual about the video, passed on to the verdict.

    Raises:
        ValueError: A logit is not finite, or `num_asked` is below the number of frames.
    """
    _check_evidence(frames, num_asked)
    flaws = [_find_flaw(frame, rules) for frame in frames]
    good = [frame for frame, flaw in zip(frames, flaws, strict=True) if flaw is None]
    causes = Counter(flaw for flaw in flaws if flaw is not None)
    groups: dict[int, list[float]] = {}
    for frame in good:
        groups.setdefault(frame.frame, []).append(frame.logit)
    join = max if combine == "max" else np.mean
    logits = [float(join(group)) for group in groups.values()]
    logit = float(np.mean(logits)) if logits else None
    value = None if logit is None else logit / rules.temperature
    outcome = _find_unusable(len(logits), num_asked, is_video, causes, rules)
    if value is not None:
        outcome = (
            outcome or _find_doubt(good, logits, is_video, rules) or _compare_limits(value, rules)
        )
    assert outcome is not None  # without a logit nothing is usable
    return Verdict(
        label=outcome.label,
        reason=outcome.reason,
        explanation=outcome.text,
        score=None if value is None else sigmoid(value),
        logit=logit,
        temperature=rules.temperature,
        threshold=sigmoid(rules.limit),
        calibrated=rules.threshold is not None,
        frames=tuple(frames),
        num_asked=num_asked,
        is_video=is_video,
        num_frames=rules.num_frames if is_video else 1,
        notes=tuple(notes),
    )


class _Outcome(NamedTuple):
    label: Label
    reason: AbstainReason | None
    text: str


_WORDS = {
    AbstainReason.FACE_TOO_SMALL: "face{s} smaller than {rules.min_face:g} pixels",
    AbstainReason.TOO_BLURRED: "crop{s} less sharp than {rules.min_sharpness:g}",
}

# What each rule holds: in words, as a test, and whether it may be None.
_COUNT = "a whole number from 1 up", lambda value: is_whole(value) and value >= 1
_FINITE = "a finite number", is_number
_UP = "a number from 0 up", lambda value: is_number(value) and value >= 0
_FRACTION = "a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1
_VALUES: dict[str, tuple[str, Callable[[Any], bool], bool]] = {
    "num_frames": (*_COUNT, False),
    "temperature": ("a number above 0", lambda value: is_number(value) and value > 0, False),
    "threshold": (*_FINITE, True),
    "real_below": (*_FINITE, True),
    "fpr": (*_FRACTION, True),
    "num_reals": (*_COUNT, True),
    "calibration": ("a string", lambda value: isinstance(value, str), True),
    "min_face": (*_UP, False),
    "min_frames": (*_FRACTION, False),
    "min_sharpness": (*_UP, True),
    "max_distance": (*_UP, True),
    "max_spread": (*_UP, True),
}


def _check_evidence(frames: Sequence[FrameEvidence], num_asked: int) -> None:
    require_finite("logits or distances", [(frame.logit, frame.distance) for frame in frames])
    num_judged = len({frame.frame for frame in frames})
    if num_asked < max(1, num_judged):
        raise DataError(
            f"num_asked is {num_asked}, but there are crops of {num_judged} frames. "
            "Give the number of frames that were looked at, at least 1."
        )


def _find_flaw(frame: FrameEvidence, rules: Decision) -> AbstainReason | None:
    if frame.face_px is not None and frame.face_px < rules.min_face:
        return AbstainReason.FACE_TOO_SMALL
    least = rules.min_sharpness
    if least is not None and frame.sharpness is not None and frame.sharpness < least:
        return AbstainReason.TOO_BLURRED
    return None


def _find_unusable(
    num_good: int, num_asked: int, is_video: bool, causes: Counter[AbstainReason], rules: Decision
) -> _Outcome | None:
    if num_good == 0 and not causes:
        where = f"any of the {num_asked} frames looked at" if is_video else "the picture"
        return _abstain(AbstainReason.NO_FACE, f"No face was found in {where}.")
    flaws = [
        f"{count} {_WORDS[reason].format(s='s' * (count > 1), rules=rules)}"
        for reason, count in causes.most_common()
    ]
    if num_good == 0:
        where = f"in {num_asked} frames" if is_video else "in the picture"
        text = f"Nothing {where} can be judged: {', '.join(flaws)}."
        return _abstain(causes.most_common()[0][0], text)
    if is_video and num_good < rules.min_frames * num_asked:
        but = f" ({', '.join(flaws)} left out)" if flaws else ""
        text = f"Only {num_good} of {num_asked} frames can be judged{but}"
        return _abstain(
            AbstainReason.TOO_FEW_FRAMES, f"{text}; at least {rules.min_frames:.0%} are needed."
        )
    return None


def _find_doubt(
    good: Sequence[FrameEvidence], logits: Sequence[float], is_video: bool, rules: Decision
) -> _Outcome | None:
    distance = float(np.median([frame.distance for frame in good]))
    if rules.max_distance is not None and distance > rules.max_distance:
        text = (
            f"This is unlike the training data: its distance is {distance:.3f}, answers are given "
            f"up to {rules.max_distance:.3f}."
        )
        return _abstain(AbstainReason.UNLIKE_TRAINING, text)
    spread = float(np.std(logits))
    if is_video and rules.max_spread is not None and spread > rules.max_spread:
        text = (
            f"The frames disagree: their logits have a standard deviation of {spread:.2f}, "
            f"answers are given up to {rules.max_spread:.2f}. A part of the video may be forged."
        )
        return _abstain(AbstainReason.FRAMES_DISAGREE, text)
    return None


def _compare_limits(value: float, rules: Decision) -> _Outcome:
    score, limit, basis = sigmoid(value), sigmoid(rules.limit), ""
    if rules.threshold is None:
        basis = " The threshold is not calibrated: 0.5 is assumed, and nothing is known of false alarms."
    elif rules.fpr is not None and rules.num_reals is not None:
        basis = (
            f" It was fitted on {rules.num_reals} real ones to call {rules.fpr:.1%} of such fake."
        )
    if value > rules.limit:
        return _Outcome(
            FAKE, None, f"The score {score:.3f} is above the threshold {limit:.3f}.{basis}"
        )
    if rules.real_below is None:
        return _Outcome(
            REAL, None, f"The score {score:.3f} is not above the threshold {limit:.3f}.{basis}"
        )
    lower = sigmoid(rules.real_below)
    if value < rules.real_below:
        return _Outcome(
            REAL, None, f"The score {score:.3f} is below {lower:.3f}, the limit of real.{basis}"
        )
    text = (
        f"The score {score:.3f} lies between {lower:.3f}, below which the answer is real, "
        f"and {limit:.3f}, above which it is fake.{basis}"
    )
    return _abstain(AbstainReason.NEAR_THRESHOLD, text)


def _abstain(reason: AbstainReason, text: str) -> _Outcome:
    return _Outcome(UNDECIDED, reason, text)


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    raise DataError(f"The decision rules' '{name}' is {value!r}; expected {expected}.")

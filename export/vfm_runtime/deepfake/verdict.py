"""The answer of a model that tells real from fake: real, fake, or undecided with the reason."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.media.image import ImageSource

REAL: Final = "real"
FAKE: Final = "fake"
UNDECIDED: Final = "undecided"

VERDICT_LABELS = (REAL, FAKE)
"""The classes of a deepfake model, in this order; fake is 1, and a logit above 0 speaks for it."""

Label = Literal["real", "fake", "undecided"]


def sigmoid(logit: float) -> float:
    """Probability of a logit; it overflows at neither end.

    Args:
        logit: Any finite number.
    """
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)


class Reason(StrEnum):
    """Why there is no decision."""

    NO_FACE = "no_face"
    """No frame shows a face."""
    FACE_TOO_SMALL = "face_too_small"
    """Faces are there, but too small to be judged."""
    TOO_BLURRED = "too_blurred"
    """Faces are there, but too blurred to be judged."""
    TOO_FEW_FRAMES = "too_few_frames"
    """Too small a share of the frames of a video can be judged."""
    UNLIKE_TRAINING = "unlike_training"
    """What is shown lies far from everything that the model has learnt from."""
    FRAMES_DISAGREE = "frames_disagree"
    """Some frames of a video look real, others fake."""
    NEAR_THRESHOLD = "near_threshold"
    """The score lies between that of a real one and that of a fake."""


class FrameEvidence(NamedTuple):
    """What the model says about one crop of a picture or of a video's frame."""

    frame: int
    """Number of the frame in the video, from 0 in the order of display; crops of one frame share it."""
    time: float
    """Of the frame in seconds; 0 for a picture."""
    logit: float
    """Of being fake, before any temperature."""
    distance: float = 0.0
    """Of its feature from those of the training data."""
    heatmap: NDArray[np.float32] | None = None
    """[h, w], 0 to 1: where the crop looks forged."""
    box: NDArray[np.float32] | None = None
    """[4], left, top, right, bottom of the face in pixels of the frame; None where none was looked for."""
    face_px: float | None = None
    """Side of the face in pixels of the frame; None where none was looked for."""
    sharpness: float | None = None
    """Of the crop, as `vfm_runtime.deepfake.faces.quality.blur` gives it; None where it was not measured."""
    matrix: NDArray[np.float64] | None = None
    """[2, 3], from pixels of the frame to pixels of the crop."""
    size: int = 0
    """Side of the crop in pixels."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold; without the heatmap."""
        return {
            "frame": self.frame,
            "time": self.time,
            "logit": self.logit,
            "distance": self.distance,
            "box": None if self.box is None else self.box.tolist(),
            "face_px": self.face_px,
            "sharpness": self.sharpness,
        }


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Verdict:
    """Whether a picture or a video is real or fake."""

    label: Label
    """`real`, `fake` or `undecided`."""

    reason: Reason | None
    """Why it is undecided; None where it is decided."""

    explanation: str
    """One or two sentences for the reader: what was decided, on what grounds, and how sure the rule is."""

    score: float | None
    """Calibrated probability of fake, 0 to 1; None where nothing could be judged, which is no score at all."""

    logit: float | None
    """Mean logit over the frames that can be judged, before the temperature; None as `score`."""

    temperature: float
    """What a logit is divided by before its sigmoid is a score."""

    threshold: float
    """Score above which the answer is fake."""

    calibrated: bool
    """Whether the threshold was fitted on real data; 0.5 is assumed where it was not."""

    frames: tuple[FrameEvidence, ...]
    """Everything the model has looked at, also what was too small or too blurred to count."""

    num_asked: int = 1
    """Frames that were looked at for a face; 1 for a picture."""

    is_video: bool = False

    num_frames: int = 1
    """Frames that were asked of the video; a shorter one has fewer, and repeated ones are left out."""

    notes: tuple[str, ...] = ()
    """What the reader of the video had to say, such as that its end is missing."""

    def score_of(self, frame: FrameEvidence) -> float:
        """Calibrated probability of fake by one crop alone.

        Args:
            frame: One of `frames`.
        """
        return sigmoid(frame.logit / self.temperature)

    def to_dict(self) -> dict[str, Any]:
        """Return the answer as plain values that JSON can hold; without the heatmaps."""
        return {
            "label": self.label,
            "reason": None if self.reason is None else self.reason.value,
            "explanation": self.explanation,
            "score": self.score,
            "logit": self.logit,
            "threshold": self.threshold,
            "calibrated": self.calibrated,
            "is_video": self.is_video,
            "num_asked": self.num_asked,
            "frames": [{**f.to_dict(), "score": self.score_of(f)} for f in self.frames],
            "notes": list(self.notes),
        }

    def draw(self, source: ImageSource) -> NDArray[np.uint8]:
        """Draw where it looks forged: over the picture, or over the crops of a video, frame by frame.

        Args:
            source: What was judged, as for `predict`; it is opened once more.

        Returns:
            uint8 [H, W, 3].
        """
        from vfm_runtime.deepfake.heatmap import draw_picture, draw_video

        return draw_video(self, source) if self.is_video else draw_picture(self, source)

    @property
    def headline(self) -> str:
        """The answer in a line: label, score and reason."""
        score = "" if self.score is None else f" {self.score:.4f}"
        return f"{self.label}{score}{'' if self.reason is None else f' ({self.reason.value})'}"

    def _values(self) -> Iterator[object]:
        yield from (self.label, self.reason, self.score, self.logit, self.threshold)
        yield from (
            self.calibrated,
            self.num_asked,
            self.num_frames,
            self.is_video,
            self.notes,
            len(self.frames),
        )
        for frame in self.frames:
            yield from (None if v is None else np.asarray(v).tolist() for v in frame)

    def __repr__(self) -> str:
        why = "" if self.reason is None else f", {self.reason.value}"
        score = "no score" if self.score is None else f"{self.score:.3f}"
        return f"Verdict({self.label!r}{why}, {score}, {len(self.frames)} crops)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Verdict):
            return NotImplemented
        return list(self._values()) == list(other._values())

    # Equal by arrays of floats, so not a sensible key of a dict.
    __hash__ = None  # type: ignore[assignment]

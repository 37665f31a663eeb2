"""Verdict of deepfake detection: real, fake, or undecided with the reason."""

from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import numpy as np

from vfm_runtime.deepfake.evidence import FrameEvidence, Label, sigmoid
from vfm_runtime.deepfake.heatmap import COLORS, add_banner, draw_picture, draw_video
from vfm_runtime.errors import OptionError
from vfm_runtime.media.image import ImageSource, Pixels
from vfm_runtime.tasks.base import Agreement, Prediction, PredictionView, find_largest_difference
from vfm_runtime.tasks.confidence import AbstainReason
from vfm_runtime.tasks.groups import GroupChoice

TASK: Final = "deepfake"
"""Name of the task, as bundles and answers have it."""


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Verdict(Prediction):
    """Whether a picture or a video is real or fake."""

    label: Label
    """`real`, `fake` or `undecided`."""

    reason: AbstainReason | None = None
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

    group: GroupChoice | None = None
    """Group that it is of, and whose rules hold; None of a model without rules by group."""

    def get_score(self, frame: FrameEvidence) -> float:
        """Calibrated probability of fake by one crop of `frames` alone."""
        return sigmoid(frame.logit / self.temperature)

    @property
    def task(self) -> str:
        """`deepfake`."""
        return TASK

    @property
    def is_empty(self) -> bool:
        """Whether no crop could be cut out."""
        return not self.frames

    def to_dict(self, view: PredictionView = PredictionView()) -> dict[str, Any]:
        """Return the verdict as plain values that JSON can hold; without the heatmaps."""
        return {
            "task": self.task,
            "label": self.label,
            "reason": None if self.reason is None else self.reason.value,
            "explanation": self.explanation,
            "score": self.score,
            "logit": self.logit,
            "threshold": self.threshold,
            "calibrated": self.calibrated,
            "is_video": self.is_video,
            "num_asked": self.num_asked,
            "frames": [{**f.to_dict(), "score": self.get_score(f)} for f in self.frames],
            "notes": list(self.notes),
            **({} if self.group is None else self.group.to_dict()),
        }

    def headline(self, view: PredictionView = PredictionView()) -> str:
        """Return label, score and reason in a line."""
        score = "" if self.score is None else f" {self.score:.4f}"
        return f"{self.label}{score}{'' if self.reason is None else f' ({self.reason.value})'}"

    def lines(self, view: PredictionView = PredictionView()) -> list[str]:
        """Return the headline, what was decided on what grounds, and what is unusual about the video."""
        group = [] if self.group is None else [f"By {self.group}."]
        return [f"{self.headline()}. {' '.join([self.explanation, *group, *self.notes])}"]

    def draw(self, source: ImageSource, view: PredictionView = PredictionView()) -> Pixels:
        """Draw where it looks forged: over the picture, or over the crops of a video, frame by frame.

        Args:
            source: What was judged, as for `predict`; it is opened once more.
            view: Longest side of the picture; crops of a video are small anyway.

        Returns:
            uint8 [H, W, 3].

        Raises:
            ImageError: It cannot be opened.
            ValueError: An image is given, and the verdict is of a video.
        """
        scores = [self.get_score(frame) for frame in self.frames]
        if self.is_video:
            drawn = draw_video(source, self.frames, scores, self.num_frames)
        else:
            color = COLORS[self.label]
            drawn = draw_picture(source, self.frames, scores, color, view.max_side)
        return add_banner(drawn, self.headline(), COLORS[self.label])

    def compare(self, other: Self, *, approximate: bool = False) -> Agreement:
        """Compare the score, and crop by crop its probability and its heatmap."""
        names = [
            v.label if v.reason is None else f"{v.label} ({v.reason.value})" for v in (self, other)
        ]
        changed = names[0] != names[1] or (self.score is None) != (other.score is None)
        shapes = [
            [f.heatmap is not None and f.heatmap.shape for f in v.frames] for v in (self, other)
        ]
        if shapes[0] != shapes[1]:
            counts = [len(verdict.frames) for verdict in (self, other)]
            names = [f"{name}, {n} crops" for name, n in zip(names, counts, strict=True)]
            return Agreement(0.0, True, *names)
        differences = [0.0]
        if self.score is not None and other.score is not None:
            differences.append(abs(self.score - other.score))
        for ours, theirs in zip(self.frames, other.frames, strict=True):
            differences.append(abs(self.get_score(ours) - other.get_score(theirs)))
            if ours.heatmap is not None and theirs.heatmap is not None:
                differences.append(float(np.abs(ours.heatmap - theirs.heatmap).max(initial=0)))
        return Agreement(find_largest_difference(*differences), changed, *names)

    def to_golden(self) -> dict[str, Any]:
        """Return the verdict of one crop, with what the model said of it.

        Raises:
            ValueError: It is not that of one crop.
        """
        heatmaps = [frame.heatmap for frame in self.frames]
        if len(heatmaps) != 1 or heatmaps[0] is None:
            raise OptionError(
                f"A golden answer is that of one crop; this verdict is of {len(heatmaps)} crops. "
                "Take predict(crop, cropped=True)."
            )
        (frame,) = self.frames
        return {
            "label": self.label,
            "reason": None if self.reason is None else self.reason.value,
            "score": self.score,
            "logits": frame.logit,
            "heatmaps": heatmaps[0].tolist(),
            "distances": frame.distance,
        }

    def _list_values(self) -> dict[str, Any]:
        """Everything that makes two verdicts equal: all but how it is explained and scaled."""
        frames = [[v if v is None else np.asarray(v).tolist() for v in f] for f in self.frames]
        return {**vars(self), "explanation": None, "temperature": None, "frames": frames}

    def __repr__(self) -> str:
        why = "" if self.reason is None else f", {self.reason.value}"
        score = "no score" if self.score is None else f"{self.score:.3f}"
        return f"Verdict({self.label!r}{why}, {score}, {len(self.frames)} crops)"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Verdict):
            return NotImplemented
        return self._list_values() == other._list_values()

    # Equal by arrays of floats, so not a sensible key of a dict.
    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class FrameAnswer:
    """Plain values of one crop of a `Verdict`."""

    frame: int
    time: float
    logit: float
    distance: float
    box: list[float] | None
    face_px: float | None
    sharpness: float | None
    score: float


@dataclass(frozen=True)
class VerdictAnswer:
    """Plain values of a `Verdict`."""

    task: Literal["deepfake"]
    label: Label
    reason: AbstainReason | None
    explanation: str
    score: float | None
    logit: float | None
    threshold: float
    calibrated: bool
    is_video: bool
    num_asked: int
    frames: list[FrameAnswer]
    notes: list[str]
    group: str | None = None
    group_rule: Literal["own", "general"] | None = None

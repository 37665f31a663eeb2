"""From a picture or a video to crops, and from what a model says of them to a verdict."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm_runtime.deepfake.decision import Decision, decide
from vfm_runtime.deepfake.faces.crop import Crop, CropSpec, cut
from vfm_runtime.deepfake.faces.detector import FaceDetector, load_detector
from vfm_runtime.deepfake.faces.quality import measure
from vfm_runtime.deepfake.verdict import FrameEvidence, Verdict
from vfm_runtime.media.image import ImageError, ImageSource, Pixels, open_image
from vfm_runtime.media.video import LIMITS, VideoLimits, is_video, read_video

Look = Callable[[Sequence[Pixels]], Mapping[str, NDArray[Any]]]
"""Asks a model about crops: `logits` [n], `heatmaps` [n, h, w] and `distances` [n]."""


class Piece(NamedTuple):
    """One crop to be judged, and where it is from."""

    crop: Crop
    frame: int
    """Number of its frame in the video; 0 of a picture."""
    time: float
    """Of its frame in seconds."""


class Evidence(NamedTuple):
    """What there is to be judged of one picture or video; it may be nothing."""

    pieces: list[Piece]
    spec: CropSpec
    """How the crops were made."""
    num_asked: int
    """Frames that were looked at."""
    is_video: bool
    notes: list[str]
    """What is unusual about the video."""

    @property
    def crops(self) -> list[Pixels]:
        """The crops, uint8 [size, size, 3] each."""
        return [piece.crop.pixels for piece in self.pieces]


class Judge:
    """How a deepfake model is asked and how it answers; the same in training's evaluation and in production.

    Attributes:
        crop: How crops are made.
        decision: The rules of the answer.
    """

    def __init__(
        self,
        crop: CropSpec,
        decision: Decision,
        *,
        detector: FaceDetector | None = None,
        limits: VideoLimits = LIMITS,
    ) -> None:
        """Take the model's specification; a detector is loaded when the first face is looked for.

        Args:
            crop: How crops are made.
            decision: The rules of the answer.
            detector: Finds faces; None for the one that `crop` names.
            limits: What a video may cost.
        """
        self.crop = crop
        self.decision = decision
        self._detector = detector
        self._limits = limits

    def evidence(self, source: ImageSource, *, cropped: bool = False) -> Evidence:
        """Open a picture or a video and cut out what is to be judged.

        Args:
            source: A path or the bytes of an image or a video, a uint8 array or an image of Pillow.
            cropped: Whether it shows one face crop already, made by this specification.

        Raises:
            ImageError: It cannot be opened; of a video, a `VideoError`.
        """
        spec = replace(self.crop, source="cropped") if cropped else self.crop
        detector = self._find() if spec.source == "faces" else None
        if isinstance(source, np.ndarray | Image.Image) or not is_video(source):
            crops = cut(open_image(source), spec, detector)
            return Evidence([Piece(crop, 0, 0.0) for crop in crops], spec, 1, False, [])
        clip = read_video(source, self.decision.num_frames, self._limits)
        pieces = [
            Piece(crop, number, frame.time)
            for number, frame in enumerate(clip.frames)
            for crop in cut(frame.pixels, spec, detector)
        ]
        return Evidence(pieces, spec, len(clip.frames), True, list(clip.warnings))

    def verdict(self, evidence: Evidence, outputs: Mapping[str, NDArray[Any]]) -> Verdict:
        """Answer from what the model says of the crops.

        Args:
            evidence: What `evidence` gave.
            outputs: `logits` [n], `heatmaps` [n, h, w] and `distances` [n] of its n crops.

        Raises:
            ValueError: The numbers of crops differ, or a logit is not finite.
        """
        rows = zip(
            evidence.pieces,
            outputs["logits"].tolist(),
            outputs["distances"].tolist(),
            outputs["heatmaps"],
            strict=True,
        )
        frames = [_frame(evidence.spec, *row) for row in rows]
        # A face that fills the crop at the crop's own resolution is as large as any in training.
        least = min(self.decision.min_face, self.crop.size / self.crop.margin)
        return decide(
            frames,
            evidence.num_asked,
            evidence.is_video,
            replace(self.decision, min_face=least),
            combine="mean" if self.crop.source == "native" else "max",
            notes=evidence.notes,
        )

    def bare(self, outputs: Mapping[str, NDArray[Any]]) -> Iterator[Verdict]:
        """Answer for crops of which nothing else is known, each on its own; no rule of quality applies.

        Args:
            outputs: `logits` [n], `heatmaps` [n, h, w] and `distances` [n].

        Raises:
            ValueError: A logit is not finite.
        """
        names = ("logits", "distances", "heatmaps")
        for logit, distance, heatmap in zip(*(outputs[name] for name in names), strict=True):
            frame = FrameEvidence(0, 0.0, float(logit), float(distance), heatmap)
            yield decide([frame], 1, False, self.decision)

    def _find(self) -> FaceDetector:
        if self._detector is None:
            self._detector = load_detector(self.crop.detector)
        return self._detector


def judge_each(
    judge: Judge,
    sources: Iterable[ImageSource],
    look: Look,
    *,
    batch_size: int,
    cropped: bool = False,
    keep_errors: bool = False,
) -> Iterator[Verdict | ImageError]:
    """Answer for pictures and videos in turn; the crops of several go through the model together.

    Args:
        judge: Cuts and decides.
        sources: As for `Judge.evidence`.
        look: Asks the model; it is given `batch_size` crops at most.
        batch_size: Crops that go through the model at once.
        cropped: As for `Judge.evidence`.
        keep_errors: Whether what cannot be opened gives its error in its place, or raises it.
    """
    waiting: list[Evidence | ImageError] = []
    num_crops = 0
    for index, source in enumerate(sources):
        try:
            evidence = judge.evidence(source, cropped=cropped)
            num_crops += len(evidence.pieces)
            waiting.append(evidence)
        except ImageError as error:
            if not keep_errors:
                error.add_note(f"It is number {index + 1} of those given.")
                raise
            waiting.append(error)
        if num_crops >= batch_size:
            yield from _answer(judge, waiting, look, batch_size)
            waiting, num_crops = [], 0
    yield from _answer(judge, waiting, look, batch_size)


def _answer(
    judge: Judge, waiting: Sequence[Evidence | ImageError], look: Look, batch_size: int
) -> Iterator[Verdict | ImageError]:
    crops = [crop for item in waiting if isinstance(item, Evidence) for crop in item.crops]
    parts = [look(crops[at : at + batch_size]) for at in range(0, len(crops), batch_size)]
    at = 0
    for item in waiting:
        if isinstance(item, ImageError):
            yield item
            continue
        end = at + len(item.pieces)
        yield judge.verdict(item, _slice(parts, at, end))
        at = end


def _slice(
    parts: Sequence[Mapping[str, NDArray[Any]]], start: int, end: int
) -> dict[str, NDArray[Any]]:
    if start == end:
        return {name: np.zeros(0, np.float32) for name in ("logits", "heatmaps", "distances")}
    return {name: np.concatenate([part[name] for part in parts])[start:end] for name in parts[0]}


def _frame(
    spec: CropSpec, piece: Piece, logit: float, distance: float, heatmap: NDArray[np.float32]
) -> FrameEvidence:
    crop = piece.crop
    quality = measure(crop, spec)
    return FrameEvidence(
        frame=piece.frame,
        time=piece.time,
        logit=logit,
        distance=distance,
        heatmap=np.asarray(heatmap, np.float32),
        box=None if crop.face is None else crop.face.box.astype(np.float32),
        face_px=quality.face_px,
        sharpness=quality.sharpness,
        matrix=crop.matrix,
        size=len(crop.pixels),
    )

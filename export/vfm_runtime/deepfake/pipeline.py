"""Deepfake pipeline: from a picture or a video to crops, and from what a model says of them to a verdict."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm_runtime.deepfake.decision import Decision, decide
from vfm_runtime.deepfake.evidence import FrameEvidence
from vfm_runtime.deepfake.faces.crop import Crop, CropSpec, cut_crops
from vfm_runtime.deepfake.faces.detector import load_detector
from vfm_runtime.deepfake.faces.face import FaceDetector
from vfm_runtime.deepfake.faces.quality import measure_quality
from vfm_runtime.deepfake.verdict import Verdict
from vfm_runtime.media.image import ImageSource, Pixels, open_image
from vfm_runtime.media.video import LIMITS, VideoLimits, is_video, read_video


class FaceCrop(NamedTuple):
    """One crop to be judged, and where it is from."""

    crop: Crop
    frame: int
    """Number of its frame in the video; 0 for a picture."""
    time: float
    """Time of its frame in seconds."""


class CropEvidence(NamedTuple):
    """What there is to be judged of one picture or video; it may be nothing."""

    crops: list[FaceCrop]
    spec: CropSpec
    """How the crops were made."""
    num_asked: int
    """Frames that were looked at."""
    is_video: bool
    notes: list[str]
    """What is unusual about the video."""

    @property
    def pixels(self) -> list[Pixels]:
        """Pixels of the crops, uint8 [size, size, 3] each."""
        return [face.crop.pixels for face in self.crops]


class DeepfakePipeline:
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
    ) -> None:
        """Take the model's specification; the detector it names is loaded when the first face is looked for."""
        self.crop = crop
        self.decision = decision
        self._detector = detector

    def with_decision(self, decision: Decision) -> "DeepfakePipeline":
        """Return the same pipeline, with its detector, by other rules of the answer."""
        return DeepfakePipeline(self.crop, decision, detector=self._detector)

    def collect_evidence(
        self, source: ImageSource, *, cropped: bool = False, limits: VideoLimits = LIMITS
    ) -> CropEvidence:
        """Open a picture or a video and cut out what is to be judged.

        Args:
            source: A path or the bytes of an image or a video, a uint8 array or an image of Pillow.
            cropped: Whether it shows one face crop already, made by this specification.
            limits: What a video may cost.

        Raises:
            ImageError: It cannot be opened; of a video, a `VideoError`.
        """
        spec = replace(self.crop, source="cropped") if cropped else self.crop
        if spec.source == "faces" and self._detector is None:
            self._detector = load_detector(self.crop.detector)
        detector = self._detector
        if isinstance(source, np.ndarray | Image.Image) or not is_video(source):
            faces = [
                FaceCrop(crop, 0, 0.0) for crop in cut_crops(open_image(source), spec, detector)
            ]
            return CropEvidence(faces, spec, 1, False, [])
        clip = read_video(source, self.decision.num_frames, limits)
        faces = [
            FaceCrop(crop, number, frame.time)
            for number, frame in enumerate(clip.frames)
            for crop in cut_crops(frame.pixels, spec, detector)
        ]
        return CropEvidence(faces, spec, len(clip.frames), True, list(clip.warnings))

    def judge_evidence(
        self, evidence: CropEvidence, outputs: Mapping[str, NDArray[Any]]
    ) -> Verdict:
        """Answer from what the model says of the crops.

        Args:
            evidence: Crops of the picture or video, as `collect_evidence` returns them.
            outputs: `logits` [n], `heatmaps` [n, h, w] and `distances` [n] of its n crops.

        Raises:
            ValueError: The numbers of crops differ, or a logit is not finite.
        """
        rows = zip(
            evidence.crops,
            outputs["logits"].tolist(),
            outputs["distances"].tolist(),
            outputs["heatmaps"],
            strict=True,
        )
        frames = []
        for face, logit, distance, heatmap in rows:
            crop = face.crop
            quality = measure_quality(crop, evidence.spec)
            frames.append(
                FrameEvidence(
                    frame=face.frame,
                    time=face.time,
                    logit=logit,
                    distance=distance,
                    heatmap=np.asarray(heatmap, np.float32),
                    box=None if crop.face is None else crop.face.box.astype(np.float32),
                    face_px=quality.face_px,
                    sharpness=quality.sharpness,
                    matrix=crop.matrix,
                    size=len(crop.pixels),
                )
            )
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

    def judge_crops(self, outputs: Mapping[str, NDArray[Any]]) -> Iterator[Verdict]:
        """Answer for n crops of which nothing else is known, each on its own; no rule of quality applies.

        Raises:
            ValueError: A logit is not finite.
        """
        names = ("logits", "distances", "heatmaps")
        for logit, distance, heatmap in zip(*(outputs[name] for name in names), strict=True):
            frame = FrameEvidence(0, 0.0, float(logit), float(distance), heatmap)
            yield decide([frame], 1, False, self.decision)

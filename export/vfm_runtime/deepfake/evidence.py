"""Evidence of deepfake detection: what a model says of each crop, and the labels of its verdicts."""

import math
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

REAL: Final = "real"
FAKE: Final = "fake"
UNDECIDED: Final = "undecided"

VERDICT_LABELS = (REAL, FAKE)
"""The classes of a deepfake model, in this order; fake is 1, and a logit above 0 speaks for it."""

Label = Literal["real", "fake", "undecided"]


def sigmoid(logit: float) -> float:
    """Return the probability of a logit; it overflows at neither end."""
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1 + power)


class FrameEvidence(NamedTuple):
    """What the model says about one crop of a picture or of a video's frame."""

    frame: int
    """Number of the frame in the video, from 0 in the order of display; crops of one frame share it."""
    time: float
    """Time of the frame in seconds; 0 for a picture."""
    logit: float
    """Logit of being fake, before any temperature."""
    distance: float = 0.0
    """Distance of its feature from those of the training data."""
    heatmap: NDArray[np.float32] | None = None
    """[h, w], 0 to 1: where the crop looks forged."""
    box: NDArray[np.float32] | None = None
    """[4], left, top, right, bottom of the face in pixels of the frame; None where none was looked for."""
    face_px: float | None = None
    """Side of the face in pixels of the frame; None where none was looked for."""
    sharpness: float | None = None
    """Sharpness of the crop by `vfm_runtime.deepfake.faces.quality.measure_sharpness`; None where not measured."""
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

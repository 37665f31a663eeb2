"""Quality of a face crop: how large the face was, how sharp it is, how sure the detector was."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from vfm_runtime.deepfake.faces.crop import Crop, CropSpec
from vfm_runtime.media.image import Pixels

_SIDE = 128


class CropQuality(NamedTuple):
    """What is known about a crop besides its pixels."""

    face_px: float | None
    """Side of the face in pixels of the image; None for `native`, where no face is looked for."""

    sharpness: float
    """Variance of the Laplacian; below about 10 for what is out of focus or much enlarged."""

    score: float | None
    """How sure the detector is, 0 to 1; None where no face was looked for."""


def measure_quality(crop: Crop, spec: CropSpec) -> CropQuality:
    """Measure a crop that was made by a specification.

    The size of the face is that of the crop at margin 1 in pixels of the image: it follows the
    distances between the landmarks, and holds for declared crops as well.
    """
    side = None
    if spec.source != "native":
        scale = float(np.sqrt(abs(np.linalg.det(crop.matrix[:, :2]))))
        side = spec.size / scale / spec.margin
    return CropQuality(side, measure_sharpness(crop.pixels), crop.face.score if crop.face else None)


def measure_sharpness(crop: Pixels) -> float:
    """Return how sharp a crop, uint8 RGB [height, width, 3], is: the variance of the Laplacian at 128 pixels.

    Pech-Pacheco et al., ICPR 2000. The fixed size makes crops of different sizes comparable; the
    outermost pixels are left out.
    """
    gray = Image.fromarray(crop).convert("L").resize((_SIDE, _SIDE), Image.Resampling.BILINEAR)
    values = np.asarray(gray, np.float32)
    neighbors = values[:-2, 1:-1] + values[2:, 1:-1] + values[1:-1, :-2] + values[1:-1, 2:]
    return float((neighbors - 4 * values[1:-1, 1:-1]).var())

"""Faces: finding them, cutting them out aligned, and telling whether a crop is good enough.

Names are imported on first use (PEP 562), so a model without faces pays nothing for them.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfm_runtime.deepfake.faces.crop import (
        Crop,
        CropSpec,
        choose,
        crop_face,
        cut,
        native_tiles,
    )
    from vfm_runtime.deepfake.faces.detector import Mtcnn, load_detector
    from vfm_runtime.deepfake.faces.face import Face, FaceDetector
    from vfm_runtime.deepfake.faces.precomputed import Precomputed
    from vfm_runtime.deepfake.faces.quality import Quality, blur, measure

_HOME = {
    **dict.fromkeys(("Crop", "CropSpec", "choose", "crop_face", "cut", "native_tiles"), "crop"),
    **dict.fromkeys(("Mtcnn", "load_detector"), "detector"),
    **dict.fromkeys(("Face", "FaceDetector"), "face"),
    "Precomputed": "precomputed",
    **dict.fromkeys(("Quality", "blur", "measure"), "quality"),
}

__all__ = [
    "Crop",
    "CropSpec",
    "Face",
    "FaceDetector",
    "Mtcnn",
    "Precomputed",
    "Quality",
    "blur",
    "choose",
    "crop_face",
    "cut",
    "load_detector",
    "measure",
    "native_tiles",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'vfm_runtime.deepfake.faces' has no attribute '{name}'")
    value: object = getattr(import_module(f"vfm_runtime.deepfake.faces.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

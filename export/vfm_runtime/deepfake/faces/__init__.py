"""Faces: finding them, cutting them out aligned, and telling whether a crop is good enough."""

from vfm_runtime.deepfake.faces.crop import (
    Crop as Crop,
    CropSpec as CropSpec,
    choose_faces as choose_faces,
    crop_face as crop_face,
    cut_crops as cut_crops,
    cut_tiles as cut_tiles,
)
from vfm_runtime.deepfake.faces.detector import Mtcnn as Mtcnn, load_detector as load_detector
from vfm_runtime.deepfake.faces.face import Face as Face, FaceDetector as FaceDetector
from vfm_runtime.deepfake.faces.precomputed import PrecomputedFaces as PrecomputedFaces
from vfm_runtime.deepfake.faces.quality import (
    CropQuality as CropQuality,
    measure_quality as measure_quality,
    measure_sharpness as measure_sharpness,
)

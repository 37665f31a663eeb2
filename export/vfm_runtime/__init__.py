"""Runs the bundles that vfm exports: images and videos in, answers out, without torch.

    import vfm_runtime

    model = vfm_runtime.load("bundle/")
    print(model.predict("cat.jpg"))

Names are imported on first use (PEP 562), so `import vfm_runtime` costs milliseconds.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfm_runtime.bundle.contract import Contract
    from vfm_runtime.bundle.manifest import read_bundle, sha256, write_manifest
    from vfm_runtime.bundle.model import Model, load
    from vfm_runtime.bundle.predictor import Predictor
    from vfm_runtime.deepfake.decision import Decision
    from vfm_runtime.deepfake.faces.crop import CropSpec
    from vfm_runtime.deepfake.pipeline import DeepfakePipeline
    from vfm_runtime.deepfake.verdict import Verdict
    from vfm_runtime.drift.monitor import DriftAlert, DriftMonitor, DriftReport
    from vfm_runtime.errors import BundleError, ContractError, ProviderError, VfmError
    from vfm_runtime.media.image import IMAGE_SUFFIXES, ImageError, find_images, open_image
    from vfm_runtime.media.video import VideoError, find_videos, read_video
    from vfm_runtime.tasks.base import Prediction, TaskType, View
    from vfm_runtime.tasks.classification import LabelPrediction
    from vfm_runtime.tasks.confidence import AbstainReason, ConfidenceRules
    from vfm_runtime.tasks.detection import Detections
    from vfm_runtime.tasks.registry import register_task

__version__ = "0.1.0"

__all__ = [
    "IMAGE_SUFFIXES",
    "AbstainReason",
    "BundleError",
    "ConfidenceRules",
    "Contract",
    "ContractError",
    "CropSpec",
    "Decision",
    "DeepfakePipeline",
    "Detections",
    "DriftAlert",
    "DriftMonitor",
    "DriftReport",
    "ImageError",
    "LabelPrediction",
    "Model",
    "Prediction",
    "Predictor",
    "ProviderError",
    "TaskType",
    "Verdict",
    "VfmError",
    "VideoError",
    "View",
    "__version__",
    "find_images",
    "find_videos",
    "load",
    "open_image",
    "read_bundle",
    "read_video",
    "register_task",
    "sha256",
    "write_manifest",
]

_HOME = {
    "BundleError": "errors",
    "Contract": "bundle.contract",
    "ContractError": "errors",
    "CropSpec": "deepfake.faces.crop",
    "Decision": "deepfake.decision",
    "Detections": "tasks.detection",
    "DriftAlert": "drift.monitor",
    "DriftMonitor": "drift.monitor",
    "DriftReport": "drift.monitor",
    "IMAGE_SUFFIXES": "media.image",
    "ImageError": "media.image",
    "DeepfakePipeline": "deepfake.pipeline",
    "Model": "bundle.model",
    "LabelPrediction": "tasks.classification",
    "Prediction": "tasks.base",
    "TaskType": "tasks.base",
    "View": "tasks.base",
    "register_task": "tasks.registry",
    "Predictor": "bundle.predictor",
    "ProviderError": "errors",
    "AbstainReason": "tasks.confidence",
    "ConfidenceRules": "tasks.confidence",
    "Verdict": "deepfake.verdict",
    "VfmError": "errors",
    "VideoError": "media.video",
    "find_images": "media.image",
    "find_videos": "media.video",
    "load": "bundle.model",
    "open_image": "media.image",
    "read_bundle": "bundle.manifest",
    "read_video": "media.video",
    "sha256": "bundle.manifest",
    "write_manifest": "bundle.manifest",
}


_RENAMED = {"Judge": "DeepfakePipeline", "Reason": "AbstainReason", "Rules": "ConfidenceRules"}
"""Current name by the one of version 0.1."""


def __getattr__(name: str) -> object:
    if name in _RENAMED:
        current = _RENAMED[name]
        warnings.warn(f"{name} is now {current}.", DeprecationWarning, stacklevel=2)
        return globals().get(current) or __getattr__(current)
    if name not in _HOME:
        raise AttributeError(f"module 'vfm_runtime' has no attribute '{name}'")
    value: object = getattr(import_module(f"vfm_runtime.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

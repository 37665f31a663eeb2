"""Runs the bundles that vfm exports: images and videos in, answers out, without torch.

    import vfm_runtime

    model = vfm_runtime.load("bundle/")
    print(model.predict("cat.jpg"))

Names are imported on first use (PEP 562), so `import vfm_runtime` costs milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfm_runtime.bundle.contract import Contract, ContractError
    from vfm_runtime.bundle.manifest import BundleError, read_bundle, sha256, write_manifest
    from vfm_runtime.bundle.model import Model, load
    from vfm_runtime.bundle.predictor import Predictor
    from vfm_runtime.bundle.providers import ProviderError
    from vfm_runtime.deepfake.decision import Decision
    from vfm_runtime.deepfake.faces.crop import CropSpec
    from vfm_runtime.deepfake.pipeline import Judge
    from vfm_runtime.deepfake.verdict import Reason, Verdict
    from vfm_runtime.drift.monitor import DriftAlert, DriftMonitor, DriftReport
    from vfm_runtime.media.image import IMAGE_SUFFIXES, ImageError, find_images, open_image
    from vfm_runtime.media.video import VideoError, find_videos, read_video
    from vfm_runtime.tasks.classification import Prediction
    from vfm_runtime.tasks.confidence import Rules
    from vfm_runtime.tasks.detection import Detections

__version__ = "0.1.0"

__all__ = [
    "IMAGE_SUFFIXES",
    "BundleError",
    "Contract",
    "ContractError",
    "CropSpec",
    "Decision",
    "Detections",
    "DriftAlert",
    "DriftMonitor",
    "DriftReport",
    "ImageError",
    "Judge",
    "Model",
    "Prediction",
    "Predictor",
    "ProviderError",
    "Reason",
    "Rules",
    "Verdict",
    "VideoError",
    "__version__",
    "find_images",
    "find_videos",
    "load",
    "open_image",
    "read_bundle",
    "read_video",
    "sha256",
    "write_manifest",
]

_HOME = {
    "BundleError": "bundle.manifest",
    "Contract": "bundle.contract",
    "ContractError": "bundle.contract",
    "CropSpec": "deepfake.faces.crop",
    "Decision": "deepfake.decision",
    "Detections": "tasks.detection",
    "DriftAlert": "drift.monitor",
    "DriftMonitor": "drift.monitor",
    "DriftReport": "drift.monitor",
    "IMAGE_SUFFIXES": "media.image",
    "ImageError": "media.image",
    "Judge": "deepfake.pipeline",
    "Model": "bundle.model",
    "Prediction": "tasks.classification",
    "Predictor": "bundle.predictor",
    "ProviderError": "bundle.providers",
    "Reason": "deepfake.verdict",
    "Rules": "tasks.confidence",
    "Verdict": "deepfake.verdict",
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


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'vfm_runtime' has no attribute '{name}'")
    value: object = getattr(import_module(f"vfm_runtime.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Runs the bundles that vfm exports: images and videos in, answers out, without torch.

    import vfm_runtime

    model = vfm_runtime.load("bundle/")
    print(model.predict("cat.jpg"))

Names are imported on first use (PEP 562), so `import vfm_runtime` costs milliseconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vfm_runtime.bundle import BundleError, read_bundle, sha256, write_manifest
    from vfm_runtime.contract import Contract, ContractError
    from vfm_runtime.decide import Decision
    from vfm_runtime.detections import Detections
    from vfm_runtime.drift import DriftAlert, DriftMonitor, DriftReport
    from vfm_runtime.faces.crop import CropSpec
    from vfm_runtime.image import IMAGE_SUFFIXES, ImageError, find_images, open_image
    from vfm_runtime.judge import Judge
    from vfm_runtime.model import Model, load
    from vfm_runtime.predictor import Predictor
    from vfm_runtime.providers import ProviderError
    from vfm_runtime.sureness import Rules
    from vfm_runtime.types import Prediction
    from vfm_runtime.verdict import Reason, Verdict
    from vfm_runtime.video import VideoError, find_videos, read_video

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
    "BundleError": "bundle",
    "Contract": "contract",
    "ContractError": "contract",
    "CropSpec": "faces.crop",
    "Decision": "decide",
    "Detections": "detections",
    "DriftAlert": "drift",
    "DriftMonitor": "drift",
    "DriftReport": "drift",
    "IMAGE_SUFFIXES": "image",
    "ImageError": "image",
    "Judge": "judge",
    "Model": "model",
    "Prediction": "types",
    "Predictor": "predictor",
    "ProviderError": "providers",
    "Reason": "verdict",
    "Rules": "sureness",
    "Verdict": "verdict",
    "VideoError": "video",
    "find_images": "image",
    "find_videos": "video",
    "load": "model",
    "open_image": "image",
    "read_bundle": "bundle",
    "read_video": "video",
    "sha256": "bundle",
    "write_manifest": "bundle",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'vfm_runtime' has no attribute '{name}'")
    value: object = getattr(import_module(f"vfm_runtime.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

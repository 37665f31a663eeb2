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
    from vfm_runtime.bundle.contract import Contract as Contract
    from vfm_runtime.bundle.manifest import (
        hash_file as hash_file,
        read_bundle as read_bundle,
        write_manifest as write_manifest,
    )
    from vfm_runtime.bundle.model import Model as Model, load as load
    from vfm_runtime.bundle.predictor import Predictor as Predictor
    from vfm_runtime.deepfake.decision import Decision as Decision
    from vfm_runtime.deepfake.faces.crop import CropSpec as CropSpec
    from vfm_runtime.deepfake.pipeline import DeepfakePipeline as DeepfakePipeline
    from vfm_runtime.deepfake.verdict import Verdict as Verdict
    from vfm_runtime.drift.monitor import (
        DriftAlert as DriftAlert,
        DriftMonitor as DriftMonitor,
        DriftReport as DriftReport,
    )
    from vfm_runtime.errors import (
        BundleError as BundleError,
        ContractError as ContractError,
        ProviderError as ProviderError,
        VfmError as VfmError,
    )
    from vfm_runtime.media.image import (
        IMAGE_SUFFIXES as IMAGE_SUFFIXES,
        ImageError as ImageError,
        find_images as find_images,
        open_image as open_image,
    )
    from vfm_runtime.media.video import (
        VideoError as VideoError,
        find_videos as find_videos,
        read_video as read_video,
    )
    from vfm_runtime.tasks.base import (
        Prediction as Prediction,
        PredictionView as PredictionView,
        TaskType as TaskType,
    )
    from vfm_runtime.tasks.classification import LabelPrediction as LabelPrediction
    from vfm_runtime.tasks.confidence import (
        AbstainReason as AbstainReason,
        ConfidenceRules as ConfidenceRules,
    )
    from vfm_runtime.tasks.detection import Detections as Detections
    from vfm_runtime.tasks.registry import register_task as register_task

__version__ = "0.2.0"

_MODULES = {
    "bundle.contract": ["Contract"],
    "bundle.manifest": ["hash_file", "read_bundle", "write_manifest"],
    "bundle.model": ["Model", "load"],
    "bundle.predictor": ["Predictor"],
    "deepfake.decision": ["Decision"],
    "deepfake.faces.crop": ["CropSpec"],
    "deepfake.pipeline": ["DeepfakePipeline"],
    "deepfake.verdict": ["Verdict"],
    "drift.monitor": ["DriftAlert", "DriftMonitor", "DriftReport"],
    "errors": ["BundleError", "ContractError", "ProviderError", "VfmError"],
    "media.image": ["IMAGE_SUFFIXES", "ImageError", "find_images", "open_image"],
    "media.video": ["VideoError", "find_videos", "read_video"],
    "tasks.base": ["Prediction", "PredictionView", "TaskType"],
    "tasks.classification": ["LabelPrediction"],
    "tasks.confidence": ["AbstainReason", "ConfidenceRules"],
    "tasks.detection": ["Detections"],
    "tasks.registry": ["register_task"],
}
"""Public names by the module that has them."""

_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_HOME)

_RENAMED = {
    "Judge": "DeepfakePipeline",
    "Reason": "AbstainReason",
    "Rules": "ConfidenceRules",
    "View": "PredictionView",
    "sha256": "hash_file",
}
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

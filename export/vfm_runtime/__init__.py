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
    from vfm_runtime.bundle.contract import *  # noqa: F403
    from vfm_runtime.bundle.manifest import *  # noqa: F403
    from vfm_runtime.bundle.model import *  # noqa: F403
    from vfm_runtime.bundle.predictor import *  # noqa: F403
    from vfm_runtime.deepfake.decision import *  # noqa: F403
    from vfm_runtime.deepfake.faces.crop import *  # noqa: F403
    from vfm_runtime.deepfake.pipeline import *  # noqa: F403
    from vfm_runtime.deepfake.verdict import *  # noqa: F403
    from vfm_runtime.drift.monitor import *  # noqa: F403
    from vfm_runtime.errors import *  # noqa: F403
    from vfm_runtime.media.files import *  # noqa: F403
    from vfm_runtime.media.image import *  # noqa: F403
    from vfm_runtime.media.video import *  # noqa: F403
    from vfm_runtime.provenance import *  # noqa: F403
    from vfm_runtime.search import *  # noqa: F403
    from vfm_runtime.tasks.base import *  # noqa: F403
    from vfm_runtime.tasks.classification import *  # noqa: F403
    from vfm_runtime.tasks.confidence import *  # noqa: F403
    from vfm_runtime.tasks.detection import *  # noqa: F403
    from vfm_runtime.tasks.registry import *  # noqa: F403
    from vfm_runtime.teaching.classes import *  # noqa: F403

__version__ = "0.2.0"

_MODULES = {
    "bundle.contract": "Contract",
    "bundle.manifest": "hash_file read_bundle write_manifest",
    "bundle.model": "Model load",
    "bundle.predictor": "Predictor",
    "deepfake.decision": "Decision",
    "deepfake.faces.crop": "CropSpec",
    "deepfake.pipeline": "DeepfakePipeline",
    "deepfake.verdict": "Verdict",
    "drift.monitor": "DriftAlert DriftMonitor DriftReport",
    "errors": "BundleError ContractError ProviderError VfmError",
    "media.files": "find_images",
    "media.image": "IMAGE_SUFFIXES ImageError open_image",
    "media.video": "VideoError find_videos read_video",
    "provenance": "Credentials CredentialState TrustList read_credentials",
    "search": "Neighbor VectorTable",
    "tasks.base": "Prediction PredictionView TaskType",
    "tasks.classification": "LabelPrediction",
    "tasks.confidence": "AbstainReason ConfidenceRules",
    "tasks.detection": "Detections",
    "tasks.registry": "register_task",
    "teaching.classes": "Explanation TaughtClasses",
}
"""Public names by the module that has them; `__all__` and the imports on first use follow from this."""

_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

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

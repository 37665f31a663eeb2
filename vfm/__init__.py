"""Adapt a vision foundation model to your task, prove the result, and ship it as an ONNX bundle."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vfm.renames import CLASSES, update_path

if TYPE_CHECKING:
    from vfm_runtime.errors import VfmError as VfmError

    from vfm.api import Model as Model, load as load
    from vfm.bundle.export import export as export
    from vfm.data import (
        DetectionData as DetectionData,
        DigitsData as DigitsData,
        FolderData as FolderData,
        IdxData as IdxData,
        ImageData as ImageData,
        ShardData as ShardData,
        SyntheticData as SyntheticData,
        SyntheticScenes as SyntheticScenes,
        TableData as TableData,
    )
    from vfm.data.detection.dataset import BoxAugment as BoxAugment
    from vfm.data.mixing import Mixing as Mixing
    from vfm.deepfake import (
        DeepfakeData as DeepfakeData,
        DeepfakeHead as DeepfakeHead,
        DeepfakeLoss as DeepfakeLoss,
        DeepfakeTask as DeepfakeTask,
        SyntheticDeepfakes as SyntheticDeepfakes,
    )
    from vfm.losses import (
        AsymmetricLoss as AsymmetricLoss,
        BinaryCrossEntropy as BinaryCrossEntropy,
        ClassificationLoss as ClassificationLoss,
        CrossEntropy as CrossEntropy,
        DetectionLoss as DetectionLoss,
        FocalLoss as FocalLoss,
        Loss as Loss,
    )
    from vfm.models.adapt import (
        AdaptOptions as AdaptOptions,
        PartialFineTuning as PartialFineTuning,
    )
    from vfm.models.adaptation import Adaptation as Adaptation
    from vfm.models.adapters import Effort as Effort, LoRA as LoRA
    from vfm.models.heads import (
        AttentionPoolHead as AttentionPoolHead,
        ClassificationHead as ClassificationHead,
        DetectionHead as DetectionHead,
        DetrHead as DetrHead,
        Head as Head,
        LinearHead as LinearHead,
        MLPHead as MLPHead,
    )
    from vfm.preprocess import Preprocess as Preprocess
    from vfm.spec import Component as Component
    from vfm.tasks import (
        BaseTask as BaseTask,
        ClassificationTask as ClassificationTask,
        DetectionTask as DetectionTask,
        Optim as Optim,
    )
    from vfm.types import FeatureInfo as FeatureInfo, Features as Features, Raw as Raw

__version__ = "0.2.0"

_MODULES = {
    "vfm.api": ["Model", "load"],
    "vfm.bundle.export": ["export"],
    "vfm.tasks": ["BaseTask", "ClassificationTask", "DetectionTask", "Optim"],
    "vfm.deepfake": [
        "DeepfakeData",
        "DeepfakeHead",
        "DeepfakeLoss",
        "DeepfakeTask",
        "SyntheticDeepfakes",
    ],
    "vfm.models.adapt": ["AdaptOptions", "PartialFineTuning"],
    "vfm.models.adaptation": ["Adaptation"],
    "vfm.models.adapters": ["Effort", "LoRA"],
    "vfm.models.heads": [
        "AttentionPoolHead",
        "ClassificationHead",
        "DetectionHead",
        "DetrHead",
        "Head",
        "LinearHead",
        "MLPHead",
    ],
    "vfm.losses": [
        "AsymmetricLoss",
        "BinaryCrossEntropy",
        "ClassificationLoss",
        "CrossEntropy",
        "DetectionLoss",
        "FocalLoss",
        "Loss",
    ],
    "vfm.data": [
        "DetectionData",
        "DigitsData",
        "FolderData",
        "IdxData",
        "ImageData",
        "ShardData",
        "SyntheticData",
        "SyntheticScenes",
        "TableData",
    ],
    "vfm.data.detection.dataset": ["BoxAugment"],
    "vfm.data.mixing": ["Mixing"],
    "vfm.preprocess": ["Preprocess"],
    "vfm.spec": ["Component"],
    "vfm.types": ["FeatureInfo", "Features", "Raw"],
    "vfm_runtime.errors": ["VfmError"],
}
"""Public names by the module that has them."""

_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): `import vfm` loads no torch."""
    if name not in _HOME:
        current = CLASSES.get(f"vfm.{name}")
        if current is None:
            raise AttributeError(f"module 'vfm' has no attribute '{name}'")
        name = update_path(f"vfm.{name}").removeprefix("vfm.")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])

"""Adapt a vision foundation model to your task, prove the result, and ship it as an ONNX bundle."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vfm.renames import CLASSES, update_path

if TYPE_CHECKING:
    from vfm_runtime.errors import VfmError

    from vfm.api import Model, load
    from vfm.bundle.export import export
    from vfm.data import (
        DetectionData,
        DigitsData,
        FolderData,
        IdxData,
        ImageData,
        ShardData,
        SyntheticData,
        SyntheticScenes,
        TableData,
    )
    from vfm.data.detection.dataset import BoxAugment
    from vfm.data.mixing import Mixing
    from vfm.deepfake import (
        DeepfakeData,
        DeepfakeHead,
        DeepfakeLoss,
        DeepfakeTask,
        SyntheticDeepfakes,
    )
    from vfm.losses import (
        AsymmetricLoss,
        BinaryCrossEntropy,
        ClassificationLoss,
        CrossEntropy,
        DetectionLoss,
        FocalLoss,
        Loss,
    )
    from vfm.models.adapt import AdaptOptions, PartialFineTuning
    from vfm.models.adaptation import Adaptation
    from vfm.models.adapters import Effort, LoRA
    from vfm.models.heads import (
        AttentionPoolHead,
        ClassificationHead,
        DetectionHead,
        DetrHead,
        Head,
        LinearHead,
        MLPHead,
    )
    from vfm.preprocess import Preprocess
    from vfm.spec import Component
    from vfm.tasks import BaseTask, ClassificationTask, DetectionTask, Optim
    from vfm.types import FeatureInfo, Features, Raw

__version__ = "0.1.0"

_HOME = {
    "AdaptOptions": "vfm.models.adapt",
    "Adaptation": "vfm.models.adaptation",
    "AsymmetricLoss": "vfm.losses",
    "AttentionPoolHead": "vfm.models.heads",
    "BaseTask": "vfm.tasks",
    "BinaryCrossEntropy": "vfm.losses",
    "ClassificationHead": "vfm.models.heads",
    "ClassificationLoss": "vfm.losses",
    "ClassificationTask": "vfm.tasks",
    "Component": "vfm.spec",
    "CrossEntropy": "vfm.losses",
    "BoxAugment": "vfm.data.detection.dataset",
    "DeepfakeData": "vfm.deepfake",
    "DeepfakeHead": "vfm.deepfake",
    "DeepfakeLoss": "vfm.deepfake",
    "DeepfakeTask": "vfm.deepfake",
    "DetectionData": "vfm.data",
    "DetectionHead": "vfm.models.heads",
    "DetectionLoss": "vfm.losses",
    "DetectionTask": "vfm.tasks",
    "DetrHead": "vfm.models.heads",
    "DigitsData": "vfm.data",
    "Effort": "vfm.models.adapters",
    "FeatureInfo": "vfm.types",
    "Features": "vfm.types",
    "FocalLoss": "vfm.losses",
    "FolderData": "vfm.data",
    "Head": "vfm.models.heads",
    "IdxData": "vfm.data",
    "ImageData": "vfm.data",
    "LinearHead": "vfm.models.heads",
    "LoRA": "vfm.models.adapters",
    "Loss": "vfm.losses",
    "MLPHead": "vfm.models.heads",
    "Mixing": "vfm.data.mixing",
    "Model": "vfm.api",
    "Optim": "vfm.tasks",
    "PartialFineTuning": "vfm.models.adapt",
    "Preprocess": "vfm.preprocess",
    "Raw": "vfm.types",
    "ShardData": "vfm.data",
    "SyntheticData": "vfm.data",
    "SyntheticDeepfakes": "vfm.deepfake",
    "SyntheticScenes": "vfm.data",
    "TableData": "vfm.data",
    "VfmError": "vfm_runtime.errors",
    "export": "vfm.bundle.export",
    "load": "vfm.api",
}

__all__ = [  # noqa: RUF022 - as users meet them
    "load",
    "Model",
    "export",
    "ClassificationTask",
    "DetectionTask",
    "DeepfakeTask",
    "BaseTask",
    "Optim",
    "Adaptation",
    "LoRA",
    "Effort",
    "PartialFineTuning",
    "AdaptOptions",
    "Mixing",
    "LinearHead",
    "MLPHead",
    "AttentionPoolHead",
    "DetrHead",
    "DeepfakeHead",
    "ClassificationHead",
    "DetectionHead",
    "Head",
    "Loss",
    "ClassificationLoss",
    "CrossEntropy",
    "FocalLoss",
    "BinaryCrossEntropy",
    "AsymmetricLoss",
    "DetectionLoss",
    "DeepfakeLoss",
    "Features",
    "FeatureInfo",
    "Raw",
    "FolderData",
    "TableData",
    "DetectionData",
    "BoxAugment",
    "DeepfakeData",
    "IdxData",
    "DigitsData",
    "ShardData",
    "SyntheticData",
    "SyntheticScenes",
    "SyntheticDeepfakes",
    "ImageData",
    "Preprocess",
    "Component",
    "VfmError",
]


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

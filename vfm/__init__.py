"""Adapt a vision foundation model to your task, prove the result, and ship it as an ONNX bundle."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vfm.dependencies import guard_imports
from vfm.renames import CLASSES, update_path

if TYPE_CHECKING:
    from vfm_runtime.errors import *  # noqa: F403

    from vfm.api import *  # noqa: F403
    from vfm.bundle.export import *  # noqa: F403
    from vfm.data import *  # noqa: F403
    from vfm.data.detection.dataset import *  # noqa: F403
    from vfm.data.mixing import *  # noqa: F403
    from vfm.data.multi_crop import *  # noqa: F403
    from vfm.deepfake import *  # noqa: F403
    from vfm.embed.transformer import *  # noqa: F403
    from vfm.losses import *  # noqa: F403
    from vfm.models.adapt import *  # noqa: F403
    from vfm.models.adaptation import *  # noqa: F403
    from vfm.models.adapters import *  # noqa: F403
    from vfm.models.heads import *  # noqa: F403
    from vfm.preprocess import *  # noqa: F403
    from vfm.spec import *  # noqa: F403
    from vfm.tasks import *  # noqa: F403
    from vfm.tasks.self_supervised.methods import *  # noqa: F403
    from vfm.types import *  # noqa: F403

guard_imports()

__version__ = "0.2.0"

_MODULES = {
    "vfm.api": "Model load",
    "vfm.bundle.export": "export",
    "vfm.tasks": "BaseTask ClassificationTask ContrastiveTask DetectionTask DistillationTask EmbeddingTask Optim "
    "PretrainingTask SelfSupervisedTask",
    "vfm.deepfake": "DeepfakeData DeepfakeHead DeepfakeLoss DeepfakeTask SyntheticDeepfakes",
    "vfm.models.adapt": "AdaptOptions PartialFineTuning",
    "vfm.models.adaptation": "Adaptation",
    "vfm.models.adapters": "Effort LoRA",
    "vfm.models.heads": "AttentionPoolHead ClassificationHead DenseHead DetectionHead DetrHead Head LinearHead "
    "MLPHead NeighborsHead VotingHead",
    "vfm.losses": "AsymmetricLoss BinaryCrossEntropy CLIPLoss ClassificationLoss ContrastiveLoss CrossEntropy "
    "DenseLoss DetectionLoss DistillationLoss FeatureDistillation FocalLoss LogitDistillation Loss "
    "RelationDistillation SigLIPLoss UniCLLoss",
    "vfm.data": "DetectionData DigitsData FolderData IdxData ImageData PairData PairShards ShardData SyntheticData "
    "SyntheticScenes TableData UnlabeledData",
    "vfm.data.detection.dataset": "BoxAugment",
    "vfm.data.mixing": "Mixing",
    "vfm.data.multi_crop": "MultiCrop",
    "vfm.tasks.self_supervised.methods": "DINO MAE LeJEPA SelfSupervisedMethod SwAV VISReg",
    "vfm.preprocess": "Preprocess",
    "vfm.spec": "Component",
    "vfm.embed.transformer": "ImageEmbedder",
    "vfm.types": "FeatureInfo Features Raw",
    "vfm_runtime.errors": "VfmError",
}
"""Public names by the module that has them; `__all__` and the imports on first use follow from this."""

_HOME = {name: module for module, names in _MODULES.items() for name in names.split()}

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

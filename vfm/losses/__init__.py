"""Losses: what a task lowers. A new loss is a class; there is no list to edit."""

from vfm.losses.base import Loss
from vfm.losses.classification import (
    AsymmetricLoss,
    BinaryCrossEntropy,
    ClassificationLoss,
    CrossEntropy,
    FocalLoss,
)
from vfm.losses.contrastive import CLIPLoss, ContrastiveLoss, SigLIPLoss, UniCLLoss
from vfm.losses.dense import DenseLoss
from vfm.losses.detection import DetectionLoss
from vfm.losses.distillation import (
    DistillationLoss,
    FeatureDistillation,
    LogitDistillation,
    RelationDistillation,
)

__all__ = [
    "AsymmetricLoss",
    "BinaryCrossEntropy",
    "CLIPLoss",
    "ClassificationLoss",
    "ContrastiveLoss",
    "CrossEntropy",
    "DenseLoss",
    "DetectionLoss",
    "DistillationLoss",
    "FeatureDistillation",
    "FocalLoss",
    "LogitDistillation",
    "Loss",
    "RelationDistillation",
    "SigLIPLoss",
    "UniCLLoss",
]

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

__all__ = [
    "AsymmetricLoss",
    "BinaryCrossEntropy",
    "CLIPLoss",
    "ClassificationLoss",
    "ContrastiveLoss",
    "CrossEntropy",
    "DenseLoss",
    "DetectionLoss",
    "FocalLoss",
    "Loss",
    "SigLIPLoss",
    "UniCLLoss",
]

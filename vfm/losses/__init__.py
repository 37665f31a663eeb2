"""Losses: what a task lowers. A new loss is a class; there is no list to edit."""

from vfm.losses.base import Loss
from vfm.losses.classification import (
    AsymmetricLoss,
    BinaryCrossEntropy,
    ClassificationLoss,
    CrossEntropy,
    FocalLoss,
)
from vfm.losses.dense import DenseLoss
from vfm.losses.detection import DetectionLoss

__all__ = [
    "AsymmetricLoss",
    "BinaryCrossEntropy",
    "ClassificationLoss",
    "CrossEntropy",
    "DenseLoss",
    "DetectionLoss",
    "FocalLoss",
    "Loss",
]

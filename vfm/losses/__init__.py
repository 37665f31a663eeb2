"""Losses: what a task lowers. A new loss is a class; there is no list to edit."""

from vfm.losses.classification import (
    AsymmetricLoss,
    BinaryCrossEntropy,
    CrossEntropy,
    FocalLoss,
    Loss,
)
from vfm.losses.detection import DetectionLoss

__all__ = [
    "AsymmetricLoss",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "DetectionLoss",
    "FocalLoss",
    "Loss",
]

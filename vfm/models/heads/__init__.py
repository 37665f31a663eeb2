"""Heads: what turns a backbone's features into answers. A new head is one file; there is no list to edit."""

from vfm.models.heads.classification import (
    AttentionPoolHead,
    ClassificationHead,
    LinearHead,
    MLPHead,
    NeighborsHead,
)
from vfm.models.heads.dense import DenseHead
from vfm.models.heads.detection import DetectionHead
from vfm.models.heads.detr import DetrHead
from vfm.models.heads.head import Head
from vfm.models.heads.voting import VotingHead

__all__ = [
    "AttentionPoolHead",
    "ClassificationHead",
    "DenseHead",
    "DetectionHead",
    "DetrHead",
    "Head",
    "LinearHead",
    "MLPHead",
    "NeighborsHead",
    "VotingHead",
]

"""Heads: what turns a backbone's features into answers. A new head is one file; there is no list to edit."""

from vfm.models.heads.classification import ClassificationHead, LinearHead
from vfm.models.heads.head import Head

__all__ = ["ClassificationHead", "Head", "LinearHead"]

"""Contrastive pretraining: an image tower and a text tower learned together."""

from vfm.tasks.contrastive.open_clip import OpenClipTextTower
from vfm.tasks.contrastive.task import ContrastiveTask

__all__ = ["ContrastiveTask", "OpenClipTextTower"]

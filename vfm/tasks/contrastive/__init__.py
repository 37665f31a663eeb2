"""Contrastive pretraining: an image tower and a text tower learned together."""

from vfm.tasks.contrastive.task import ContrastiveTask

__all__ = ["ContrastiveTask"]

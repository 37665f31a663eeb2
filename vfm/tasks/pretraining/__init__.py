"""Pretraining: tasks whose product is a backbone, learned from images that need no labels."""

from vfm.tasks.pretraining.task import PretrainingTask

__all__ = ["PretrainingTask"]

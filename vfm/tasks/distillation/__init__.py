"""Distillation: a small backbone learns from a large one, or from any bundle, on images that need no labels."""

from vfm.tasks.distillation.task import DistillationTask

__all__ = ["DistillationTask"]

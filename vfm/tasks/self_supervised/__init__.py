"""Self-supervised learning: a backbone learns from the images alone."""

from vfm.tasks.self_supervised.task import SelfSupervisedTask

__all__ = ["SelfSupervisedTask"]

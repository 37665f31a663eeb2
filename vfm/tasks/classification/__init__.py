"""Classification: one label an image, or several."""

from vfm.tasks.classification.task import ClassificationTask

__all__ = ["ClassificationTask"]

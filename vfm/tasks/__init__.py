"""Tasks: a backbone and a head with a loss, an optimiser, metrics and checkpoints."""

from vfm.tasks.base import BaseTask
from vfm.tasks.classification.task import ClassificationTask
from vfm.tasks.detection.task import DetectionTask
from vfm.training.optim import Optim

__all__ = ["BaseTask", "ClassificationTask", "DetectionTask", "Optim"]

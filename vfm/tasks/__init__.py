"""Tasks: a backbone and a head with a loss, an optimiser, metrics and checkpoints."""

from vfm.tasks.base import BaseTask
from vfm.tasks.classification import ClassificationTask
from vfm.tasks.detection import DetectionTask
from vfm.tasks.optim import Optim

__all__ = ["BaseTask", "ClassificationTask", "DetectionTask", "Optim"]

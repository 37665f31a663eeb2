"""Tasks: a backbone and a head with a loss, an optimiser, metrics and checkpoints."""

from vfm.tasks.base import BaseTask
from vfm.tasks.classification import ClassificationTask
from vfm.tasks.deepfake import DeepfakeTask
from vfm.tasks.detection import DetectionTask
from vfm.tasks.optim import Optim

__all__ = ["BaseTask", "ClassificationTask", "DeepfakeTask", "DetectionTask", "Optim"]

"""Deepfake detection: data, faces, task, head, loss, metrics, shortcuts, robustness and pages.

A plug-in: it builds on every other package of vfm, and none of them knows it.
"""

from vfm.deepfake.data.data import FakesData
from vfm.deepfake.data.procedural import SyntheticFakes
from vfm.deepfake.head import DeepfakeHead
from vfm.deepfake.loss import DeepfakeLoss
from vfm.deepfake.task import DeepfakeTask

__all__ = ["DeepfakeHead", "DeepfakeLoss", "DeepfakeTask", "FakesData", "SyntheticFakes"]

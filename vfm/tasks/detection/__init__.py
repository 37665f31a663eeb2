"""Detection: boxes around objects, and their classes."""

from vfm.tasks.detection.task import DetectionTask

__all__ = ["DetectionTask"]

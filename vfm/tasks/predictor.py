"""A task that is asked for answers as a bundle is: images in, a `Prediction`, `Detections` or a `Verdict` out."""

from __future__ import annotations

import numpy as np
import torch
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.media.image import ImageSource, open_image
from vfm_runtime.tasks.base import Arrays, TaskType
from vfm_runtime.tasks.registry import find_task_type

from vfm.tasks.base import BaseTask


def bind_task_type(task: BaseTask) -> TaskType:
    """Return the runtime's side of a task, with its labels and its own rules.

    Args:
        task: Trained.
    """
    return find_task_type(task.kind)(task.labels, task.rules())


class TaskModel(Predictor):
    """Answers by torch, on the task's device."""

    def __init__(self, task: BaseTask) -> None:
        """Take the task as it is.

        Args:
            task: Trained, in evaluation mode. Kept as the attribute `task`.
        """
        super().__init__(bind_task_type(task))
        self.task = task

    def prepare(self, image: ImageSource) -> Arrays:
        """Open one image, or one crop, and bring it to the model's size: `pixels`, and of a detector `geometry`."""
        preprocess = self.task.preprocess
        pixels, geometry = preprocess.resize(open_image(image))
        inputs: Arrays = {"pixels": pixels[None]}
        if self.task.head.places:
            inputs["geometry"] = np.array([geometry.row(preprocess.size)], np.float32)
        return inputs

    def run(self, inputs: Arrays) -> Arrays:
        """Answer for what `prepare` has made, of one image or of several joined."""
        tensors = [torch.from_numpy(values).to(self.task.device) for values in inputs.values()]
        with torch.inference_mode():
            found = self.task.answer(*tensors)
        return {name: _plain(values) for name, values in found.items()}


def _plain(values: torch.Tensor) -> np.ndarray:
    return np.asarray((values.float() if values.is_floating_point() else values).cpu().numpy())

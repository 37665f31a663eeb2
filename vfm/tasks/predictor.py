"""A task that is asked for answers as a bundle is: images in, a `Prediction`, `Detections` or a `Verdict` out."""

from __future__ import annotations

import numpy as np
import torch
from vfm_runtime.bundle.predictor import Arrays, Predictor
from vfm_runtime.media.image import ImageSource, open_image

from vfm.deepfake.task import DeepfakeTask
from vfm.tasks.base import BaseTask


class TaskModel(Predictor):
    """Answers by torch, on the task's device."""

    def __init__(self, task: BaseTask) -> None:
        """Take the task as it is.

        Args:
            task: Trained, in evaluation mode. Kept as the attribute `task`.
        """
        judge = task.judge() if isinstance(task, DeepfakeTask) else None
        super().__init__(task.kind, task.labels, judge=judge)
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

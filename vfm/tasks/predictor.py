"""Torch predictor: a task, or several on one backbone, asked by torch as a bundle is asked by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.media.image import ImageSource
from vfm_runtime.tasks.base import Arrays

from vfm.tasks.base import BaseTask


class TorchPredictor(Predictor):
    """Answers by torch, on the task's device.

    Attributes:
        task: The task, which stays as it is.
    """

    def __init__(
        self,
        task: BaseTask,
        contract: Contract | None = None,
        answer: Callable[..., Mapping[str, Tensor]] | None = None,
    ) -> None:
        """Take the task's labels and rules, or those of a bundle.

        Args:
            task: Trained task in evaluation mode; of several heads on one backbone, any.
            contract: Contract of a bundle, whose heads and rules count; by default those of the task alone.
            answer: What computes the contract's outputs from `pixels`, and `geometry` where it is taken; by default the
                task.
        """
        super().__init__(task.bind_type() if contract is None else contract.type)
        self.value_range = task.preprocess.value_range
        self.task = task
        self._answer = answer or task.answer
        self._inputs = tuple(self.task_type.inputs)

    def prepare(self, image: ImageSource) -> Arrays:
        """Open one image, or one crop, and bring it to the model's size: `pixels`, and of a detector `geometry`."""
        preprocess = self.task.preprocess
        pixels, geometry = preprocess.resize(self.open_pixels(image))
        row = np.array([geometry.to_row(preprocess.size)], np.float32)
        arrays: Arrays = {"pixels": pixels[None], "geometry": row}
        return {name: arrays[name] for name in self._inputs}

    def run(self, inputs: Arrays) -> Arrays:
        """Answer for what `prepare` has made, of one image or of several joined."""
        return run_torch(self._answer, inputs, self.task.device)


def run_torch(
    answer: Callable[..., Mapping[str, Tensor]], inputs: Arrays, device: torch.device
) -> Arrays:
    """Answer by torch, on a device, for arrays by the names of the answer's arguments."""
    tensors = {name: torch.from_numpy(values).to(device) for name, values in inputs.items()}
    with torch.inference_mode():
        outputs = answer(**tensors)
    return {
        name: (values.float() if values.is_floating_point() else values).cpu().numpy()
        for name, values in outputs.items()
    }

"""What a graph is exported from, asked through torch as a bundle is asked through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.media.image import ImageSource, open_image
from vfm_runtime.tasks.base import Arrays

from vfm.bundle.onnx_graphs import Answers
from vfm.tasks import BaseTask

if TYPE_CHECKING:
    from vfm.bundle.ood import Reference


class TorchModel(Predictor):
    """The tasks of a bundle, with its temperatures and its reference, on the CPU.

    Attributes:
        contract: Of the bundle.
    """

    def __init__(
        self,
        contract: Contract,
        tasks: Mapping[str, BaseTask],
        reference: Reference | None = None,
    ) -> None:
        """Take the parts of the tasks.

        Args:
            contract: Of the bundle.
            tasks: In evaluation mode, on the CPU, by the names of the contract's heads.
            reference: Of the training images, where the contract says that there is one.
        """
        super().__init__(contract.type)
        self.contract = contract
        self._answers = Answers(contract, tasks, reference).eval()
        self._inputs = tuple(contract.ports()[0])

    def prepare(self, image: ImageSource) -> Arrays:
        """Open one image, or one crop, and bring it to the model's size: `pixels`, and for a detector `geometry`."""
        preprocess = self._answers.preprocess
        pixels, geometry = preprocess.resize(open_image(image))
        row = np.array([geometry.row(preprocess.size)], np.float32)
        made: Arrays = {"pixels": pixels[None], "geometry": row}
        return {name: made[name] for name in self._inputs}

    def run(self, inputs: Arrays) -> Arrays:
        """Answer for what `prepare` has made, of one image or of several joined."""
        tensors = {name: torch.from_numpy(values) for name, values in inputs.items()}
        with torch.inference_mode():
            found = self._answers(**tensors)
        return {name: values.numpy() for name, values in found.items()}

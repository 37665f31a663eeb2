"""Torch predictor: a task, or several on one backbone, asked by torch as a bundle is asked by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.media.image import ImageSource
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.confidence import require_finite
from vfm_runtime.tasks.embedding import OUTPUT, EmbeddingSpec

from vfm.models.heads.embedding import EmbeddingHead
from vfm.tasks.base import BaseTask
from vfm.training.embeddings import describe_embedding


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
        self._embeds_by_answer = contract is not None
        self._embedding_head: EmbeddingHead | None = None
        self.embedding = None if contract is None else contract.embedding
        self.box_embedding = None if contract is None else contract.box_embedding
        self._inputs = tuple(self.task_type.inputs)
        if (text := task.text_model) is not None:
            self.scale, self.bias = text.scale, text.bias

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

    def embed(
        self,
        images: ImageSource | list[Any] | tuple[Any, ...],
        *,
        batch_size: int | None = None,
        source: str | None = None,
        normalize: bool = True,
    ) -> NDArray[np.float32]:
        """Return the embedding of one image, float32 [D], or of each of a list, [N, D], by the backbone's features.

        Args:
            images: Images as `predict` takes them; each is looked at whole.
            batch_size: Images that go through the model at once; None for 32.
            source: Part of the features: pooled, class_token, patches (the mean of the last tokens) or layers (the
                means of several maps, joined); None for pooled, where the backbone pools.
            normalize: Whether vectors are divided by their L2 norm, so that products are cosines.

        Raises:
            ImageError: An image cannot be opened.
            OptionError: This backbone has no such part.
        """
        if not self._embeds_by_answer:
            self.select_embedding(source, normalize=normalize)
        return super().embed(images, batch_size=batch_size)

    def embed_text(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """Return the vector of one text, [D], or of each of a list, [M, D]; errors are those of `Predictor`."""
        model = self.task.text_model
        if model is None:
            return super().embed_text(texts)
        vectors = model.embed_text([texts] if isinstance(texts, str) else texts)
        return np.asarray(vectors[0]) if isinstance(texts, str) else vectors

    def select_embedding(
        self, source: str | None = None, *, normalize: bool = True
    ) -> EmbeddingSpec:
        """Choose what `embed_prepared` gives, by the arguments of `embed`, and return what `embedding` then says."""
        task, last = self.task, self.embedding
        head = task.build_embedding(source, normalize=normalize)
        if last is None or (last.source, last.normalize) != (head.source, normalize):
            last = self.embedding = describe_embedding(task.backbone, task.preprocess, head)
        self._embedding_head = head
        return last

    def choose_embedding(self) -> None:
        """Choose the vectors of `embed` without arguments, or those of boxes where the task embeds these."""
        if self._embeds_by_answer:
            return
        self.box_embedding = self.task.describe_box_embedding()
        if self.box_embedding is None:
            self.select_embedding()

    def embed_prepared(self, inputs: Arrays) -> NDArray[np.float32]:
        """Return the embeddings, float32 [N, D], of what `prepare` has made of one image or of several joined."""
        if self._embedding_head is None:
            return super().embed_prepared(inputs)
        task, head = self.task, self._embedding_head

        def compute(pixels: Tensor) -> dict[str, Tensor]:
            return head.decode(head(task.backbone(task.preprocess.normalize(pixels))))

        vectors = run_torch(compute, {"pixels": inputs["pixels"]}, task.device)[OUTPUT]
        require_finite("embeddings", vectors)
        return vectors


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

"""Out-of-distribution (OOD) score: Mahalanobis distance of an image to the training embeddings, and its limit."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.drift.reference import DriftReference
from vfm_runtime.errors import VfmError
from vfm_runtime.tasks.base import Arrays

from vfm.metrics.calibration import fit_conformal_threshold
from vfm.tasks import BaseTask
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.labeled_images import MAX_IMAGES, OpenedImages, ValidationError
from vfm.tasks.validation import Validation
from vfm.types import Features

NUM_AXES = 16
"""Principal directions of the embeddings."""
MIN_IMAGES = 50
"""Least number of images that a reference is fitted on."""

_RATE = 0.01
_BATCH = 32
# Fraction of the largest spread; what is below is rounding.
_FLAT = 1e-5

log = logging.getLogger(__name__)


class ReferenceFitError(VfmError, ValueError):
    """No reference can be fitted; the message says why and what to do."""


class Reference(nn.Module):
    """Coordinates of an image among the training images, and how far it lies from them.

    For the vector p of an image (`select_vector`), with N images, D numbers and k directions:

        components = (p - mean) @ axes.T                                      [N, k]
        rest       = (p - mean) - (components / |axes|^2) @ axes              [N, D]
        distances  = sqrt((mean(components^2) + sum(rest^2) / residual) / 2)  [N]

    The axes are principal directions of the training vectors, each divided by the standard deviation along it, so that
    a component of 1 is one standard deviation; `rest` is what lies outside of them, and `residual` the mean of
    `sum(rest^2)` over the training images. Both halves of the distance are then 1 on average in training whatever k
    is: a Mahalanobis distance along the axes, beside the part of an image that no training image has (Wang et al.,
    2022).
    """

    mean: Tensor
    onto: Tensor
    back: Tensor

    def __init__(
        self, mean: NDArray[np.float32], axes: NDArray[np.float32], residual: float
    ) -> None:
        """Keep the numbers as float32.

        Args:
            mean: Mean of the training vectors, [D].
            axes: Orthogonal directions over the standard deviation along each, [k, D], k from 1 to D.
            residual: Mean of the squared length of what lies outside of the axes, above 0.
        """
        super().__init__()
        self.axes = np.asarray(axes, np.float32)
        self.residual = float(residual)
        squares = np.square(self.axes.astype(np.float64)).sum(1, keepdims=True)
        back = (self.axes / squares).astype(np.float32)
        for name, values in (("mean", mean), ("onto", self.axes.T), ("back", back)):
            tensor = torch.from_numpy(np.array(values, np.float32, order="C"))
            self.register_buffer(name, tensor, persistent=False)
        # Over the residual's root, so that nothing large is squared: 16 bits end at 65504.
        self.scale = 1 / self.residual**0.5

    def forward(self, vector: Tensor) -> dict[str, Tensor]:
        """`components`, float32 [N, k], and `distances`, float32 [N], of vectors [N, D]."""
        centered = vector.float() - self.mean
        components = centered @ self.onto
        rest = (centered - components @ self.back) * self.scale
        squared = components.square().mean(-1) + rest.square().sum(-1)
        return {"components": components, "distances": (squared / 2).sqrt()}


def select_vector(features: Features, uses: Collection[str]) -> Tensor:
    """Return the one vector of each image that it is compared by, [N, D].

    Args:
        features: What the backbone makes of N images.
        uses: What the head reads of them: where the pooled vector is not among it, the backbone need not give one,
            and the mean of the tokens stands in.
    """
    return features.pooled if "pooled" in uses else features.tokens.mean(1)


@dataclass(frozen=True, eq=False)
class OodFit:
    """A reference, and how far of it images like those of the training lie."""

    reference: Reference
    held_out: NDArray[np.int64]
    """Indices of the validation images that it was not fitted on: all, unless the training images are gone."""
    max_distance: float
    """Limit of the distances, from those of the held-out images."""


def fit_reference(features: NDArray[np.float32], k: int = NUM_AXES) -> Reference:
    """Fit mean, whitened principal directions and the rest of some embeddings.

    Args:
        features: Embeddings of the training images, float32 [N, D].
        k: Most directions; there are fewer where the embeddings have fewer, or where images are few.

    Raises:
        ReferenceFitError: There are too few images, or they are all alike.
    """
    values = np.asarray(features, np.float64)
    if values.ndim != 2 or len(values) < MIN_IMAGES:
        raise ReferenceFitError(
            f"There are embeddings of shape {list(values.shape)}, too few for a reference: it takes at least "
            f"{MIN_IMAGES} images, and about 1,000 for a good one."
        )
    if not np.isfinite(values).all():
        raise ReferenceFitError(
            "The embeddings hold NaN or infinite numbers. Look for a diverged training."
        )
    mean = values.mean(axis=0)
    _, sizes, directions = np.linalg.svd(values - mean, full_matrices=False)
    # A direction for every four images, or chance decides on most of them; and one is left over for the rest.
    rank = int((sizes > _FLAT * sizes[0]).sum())
    number = min(k, rank - 1, len(values) // 4)
    if number < 1 or not sizes[0] > 0:
        raise ReferenceFitError(
            f"The embeddings of the {len(values)} images are all alike, so nothing can be measured by them. Check that "
            "the images differ, and the backbone's weights."
        )
    spread = sizes[:number] / np.sqrt(len(values) - 1)
    residual = float((sizes[number:] ** 2).sum() / len(values))
    axes = directions[:number]
    # The largest number of each is positive: a decomposition leaves the sign to chance.
    signs = np.sign(axes[np.arange(number), np.abs(axes).argmax(axis=1)])
    return Reference(mean, axes * (signs / spread)[:, None], residual)


@torch.inference_mode()
def embed(
    task: BaseTask, batches: Iterable[Arrays], uses: Collection[str] | None = None
) -> NDArray[np.float32]:
    """Return the vectors of images that a graph with a reference measures, float32 [N, D].

    Args:
        task: A task in evaluation mode.
        batches: Batches of `pixels`, uint8 [n, h, w, 3], at the model's size.
        uses: What the heads of the graph read of the features; by default what the task's head does.
    """
    vectors = []
    for batch in batches:
        pixels = torch.from_numpy(batch["pixels"]).to(task.device)
        features = task.backbone(task.preprocess.normalize(pixels))
        vector = select_vector(features, task.head.uses if uses is None else uses)
        vectors.append(vector.float().cpu().numpy())
    return np.concatenate(vectors)


@torch.inference_mode()
def score_ood(reference: Reference, features: NDArray[np.float32]) -> Arrays:
    """Return `components` [N, k] and `distances` [N] of embeddings, float32 [N, D], as the graph computes them."""
    outputs = reference(torch.from_numpy(np.asarray(features, np.float32)))
    return {name: value.numpy() for name, value in outputs.items()}


def fit_distance_limit(distances: NDArray[np.float32], rate: float = _RATE) -> float:
    """Fit the largest distance that is taken for like the training: a fraction of such images lies beyond.

    By the split conformal quantile; where there are too few images for the fraction, the largest distance.

    Args:
        distances: Distances [N] of images that the reference was not fitted on.
        rate: Fraction of images of the same kind that may lie beyond.
    """
    possible = 1 / (len(distances) + 1)
    if possible > rate:
        log.warning(
            "%d images are too few for a limit that %.1f %% of such images pass: up to %.1f %% do.",
            len(distances),
            100 * rate,
            100 * possible,
        )
    return fit_conformal_threshold(distances, max(rate, possible), "images")


def open_training(
    checkpoint: Checkpoint, consequence: str, count: int = MAX_IMAGES
) -> OpenedImages | None:
    """Open the images that a checkpoint was trained on; None, with a warning, where they are gone.

    Args:
        checkpoint: The checkpoint that is exported.
        consequence: Beginning of the warning, which says what is done in their stead.
        count: Most images, spread evenly.
    """
    try:
        return checkpoint.open_images("train", count)
    except ValidationError as error:
        log.warning("%s, since the training images are gone: %s", consequence, error)
        return None


def fit_ood(
    task: BaseTask,
    validation: Validation,
    training: OpenedImages | None,
    *,
    uses: Collection[str] | None = None,
) -> OodFit:
    """Fit a reference on the training images, and measure the validation images against it.

    Where the training images are gone, it is fitted on every second validation image, and the others are held out.

    Args:
        task: Trained task, in evaluation mode.
        validation: Images that it has not learned from.
        training: Images that it has learned from; None where they are gone.
        uses: What the heads of the graph read of the features; by default what the task's head does.

    Raises:
        ReferenceFitError: There are too few images.
    """
    features = embed(task, validation.images.iterate_batches(_BATCH), uses)
    held_out = np.arange(len(features))
    if training is None:
        trained, held_out = features[::2], held_out[1::2]
    else:
        trained = embed(task, training.iterate_batches(_BATCH), uses)
    reference = fit_reference(trained)
    limit = fit_distance_limit(score_ood(reference, features[held_out])["distances"])
    return OodFit(reference, held_out, limit)


def fit_drift_reference(
    outputs: Arrays, contract: Contract, held_out: NDArray[np.int64]
) -> DriftReference:
    """Fit what later predictions are compared with to find drift.

    Args:
        outputs: All outputs of the bundle's graph for the validation images.
        contract: Contract of the bundle that is written.
        held_out: Indices of the images that the reference was not fitted on.
    """
    chosen = {name: values[held_out] for name, values in outputs.items()}
    numbers = {name: len(head.labels) for name, head in contract.each.items()}
    return DriftReference.fit(contract.type.drift_values(chosen), numbers)

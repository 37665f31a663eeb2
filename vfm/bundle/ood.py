"""Where the training images lie: what later images are measured against, fitted for a bundle."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.drift.reference import DriftReference
from vfm_runtime.errors import VfmError
from vfm_runtime.tasks.base import Arrays

from vfm.bundle.ood_graph import ReferenceOutputs, vector_of
from vfm.metrics.calibration import fit_conformal_threshold
from vfm.tasks import BaseTask
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.labelled_images import OpenedImages, ValidationError
from vfm.tasks.validation import Validation

NUM_AXES = 16
"""Principal directions of the embeddings."""
MIN_IMAGES = 50
"""Least number of images that a reference is fitted on."""

_RATE = 0.01
_BATCH = 32
# Of the largest spread; what is below is rounding.
_FLAT = 1e-5

log = logging.getLogger(__name__)


class ReferenceFitError(VfmError, ValueError):
    """No reference can be fitted; the message says why and what to do."""


@dataclass(frozen=True, eq=False)
class Reference:
    """Mean and principal directions of embeddings of width D, as `ReferenceOutputs` takes them. k directions."""

    mean: NDArray[np.float32]
    """[D]."""
    axes: NDArray[np.float32]
    """[k, D], each divided by the standard deviation along it."""
    residual: float
    """Mean squared length of what lies outside of the axes."""


@dataclass(frozen=True, eq=False)
class OodFit:
    """A reference, and where the validation images lie to it. N images."""

    reference: Reference
    outputs: Arrays
    """`components` [N, k] and `distances` [N] of the validation images."""
    held_out: NDArray[np.int64]
    """Indices of the validation images that it was not fitted on: all, unless the training images are gone."""
    max_distance: float
    """Limit of the distances, from those of the held-out images."""
    num_fitted: int
    """Images that the reference was fitted on."""


def fit_reference(features: NDArray[np.float32], k: int = NUM_AXES) -> Reference:
    """Mean, whitened principal directions and the rest of some embeddings.

    Args:
        features: float32 [N, D].
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
    axes = _signed(directions[:number]) / spread[:, None]
    return Reference(mean.astype(np.float32), axes.astype(np.float32), residual)


@torch.inference_mode()
def embeddings(
    task: BaseTask, batches: Iterable[Arrays], reads: Collection[str] | None = None
) -> NDArray[np.float32]:
    """The vectors of images that a graph with a reference measures, float32 [N, D].

    Args:
        task: In evaluation mode.
        batches: Of `pixels`, uint8 [n, h, w, 3], as `Validation.inputs` gives them.
        reads: What the heads of the graph read of the features; those of the task's head by default.
    """
    found = []
    for batch in batches:
        pixels = torch.from_numpy(batch["pixels"]).to(task.device)
        features = task.backbone(task.preprocess.normalize(pixels))
        vector = vector_of(features, task.head.uses if reads is None else reads)
        found.append(vector.float().cpu().numpy())
    return np.concatenate(found)


@torch.inference_mode()
def score_ood(reference: Reference, features: NDArray[np.float32]) -> Arrays:
    """`components` [N, k] and `distances` [N] of embeddings, as the graph computes them.

    Args:
        reference: That they are measured against.
        features: float32 [N, D], of `embeddings`.
    """
    module = ReferenceOutputs(reference.mean, reference.axes, reference.residual)
    return {
        name: value.numpy()
        for name, value in module(torch.from_numpy(np.asarray(features, np.float32))).items()
    }


def distance_limit(distances: NDArray[np.float32], rate: float = _RATE) -> float:
    """The largest distance that is taken for like the training: a share of such images lies beyond.

    By the split conformal quantile; where there are too few images for the share, the largest distance.

    Args:
        distances: [N], of images that the reference was not fitted on.
        rate: Share of images of the same kind that may lie beyond.
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


def open_training(checkpoint: Checkpoint) -> OpenedImages | None:
    """The images that a checkpoint was trained on; None, with a warning, where they are gone."""
    try:
        return checkpoint.open_images("train")
    except ValidationError as error:
        log.warning(
            "The reference is fitted on every second validation image, since the training images are gone: %s",
            error,
        )
        return None


def fit_ood(
    task: BaseTask,
    validation: Validation,
    training: OpenedImages | None,
    *,
    k: int = NUM_AXES,
    rate: float = _RATE,
    reads: Collection[str] | None = None,
) -> OodFit:
    """Fit a reference on the training images, and measure the validation images against it.

    Where the training images are gone, it is fitted on every second validation image, and the others are held out.

    Args:
        task: Trained task, in evaluation mode.
        validation: Images that it has not learned from.
        training: Images that it has learned from; None where they are gone.
        k: Most directions.
        rate: Fraction of images of the same kind that may lie beyond the limit.
        reads: As for `embeddings`.

    Raises:
        ReferenceFitError: There are too few images.
    """
    features = embeddings(task, validation.images.iterate_batches(_BATCH), reads)
    held_out = np.arange(len(features))
    if training is None:
        trained, held_out = features[::2], held_out[1::2]
    else:
        trained = embeddings(task, training.iterate_batches(_BATCH), reads)
    reference = fit_reference(trained, k)
    outputs = score_ood(reference, features)
    limit = distance_limit(outputs["distances"][held_out], rate)
    return OodFit(reference, outputs, held_out, limit, len(trained))


def drift_reference(
    outputs: Arrays, contract: Contract, held_out: NDArray[np.int64]
) -> DriftReference:
    """What later answers are compared with to find drift.

    Args:
        outputs: All outputs of the bundle's graph for the validation images.
        contract: Of the bundle.
        held_out: Of `OodFit`.
    """
    chosen = {name: values[held_out] for name, values in outputs.items()}
    numbers = {name: len(head.labels) for name, head in contract.each.items()}
    return DriftReference.fit(contract.type.drift_values(chosen), numbers)


def _signed(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same directions, of which the largest number is positive: a decomposition leaves the sign to chance."""
    largest = np.abs(directions).argmax(axis=1)
    signs = np.sign(directions[np.arange(len(directions)), largest])
    return np.asarray(directions * signs[:, None], np.float64)

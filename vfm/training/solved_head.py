"""Solved head: logistic regression or kNN on the features of a frozen backbone, in place of training by steps."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from vfm_runtime.errors import DataError
from vfm_runtime.heads_on_features import AffineHead

from vfm.data import ImageData
from vfm.data.dataset import list_labels
from vfm.data.feature_dataset import StoredFeatures
from vfm.data.splits import draw_folds
from vfm.heads_on_features import Candidate, cross_validate, solve_linear
from vfm.heads_on_features.fit import fit_candidate
from vfm.heads_on_features.linear import FEW_IMAGES
from vfm.models.heads import LinearHead, NeighborsHead
from vfm.training.checkpoint import CheckpointedModel

FOLDS = 5
"""Folds of the cross-validation that chooses C and the scaling of features."""
_REPEATS = 5
"""Cross-validations, each with folds of its own, where images are few."""


@dataclass(frozen=True, eq=False)
class SolvedHead:
    """How a solved head does on images that it was not fitted on. N images, C labels."""

    position: NDArray[np.int64]
    """[N], index of each image in the training split."""
    scores: NDArray[np.float64]
    """Out-of-fold probabilities, [N, C]."""
    target: NDArray[Any]
    """int64 [N]; with several labels float32 [N, C]."""
    metric: float
    """Accuracy of the scores; mean average precision with several labels."""
    loss: float
    """Mean negative log-likelihood of the scores."""
    affine: AffineHead | None
    """The head that was fitted on all images; None of kNN."""
    description: str
    """Which head it is, for the log."""


def solve_head(task: CheckpointedModel, data: ImageData, stored: StoredFeatures) -> SolvedHead:
    """Solve a LinearHead, or fill a NeighborsHead, on the features of the training split, and cross-validate it.

    The first rank does it for all.

    Args:
        task: Task whose head is solved; class weights of its loss count.
        data: Data module, which draws the folds: stratified, groups together.
        stored: Features of the training split.

    Raises:
        DataError: The images have one class only.
    """
    strategy = task.trainer.strategy
    positions = np.array([i for i in range(len(stored)) if i not in stored.skipped], np.int64)
    parts = [np.asarray(stored.arrays[name])[positions] for name in task.head.uses]
    features = np.concatenate(parts, axis=1)
    target = stored.target.label.numpy()[positions]
    solved = None
    if task.global_rank == 0:
        start = time.perf_counter()
        weights = getattr(task.criterion, "class_weights", None)
        class_weights = None if weights is None else weights.cpu().numpy()
        solved = _fit(task, data, features, target, positions, class_weights)
        rank_zero_info(
            f"Head solved on {len(positions)} images in {time.perf_counter() - start:.1f} s: {solved.description}."
        )
    solved = strategy.broadcast(solved)
    assert solved is not None
    if isinstance(task.head, NeighborsHead):
        labels = torch.from_numpy(target)
        matrix = labels if labels.ndim == 2 else torch.eye(len(data.labels))[labels]
        task.head.load_neighbors(torch.from_numpy(features), matrix)
    elif solved.affine is not None:
        assert isinstance(task.head, LinearHead)
        task.head.load_affine(solved.affine)
    return solved


def _fit(
    task: CheckpointedModel,
    data: ImageData,
    features: NDArray[Any],
    target: NDArray[Any],
    positions: NDArray[np.int64],
    class_weights: NDArray[Any] | None,
) -> SolvedHead:
    multilabel = target.ndim == 2
    if not multilabel and len(np.unique(target)) < 2:
        raise DataError(
            f"All {len(target)} training images are of the class '{data.labels[int(target[0])]}'. Give images of two "
            "classes or more."
        )
    _warn_of_contradictions(features, target, data, positions)
    repeats = _REPEATS if len(positions) < FEW_IMAGES else 1
    folds = np.stack([_draw_folds(data, positions, data.seed + i) for i in range(repeats)])
    options: dict[str, Any] = {"num_labels": len(data.labels), "multilabel": multilabel}
    if isinstance(task.head, NeighborsHead):
        neighbors = Candidate("neighbors", k=task.head.k)
        judged = cross_validate(features, target, folds[0], [neighbors], **options)[0]
        return _describe(judged, None, f"{task.head.k} nearest neighbors", positions, target)
    assert isinstance(task.head, LinearHead)
    if (candidate := _pin_candidate(task.head)) is not None:
        judged = cross_validate(
            features, target, folds[0], [candidate], class_weights=class_weights, **options
        )[0]
        affine = fit_candidate(candidate, features, target, class_weights=class_weights, **options)
        scale = 1 / judged.temperature
        cooled = replace(affine, weight=scale * affine.weight, bias=scale * affine.bias)
        return _describe(judged, cooled, f"{candidate.head} as given", positions, target)
    solved = solve_linear(features, target, folds, class_weights=class_weights, **options)
    name = f"logistic regression, C {solved.c:.3g}, scaling {solved.scaling}"
    return _describe(solved, solved.head, name, positions, target)


def _pin_candidate(head: LinearHead) -> Candidate | None:
    """Return the one way to solve a head that its arguments leave; None where cross-validation chooses."""
    if head.solver != "logistic":
        return Candidate(head.solver, head.scaling or "none")
    if head.c is None or head.scaling is None:
        return None
    return Candidate("logistic", head.scaling, head.c)


def _describe(
    result: Any,
    affine: AffineHead | None,
    name: str,
    positions: NDArray[np.int64],
    target: NDArray[Any],
) -> SolvedHead:
    judged = np.isfinite(result.scores).all(axis=1)
    metric = "mAP" if target.ndim == 2 else "accuracy"
    text = f"{name}; out of fold {metric} {result.metric:.4f}, loss {result.loss:.4f}"
    return SolvedHead(
        positions[judged],
        result.scores[judged],
        target[judged],
        result.metric,
        result.loss,
        affine,
        text,
    )


def _draw_folds(data: ImageData, positions: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    records = [data.records["train"][i] for i in positions]
    keys = [record.key or record.name for record in records]
    labels = [tuple(sorted(set(list_labels(record)))) for record in records]
    return np.array(draw_folds(keys, labels, min(FOLDS, len(set(keys))), seed))


def _warn_of_contradictions(
    features: NDArray[Any], target: NDArray[Any], data: ImageData, positions: NDArray[np.int64]
) -> None:
    """Say which images are equal, pixel by pixel as far as the backbone sees, but have other labels."""
    first: dict[bytes, int] = {}
    pairs = []
    for index, row in enumerate(features):
        other = first.setdefault(row.tobytes(), index)
        if not np.array_equal(target[other], target[index]):
            pairs.append((other, index))
    if pairs:
        records = data.records["train"]
        names = [records[positions[index]].name for index in pairs[0]]
        rank_zero_warn(
            f"{len(pairs)} training images are equal to others with another label, such as {names[1]} to {names[0]}. "
            "Mend the labels, or take one of each pair out: no model can answer both."
        )

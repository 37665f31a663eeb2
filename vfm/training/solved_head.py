"""Solved head: linear heads, kNN and votes of them on the features of a frozen backbone, not trained by steps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.heads_on_features import AffineHead

from vfm.data import ImageData
from vfm.data.feature_dataset import StoredFeatures
from vfm.data.records import list_labels
from vfm.data.splits import draw_folds
from vfm.heads_on_features import Candidate, cross_validate, solve_linear
from vfm.heads_on_features.cross_validation import (
    CandidateScores,
    compute_loss,
    compute_metric,
)
from vfm.heads_on_features.fit import cool_head, fit_candidate
from vfm.heads_on_features.linear import FEW_IMAGES, Solved
from vfm.models.heads import Head, LinearHead, NeighborsHead, VotingHead
from vfm.models.heads.voting import list_members
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
    members: tuple[FittedHead, ...]
    """The head, or each of those that vote."""
    description: str
    """Which head it is, for the log."""


@dataclass(frozen=True, eq=False)
class FittedHead:
    """One head on frozen features, fitted on all images and cross-validated."""

    name: str
    """Which head it is, for the log."""
    result: CandidateScores | Solved
    """Its out-of-fold scores, and how good they are."""
    affine: AffineHead | None
    """The head that was fitted on all images, at its temperature; None of kNN."""
    temperature: float = 1.0
    """What its logits are still to be divided by."""

    def load_into(self, head: Head, features: NDArray[Any], target: NDArray[Any]) -> None:
        """Give a head the weights; kNN the features [N, D] and their labels, int [N] or [N, C], themselves."""
        if self.affine is not None:
            assert isinstance(head, LinearHead)
            head.load_affine(self.affine)
        else:
            assert isinstance(head, NeighborsHead)
            labels = torch.from_numpy(target)
            num_labels = head.target.shape[1]
            matrix = labels if labels.ndim == 2 else torch.eye(num_labels)[labels]
            head.load_neighbors(torch.from_numpy(features), matrix)


def solve_head(task: CheckpointedModel, data: ImageData, stored: StoredFeatures) -> SolvedHead:
    """Solve a LinearHead, fill a NeighborsHead, or each that votes, on the training split, and cross-validate it.

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
    members = list_members(task.head)
    features = [_join(stored, head.uses, positions) for head in members]
    target = stored.target.label.numpy()[positions]
    solved = None
    if task.global_rank == 0:
        start = time.perf_counter()
        if target.ndim == 1 and len(np.unique(target)) < 2:
            raise DataError(
                f"All {len(target)} training images are of the class '{data.labels[int(target[0])]}'. Give images of "
                "two classes or more."
            )
        _warn_of_contradictions(features[0], target, data, positions)
        weights = getattr(task.criterion, "class_weights", None)
        each_counts = data.weigh_records()
        is_logistic = [isinstance(h, LinearHead) and h.solver == "logistic" for h in members]
        if each_counts is not None and not all(is_logistic):
            raise OptionError(
                f"--data.balance {data.balance} weighs images, which only logistic regression heeds. Give --model.head "
                "LinearHead with the solver logistic, or leave it out."
            )
        options = {
            "num_labels": len(data.labels),
            "multilabel": target.ndim == 2,
            "class_weights": None if weights is None else weights.cpu().numpy(),
            "sample_weights": None if each_counts is None else each_counts[positions],
        }
        repeats = _REPEATS if len(positions) < FEW_IMAGES else 1
        folds = np.stack([_draw_folds(data, positions, data.seed + i) for i in range(repeats)])
        solved = _describe(
            [
                _fit(head, values, target, folds, options)
                for head, values in zip(members, features, strict=True)
            ],
            positions,
            target,
        )
        rank_zero_info(
            f"Head solved on {len(positions)} images in {time.perf_counter() - start:.1f} s: {solved.description}."
        )
    solved = strategy.broadcast(solved)
    assert solved is not None
    load_members(task.head, solved.members, features, target)
    return solved


def load_members(
    head: Head,
    fitted: Sequence[FittedHead],
    features: Sequence[NDArray[Any]],
    target: NDArray[Any],
) -> None:
    """Give a head, or those that vote, what was fitted.

    Args:
        head: The head, with its layers.
        fitted: Result for the head, or for each that votes, in their order.
        features: Array [N, D] for each of them, what it reads of all images.
        target: Classes, int [N]; or with several labels [N, C].
    """
    for member, one, values in zip(list_members(head), fitted, features, strict=True):
        one.load_into(member, values, target)
    if isinstance(head, VotingHead):
        head.temperatures.copy_(torch.tensor([one.temperature for one in fitted]))


def _join(
    stored: StoredFeatures, uses: Sequence[str], positions: NDArray[np.int64]
) -> NDArray[Any]:
    return np.concatenate([np.asarray(stored.arrays[name])[positions] for name in uses], axis=1)


def _fit(
    head: Head,
    features: NDArray[Any],
    target: NDArray[Any],
    folds: NDArray[np.int64],
    options: dict[str, Any],
) -> FittedHead:
    if isinstance(head, NeighborsHead):
        neighbors = Candidate("neighbors", k=head.k)
        judged = cross_validate(features, target, folds[0], [neighbors], **options)[0]
        return FittedHead(f"{head.k} nearest neighbors", judged, None, judged.temperature)
    assert isinstance(head, LinearHead)
    if (candidate := _pin_candidate(head)) is not None:
        judged = cross_validate(features, target, folds[0], [candidate], **options)[0]
        affine = fit_candidate(candidate, features, target, **options)
        return FittedHead(
            f"{candidate.head} as given", judged, cool_head(affine, judged.temperature)
        )
    solved = solve_linear(features, target, folds, **options)
    name = f"logistic regression, C {solved.c:.3g}, scaling {solved.scaling}"
    return FittedHead(name, solved, solved.head)


def _pin_candidate(head: LinearHead) -> Candidate | None:
    """Return the one way to solve a head that its arguments leave; None where cross-validation chooses."""
    if head.solver != "logistic":
        return Candidate(head.solver, head.scaling or "none")
    if head.c is None or head.scaling is None:
        return None
    return Candidate("logistic", head.scaling, head.c)


def _describe(
    members: Sequence[FittedHead], positions: NDArray[np.int64], target: NDArray[Any]
) -> SolvedHead:
    multilabel = target.ndim == 2
    scores = np.mean([one.result.scores for one in members], axis=0)
    judged = np.isfinite(scores).all(axis=1)
    metric, loss = members[0].result.metric, members[0].result.loss
    name = members[0].name
    if len(members) > 1:
        metric = compute_metric(scores[judged], target[judged], multilabel)
        loss = compute_loss(scores[judged], target[judged])
        name = f"vote of {len(members)} heads ({'; '.join(one.name for one in members)})"
    text = (
        f"{name}; out of fold {'mAP' if multilabel else 'accuracy'} {metric:.4f}, loss {loss:.4f}"
    )
    return SolvedHead(
        positions[judged], scores[judged], target[judged], metric, loss, tuple(members), text
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

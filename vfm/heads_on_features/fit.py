"""Fit of one linear head on frozen features: logistic regression, shrinkage LDA or nearest mean, with its settings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from vfm_runtime.errors import OptionError
from vfm_runtime.heads_on_features import AffineHead, fit_lda, fit_nearest_mean, scale_features

from vfm.heads_on_features.cross_validation import Candidate
from vfm.heads_on_features.logistic import fit_logistic_regression


def fit_candidate(
    candidate: Candidate,
    features: ArrayLike,
    target: ArrayLike,
    *,
    num_labels: int,
    class_weights: ArrayLike | None = None,
    sample_weights: ArrayLike | None = None,
    multilabel: bool = False,
) -> AffineHead:
    """Fit a candidate that is a linear head.

    Args:
        candidate: Any head but kNN.
        features: Embeddings, [N, D].
        target: Classes, int [N]; or with `multilabel` zeros and ones, [N, C].
        num_labels: Number of labels C.
        class_weights: How much each class counts in logistic regression, [C].
        sample_weights: How much each image counts in logistic regression, [N], 1 on average.
        multilabel: Whether several labels, or none, may apply to an image.

    Raises:
        OptionError: The head is no linear map of features, or cannot give several labels.
    """
    if candidate.head == "logistic":
        return fit_logistic_regression(
            features,
            target,
            c=candidate.c,
            scaling=candidate.scaling,
            num_labels=num_labels,
            class_weights=class_weights,
            sample_weights=sample_weights,
            multilabel=multilabel,
        )
    normalizes = candidate.scaling == "l2"
    is_plain = candidate.head == "nearest_mean" and not normalizes
    if multilabel or candidate.head == "neighbors" or not (candidate.head == "lda" or is_plain):
        raise OptionError(
            f"The head '{candidate.head}' with scaling '{candidate.scaling}' is no linear map of features for "
            f"{'several labels' if multilabel else 'one label'}. Choices: logistic; for one label lda, and "
            "nearest_mean with scaling none."
        )
    classes = np.asarray(target)
    if is_plain:
        return fit_nearest_mean(features, classes, num_labels)
    scaled = scale_features(features, None, normalizes)
    return replace(fit_lda(scaled, classes, num_labels), normalizes=normalizes)


def cool_head(affine: AffineHead, temperature: float) -> AffineHead:
    """Return the head whose logits are divided by a temperature."""
    return replace(affine, weight=affine.weight / temperature, bias=affine.bias / temperature)

"""Head of taught classes: shrinkage LDA with a temperature of its own, or the nearest mean where examples are few."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.heads_on_features import (
    AffineHead,
    FloatArray,
    fit_lda,
    make_mean_head,
    scale_features,
)

LEAST_EXAMPLES = 12
"""Examples that each class has where LDA answers; with 8 the nearest mean was as good, and better where one had 4."""
MOST_EXAMPLES = 1000
"""Examples that LDA is fitted on at most, the same number of each class, so that it takes a fraction of a second."""

_NUM_FOLDS = 4
_TEMPERATURES = np.geomspace(0.25, 250, 61)


def fit_taught_head(
    vectors: NDArray[np.float32],
    target: NDArray[np.int64],
    center: NDArray[np.float32],
    scaled: NDArray[np.float32],
) -> AffineHead:
    """Fit the head that answers for taught classes, all of which count alike.

    Where each class has 12 examples or more it is LDA on vectors of norm 1 (`fit_lda`), whose logits are divided by the
    temperature that suits examples left out of it, in 4 folds; else the nearest mean, on centered vectors.

    Args:
        vectors: Embeddings of the examples, [N, D].
        target: Class of each, int [N]; each of C classes has one or more.
        center: Mean of the vectors, [D].
        scaled: The vectors less their mean, of norm 1, [N, D].
    """
    counts = np.bincount(target)
    most = MOST_EXAMPLES // len(counts)
    if min(counts.min(), most) < LEAST_EXAMPLES:
        return make_mean_head(scaled, target, len(counts), center)
    # Rank of each example among those of its class, in an order at random.
    order = np.random.default_rng(0).permutation(len(target))
    order = order[np.argsort(target[order], kind="stable")]
    ranks = np.empty(len(target), np.int64)
    ranks[order] = np.arange(len(target)) - np.repeat(np.cumsum(counts) - counts, counts)
    used = ranks < most
    features = scale_features(vectors[used], None, True)
    classes, folds = target[used], ranks[used] % _NUM_FOLDS
    temperature = _choose_temperature(features, classes, folds, len(counts))
    head = _fit_even_lda(features, classes, len(counts))
    return replace(
        head, weight=head.weight / temperature, bias=head.bias / temperature, normalizes=True
    )


def _fit_even_lda(features: FloatArray, classes: NDArray[np.int64], num_classes: int) -> AffineHead:
    """Fit LDA, and take out that classes with more examples are more likely: examples are not drawn from traffic."""
    head = fit_lda(features, classes, num_classes)
    counts = np.bincount(classes, minlength=num_classes)
    return replace(head, bias=head.bias - np.log(np.maximum(counts, 1)))


def _choose_temperature(
    features: FloatArray, classes: NDArray[np.int64], folds: NDArray[np.int64], num_classes: int
) -> float:
    """Return what logits are to be divided by for the least loss (Guo et al., 2017) on folds that were left out.

    One example more, of which every answer is as likely, keeps it above zero where all answers are right.
    """
    rows, right = [], []
    for fold in np.unique(folds):
        inside = folds == fold
        head = _fit_even_lda(features[~inside], classes[~inside], num_classes)
        rows.append(head.compute_logits(features[inside]))
        right.append(classes[inside])
    logits, target = np.concatenate(rows), np.concatenate(right)
    logits -= logits.max(axis=1, keepdims=True)
    losses = []
    for temperature in _TEMPERATURES:
        scaled = logits / temperature
        log_scores = scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))
        losses.append(-log_scores[np.arange(len(target)), target].sum() - log_scores.mean())
    return float(_TEMPERATURES[int(np.argmin(losses))])

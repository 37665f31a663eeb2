"""Few-shot classifier: the best head on the embeddings of a few examples a class, judged by leave-one-out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from vfm_runtime.errors import DataError

from vfm.heads_on_features import Candidate, cross_validate
from vfm.heads_on_features.cross_validation import FoldFitter
from vfm.heads_on_features.linear import list_candidates
from vfm.metrics.intervals import Interval, compute_wilson

MOST_LEFT_ONE_OUT = 200
"""Examples up to which each one is left out by itself; more are judged in as many folds as `FOLDS`."""
FOLDS = 10
_ONE_SHOT = Candidate("nearest_mean", "none")
_NAMES = {
    "neighbors": "nearest neighbor",
    "nearest_mean": "nearest mean",
    "lda": "LDA, shrunk",
    "logistic": "logistic regression",
}


@dataclass(frozen=True, eq=False)
class FewShotClassifier:
    """A head on embeddings, fitted on N examples of C classes."""

    labels: tuple[str, ...]
    """Names of the classes."""
    candidate: Candidate
    """The head that was chosen."""
    accuracy: Interval | None
    """Accuracy on examples that were left out; None where a class has one example, which nothing can judge."""
    way: str
    """How it was judged, in words."""
    temperature: float
    """What logits are divided by, so that they are probabilities."""
    fitter: FoldFitter
    """The examples."""

    @property
    def name(self) -> str:
        """Name of the head."""
        return _NAMES[self.candidate.head]

    def score(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return probabilities, [M, C], of other images by their embeddings, [M, D]."""
        ((_, logits),) = self.fitter.score([self.candidate], embeddings)
        return np.asarray(softmax(logits / self.temperature, axis=1), np.float64)


def fit_few_shot(
    embeddings: NDArray[np.float32], labels: Sequence[str], *, seed: int = 0
) -> FewShotClassifier:
    """Choose a head by leave-one-out on a few examples, and fit it on all of them.

    Nearest mean, shrunk LDA, the nearest neighbor and logistic regression take part. A class of one example cannot be
    judged: nearest mean is then taken without a choice, and no accuracy is said.

    Args:
        embeddings: Vectors of the examples, [N, D].
        labels: Class of each example, N of them.
        seed: Seed of the folds of more than `MOST_LEFT_ONE_OUT` examples.

    Raises:
        DataError: There are fewer than two classes.
    """
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        raise DataError(
            f"The examples are of {len(names)} class{'es' * (len(names) != 1)}. Give examples of two classes or more."
        )
    target = np.array([names.index(label) for label in labels])
    fitter = FoldFitter(embeddings, target, len(names), None, False)
    fewest = min(Counter(labels).values())
    if fewest == 1:
        way = "not judged, since a class has one example"
        # The temperature of the nearest mean itself.
        return FewShotClassifier(names, _ONE_SHOT, None, way, 1.0, fitter)
    number = len(target)
    folds, way = np.arange(number), "leave-one-out"
    if number > MOST_LEFT_ONE_OUT:
        way = f"{FOLDS} folds"
        folds = np.random.default_rng(seed).permutation(number) % FOLDS
    candidates = [
        _ONE_SHOT,
        Candidate("lda", "l2"),
        Candidate("neighbors", k=1),
        *list_candidates(embeddings),
    ]
    results = cross_validate(embeddings, target, folds, candidates, num_labels=len(names))
    best = max(results, key=lambda result: (result.metric, -result.loss))
    low, high = compute_wilson(best.metric, number)
    accuracy = Interval(best.metric, min(low, best.metric), max(high, best.metric))
    return FewShotClassifier(names, best.candidate, accuracy, way, best.temperature, fitter)

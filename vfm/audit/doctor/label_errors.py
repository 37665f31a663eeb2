"""Label errors: labels that cross-validated probes on features doubt, by confident learning (cleanlab)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import MissingPackageError

from vfm.data.splits import draw_folds
from vfm.heads_on_features import Candidate, cross_validate

FOLDS = 5
_FEWEST_SUSPECTS = 1000
"""Where several labels may apply, as many as these are listed, or as many as are likely wrong."""
_WIDTH = 256
"""Principal components that wider features are brought to: probes then take a tenth of the time."""
_AFFORDABLE = 5e6
"""Numbers in these up to which logistic regression is tried beside LDA, and with two penalties."""


class LabelSuspect(NamedTuple):
    """A label that is likely wrong."""

    position: int
    """Index among the samples that were given."""
    stated: int
    """The class that the data states; -1 for one of several labels that is missing."""
    suggested: int
    """The class that the probe finds most likely among the others; -1 for one of several labels that does not apply."""
    error: float
    """Probability that the label is wrong."""

    def describe(self, names: Sequence[str]) -> str:
        """Say what is wrong, with the names of the classes."""
        if self.stated < 0:
            return f"not labelled {names[self.suggested]}, which it shows"
        if self.suggested < 0:
            return f"labelled {names[self.stated]}, which it does not show"
        return f"labelled {names[self.stated]}, looks like {names[self.suggested]}"


@dataclass(frozen=True)
class LabelErrors:
    """What the labels of N samples are worth."""

    suspects: list[LabelSuspect]
    """Labels that were judged, the most suspicious first: all, but where several may apply."""
    num_judged: int
    """Number of labels that were judged; where several may apply, a yes or no for each sample and class."""
    num_errors: int
    """Estimated number of wrong labels, by confident learning."""
    accuracy: float
    """Fraction of the labels that the probe, which did not see their samples, says too."""
    majority: float
    """Fraction that would be right if the commonest class were always said."""
    probe: str
    num_left_out: int = 0
    """Labels of classes that are too small to be judged."""

    @property
    def skill(self) -> float:
        """How far the probe came from always saying the commonest class, 0, to every label, 1."""
        return (self.accuracy - self.majority) / max(1 - self.majority, 1e-9)

    @property
    def flagged(self) -> list[LabelSuspect]:
        """As many of the most suspicious as there are likely errors."""
        return self.suspects[: self.num_errors]


def find_label_errors(
    features: NDArray[np.float32],
    target: NDArray[np.int64],
    keys: Sequence[str],
    num_labels: int,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda _: None,
) -> LabelErrors | None:
    """Judge each label by probes on features that were fitted on other samples.

    Args:
        features: Features of N samples, [N, D].
        target: Class of each sample, int [N]; zeros and ones where several may apply, [N, C].
        keys: Key of each sample: those of one key, such as copies, are judged together.
        num_labels: Number of classes, whether or not all occur.
        seed: Seed of the folds.
        progress: Told what is being done.

    Returns:
        None where fewer than two classes have as many samples as there are folds; where several labels may apply, where
        none is stated of as many and missing of as many.

    Raises:
        MissingPackageError: cleanlab is not installed.
    """
    import_cleanlab()  # that it is missing is said before any work
    if target.ndim == 2:
        return _judge_several(features, target, keys, seed, progress)
    sizes = np.array(
        [len({keys[i] for i in np.flatnonzero(target == k).tolist()}) for k in range(num_labels)]
    )
    classes = np.flatnonzero(sizes >= FOLDS)
    if len(classes) < 2:
        return None
    judged = np.flatnonzero(np.isin(target, classes))
    labels = np.searchsorted(classes, target[judged])
    vectors = reduce_width(features[judged])
    progress(f"judging {len(judged):,} labels by probes")
    folds = draw_folds([keys[i] for i in judged.tolist()], [(int(k),) for k in labels], FOLDS, seed)
    candidates = [Candidate("lda", "none")]
    if vectors.size <= _AFFORDABLE:
        candidates += [Candidate("logistic", "l2", c=c) for c in (1.0, 10.0)]
    results = cross_validate(vectors, labels, folds, candidates, num_labels=len(classes))
    best = min(results, key=lambda result: result.loss)
    scores = best.scores
    error, num_errors = _doubt(labels, scores)
    # Least first by what the probe says of the label alone: the noise of a class would bring small classes forward.
    order = np.argsort(scores[np.arange(len(labels)), labels], kind="stable")
    others = scores.copy()
    others[np.arange(len(labels)), labels] = -1
    suggested = others.argmax(axis=1)
    suspects = [
        LabelSuspect(
            int(judged[i]),
            int(classes[labels[i]]),
            int(classes[suggested[i]]),
            float(error[i]),
        )
        for i in order.tolist()
    ]
    accuracy = float((scores.argmax(axis=1) == labels).mean())
    majority = float(np.bincount(labels).max() / len(labels))
    left_out = len(target) - len(judged)
    probe = best.candidate.head
    return LabelErrors(suspects, len(labels), num_errors, accuracy, majority, probe, left_out)


def _judge_several(
    features: NDArray[np.float32],
    target: NDArray[np.int64],
    keys: Sequence[str],
    seed: int,
    progress: Callable[[str], None],
) -> LabelErrors | None:
    """Judge labels of which several may apply: each class apart, as a yes or no for each sample."""
    classes = [k for k in range(target.shape[1]) if _has_both(target[:, k], keys)]
    if not classes:
        return None
    labels = target[:, classes]
    vectors = reduce_width(features)
    progress(f"judging {labels.size:,} labels by probes")
    of_samples = [tuple(np.flatnonzero(row).tolist()) for row in labels]
    penalties = (1.0, 10.0) if vectors.size <= _AFFORDABLE else (1.0,)
    candidates = [Candidate("logistic", "l2", c=c) for c in penalties]
    results = cross_validate(
        vectors, labels, draw_folds(keys, of_samples, FOLDS, seed), candidates, multilabel=True
    )
    best = min(results, key=lambda result: result.loss)
    yes, error, num_errors = best.scores, np.zeros(labels.shape), 0
    for column in range(len(classes)):
        binary = np.stack([1 - yes[:, column], yes[:, column]], axis=1)
        error[:, column], num_wrong = _doubt(labels[:, column], binary)
        num_errors += num_wrong
    order = np.argsort(np.where(labels == 1, yes, 1 - yes), axis=None, kind="stable")
    rows, columns = np.unravel_index(order[: max(_FEWEST_SUSPECTS, num_errors)], labels.shape)
    suspects = [
        LabelSuspect(
            row,
            classes[column] if labels[row, column] else -1,
            -1 if labels[row, column] else classes[column],
            float(error[row, column]),
        )
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
    ]
    rates = labels.mean(axis=0)
    return LabelErrors(
        suspects,
        labels.size,
        num_errors,
        float(((yes > 0.5) == labels).mean()),
        float(np.maximum(rates, 1 - rates).mean()),
        best.candidate.head,
        target.size - labels.size,
    )


def _has_both(column: NDArray[np.int64], keys: Sequence[str]) -> bool:
    """Whether a class applies to the samples of as many keys as there are folds, and does not to those of as many."""
    numbers = [len({keys[i] for i in np.flatnonzero(column == value).tolist()}) for value in (0, 1)]
    return min(numbers) >= FOLDS


def _doubt(
    labels: NDArray[np.int64], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], int]:
    """Return how likely each label is wrong, [N], and how many are, by confident learning.

    Reference: Northcutt, Jiang and Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels, 2021.

    Args:
        labels: Class of each sample, [N].
        scores: Probabilities that a probe gives which did not see the sample, [N, K].
    """
    cleanlab = import_cleanlab()
    issues = cleanlab.filter.find_label_issues(labels, scores, n_jobs=1)
    joint = cleanlab.count.compute_confident_joint(labels, scores)
    # Bayes: how likely each class is, and how often it is called by the given name.
    noise = cleanlab.count.estimate_latent(joint, labels)[1]
    likely = scores * noise[labels]
    likely /= np.maximum(likely.sum(axis=1, keepdims=True), 1e-12)
    return 1 - likely[np.arange(len(labels)), labels], int(issues.sum())


def reduce_width(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the first principal components of features, float32 [N, 256]; narrow ones as they are."""
    if features.shape[1] <= _WIDTH:
        return features
    centered = features - features.mean(axis=0)
    _, axes = np.linalg.eigh(centered.T @ centered / len(centered))
    reduced: NDArray[np.float32] = centered @ axes[:, -_WIDTH:]
    return reduced


def import_cleanlab() -> Any:
    """Return the package cleanlab, with the modules that judge labels.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        import cleanlab
        import cleanlab.count
        import cleanlab.filter
        import cleanlab.rank
    except ImportError as error:
        raise MissingPackageError(
            "Label errors are found by cleanlab, which is not installed: pip install 'vfm[doctor]'. Or leave them out: "
            "--label-errors false."
        ) from error
    return cleanlab

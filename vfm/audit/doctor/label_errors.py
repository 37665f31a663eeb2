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
_WIDTH = 256
"""Principal components that wider features are brought to: probes then take a tenth of the time."""
_AFFORDABLE = 5e6
"""Numbers in these up to which logistic regression is tried beside LDA."""


class LabelSuspect(NamedTuple):
    """A label that is likely wrong."""

    position: int
    """Index among the samples that were given."""
    stated: int
    """The class that the data states."""
    suggested: int
    """The class that the probe finds most likely among the others."""
    error: float
    """Probability that the label is wrong."""


@dataclass(frozen=True)
class LabelErrors:
    """What the labels of N samples are worth."""

    suspects: list[LabelSuspect]
    """All samples that were judged, the most suspicious first."""
    num_errors: int
    """Estimated number of wrong labels, by confident learning."""
    accuracy: float
    """Fraction of the samples whose label the probe, which did not see them, says too."""
    majority: float
    """Fraction of the samples that are of the commonest class."""
    probe: str
    num_left_out: int = 0
    """Samples of classes that are too small to be judged."""

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
        target: Class of each sample, int [N].
        keys: Key of each sample: those of one key, such as copies, are judged together.
        num_labels: Number of classes, whether or not all occur.
        seed: Seed of the folds.
        progress: Told what is being done.

    Returns:
        None where fewer than two classes have as many samples as there are folds.

    Raises:
        MissingPackageError: cleanlab is not installed.
    """
    cleanlab = import_cleanlab()
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
    issues = cleanlab.filter.find_label_issues(labels, scores, n_jobs=1)
    joint = cleanlab.count.compute_confident_joint(labels, scores)
    # Bayes: how likely each class is, and how often it is called by the given name.
    noise = cleanlab.count.estimate_latent(joint, labels)[1]
    likely = scores * noise[labels]
    likely /= np.maximum(likely.sum(axis=1, keepdims=True), 1e-12)
    quality = cleanlab.rank.get_label_quality_scores(labels, scores, method="self_confidence")
    order = np.argsort(quality, kind="stable")
    others = scores.copy()
    others[np.arange(len(labels)), labels] = -1
    suggested = others.argmax(axis=1)
    suspects = [
        LabelSuspect(
            int(judged[i]),
            int(classes[labels[i]]),
            int(classes[suggested[i]]),
            float(1 - likely[i, labels[i]]),
        )
        for i in order.tolist()
    ]
    accuracy = float((scores.argmax(axis=1) == labels).mean())
    majority = float(np.bincount(labels).max() / len(labels))
    left_out = len(target) - len(judged)
    probe = best.candidate.head
    return LabelErrors(suspects, int(issues.sum()), accuracy, majority, probe, left_out)


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

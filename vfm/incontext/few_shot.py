"""Few-shot classifier: the frozen heads of `vfm tune` and their vote, judged by leave-one-out on a few examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from vfm_runtime.errors import DataError
from vfm_runtime.heads_on_features import fit_nearest_mean

from vfm.metrics.intervals import Interval
from vfm.training.frozen_heads import POOLED, FrozenHeads

_SECONDS = 240.0
"""Time that choosing a head may take a quarter of; it takes a few seconds but for many examples."""


@dataclass(frozen=True, eq=False)
class FewShotClassifier:
    """A head on embeddings, fitted on N examples of C classes."""

    labels: tuple[str, ...]
    """Names of the classes."""
    heads: FrozenHeads
    """The examples, and the head that was chosen."""
    accuracy: Interval | None
    """Accuracy on examples that were left out; None where nothing can judge."""
    way: str
    """How it was judged, in words."""

    @property
    def name(self) -> str:
        """Name of the head."""
        return "nearest mean" if self.accuracy is None else self.heads.best.name

    def score(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities, [M, C], of other images by their embeddings, [M, D]."""
        if self.accuracy is not None:
            return self.heads.score({POOLED[0]: embeddings})
        heads = self.heads
        head = fit_nearest_mean(heads.features[POOLED[0]], heads.target, heads.num_labels)
        return np.asarray(softmax(head.compute_logits(embeddings), axis=1), np.float32)


def fit_few_shot(
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
) -> FewShotClassifier:
    """Choose among the heads of `vfm tune` and their vote by leaving one example of each class out in turn.

    The accuracy is that of choosing too, whose luck is taken out of it. An example that is the only one of its class
    counts as a mistake, as its class is not known without it. Where fewer than two classes have two examples nothing
    can be judged: nearest mean is then taken without a choice, and no accuracy is said.

    Args:
        embeddings: Vectors of the examples, [N, D].
        labels: Class of each example, N of them.
        keys: Key of each example, such as a checksum: those of one key are left out together. By default all differ.
        seed: Seed of which examples are left out together.

    Raises:
        DataError: There are fewer than two classes.
    """
    names = tuple(sorted(set(labels)))
    if len(names) < 2:
        raise DataError(
            f"The examples are of {len(names)} class{'es' * (len(names) != 1)}. Give examples of two classes or more."
        )
    target = np.array([names.index(label) for label in labels])
    keys = [str(i) for i in range(len(labels))] if keys is None else keys
    heads = FrozenHeads({POOLED[0]: embeddings}, target, len(names), keys, seed)
    counts = Counter(label for label, _ in set(zip(labels, keys, strict=True)))
    single = sum(count == 1 for count in counts.values())
    if len(names) - single < 2:
        way = f"not judged, since {single} of {len(names)} classes have one example"
        return FewShotClassifier(names, heads, None, way)
    heads.judge(_SECONDS)
    assert heads.choice is not None
    is_left_one_out = heads.num_folds >= max(counts.values())
    way = "leave-one-out of each class" if is_left_one_out else f"{heads.num_folds} folds"
    if single:
        way += f" ({single} of {len(names)} classes have one example, which counts as a mistake)"
    return FewShotClassifier(names, heads, heads.choice.interval, way)

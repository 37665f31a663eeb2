"""Few-shot classifier: the frozen heads of `vfm tune`, Tip-Adapter and their vote, judged by leave-one-out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from vfm_runtime.errors import DataError
from vfm_runtime.heads_on_features import fit_nearest_mean
from vfm_runtime.zero_shot import ZeroShotClassifier

from vfm.heads_on_features.tip_adapter import TipAdapter
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
    words: TipAdapter | None = None
    """The classes as words, where the model has a text tower."""

    @property
    def name(self) -> str:
        """Name of the head."""
        if self.accuracy is not None:
            return self.heads.best.name
        return "Tip-Adapter, as published" if self.words is not None else "nearest mean"

    def score(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities, [M, C], of other images by their embeddings, [M, D]."""
        if self.accuracy is not None:
            return self.heads.score({POOLED[0]: embeddings})
        examples, target = self.heads.features[POOLED[0]], self.heads.target
        if self.words is not None:
            logits = self.words.compute_logits(embeddings, examples, target)
        else:
            head = fit_nearest_mean(examples, target, self.heads.num_labels)
            logits = head.compute_logits(embeddings)
        return np.asarray(softmax(logits, axis=1), np.float32)


def fit_few_shot(
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
    words: ZeroShotClassifier | None = None,
) -> FewShotClassifier:
    """Choose among the heads of `vfm tune` and their vote by leaving one example of each class out in turn.

    The accuracy is that of choosing too, whose luck is taken out of it. An example that is the only one of its class
    counts as a mistake, as its class is not known without it. Where fewer than two classes have two examples nothing
    can be judged: nearest mean is then taken without a choice, and no accuracy is said. Where the classes are given as
    words too, words alone and Tip-Adapter are among the heads, and Tip-Adapter stands in for the nearest mean.

    Args:
        embeddings: Vectors of the examples, [N, D].
        labels: Class of each example, N of them.
        keys: Key of each example, such as a checksum: those of one key are left out together. By default all differ.
        seed: Seed of which examples are left out together.
        words: The classes as words, by the text tower of the model that gave the vectors.

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
    adapter = None
    if words is not None:
        rows = words.vectors[[words.labels.index(name) for name in names]]
        adapter = TipAdapter(rows, words.scale)
    settings = () if adapter is None else adapter.list_settings()
    features = {POOLED[0]: embeddings}
    heads = FrozenHeads(features, target, len(names), keys, seed, adapters=settings)
    counts = Counter(label for label, _ in set(zip(labels, keys, strict=True)))
    single = sum(count == 1 for count in counts.values())
    if len(names) - single < 2:
        way = f"not judged, since {single} of {len(names)} classes have one example"
        return FewShotClassifier(names, heads, None, way, adapter)
    heads.judge(_SECONDS)
    assert heads.choice is not None
    is_left_one_out = heads.num_folds >= max(counts.values())
    way = "leave-one-out of each class" if is_left_one_out else f"{heads.num_folds} folds"
    if single:
        mistaken = "a mistake" if adapter is None else "a mistake of all but words alone"
        way += f" ({single} of {len(names)} classes have one example, which counts as {mistaken})"
    return FewShotClassifier(names, heads, heads.choice.interval, way, adapter)

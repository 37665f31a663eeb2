"""Labels: match the data's to the model's, and weigh classes in training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from vfm_runtime.errors import VfmError

from vfm.data import ImageData
from vfm.data.records import list_labels

ClassWeights = Literal["balanced"] | dict[str, float] | None


class LabelError(VfmError, ValueError):
    """The labels of the data and of the model do not go together."""


def match_labels(data: ImageData, labels: Sequence[str], multilabel: bool) -> list[int]:
    """Return for each label of the data its index among the model's.

    Raises:
        LabelError: The data has labels that the model does not know, or other kinds of labels.
    """
    if data.multilabel != multilabel:
        raise LabelError(
            f"The model was trained with {'several labels' if multilabel else 'one label'} an image, "
            f"this data has {'several' if data.multilabel else 'one'}. Give data of the same kind."
        )
    unknown = [name for name in data.labels if name not in labels]
    if unknown:
        raise LabelError(
            f"The data has {len(unknown)} labels that the model was not trained for: {unknown[:5]}. "
            f"The model knows {len(labels)}: {list(labels[:10])}. "
            "Leave their images out, or train with them."
        )
    missing = [name for name in labels if name not in data.labels]
    if multilabel and missing:
        # Whether such a label applies is not known, so counting it as absent would give wrong figures.
        raise LabelError(
            f"The data says nothing of {len(missing)} labels of the model: {missing[:5]}. "
            "Add their columns; a label that applies to no image needs a column of zeros."
        )
    return [list(labels).index(name) for name in data.labels]


def compute_class_weights(choice: ClassWeights, data: ImageData) -> Tensor | None:
    """Return how much each class counts in training, float [C].

    Balanced weights are N / (C * n) for a class of n images out of N, so that their mean over
    images is 1; where several labels may apply, images that have a label are weighed by how many
    more have it not, (N - n) / n.

    Raises:
        LabelError: A weight is of no class, or not above 0.
    """
    if choice is None:
        return None
    if choice == "balanced":
        images = data.records["train"]
        counts = Counter(label for record in images for label in list_labels(record))
        number = torch.tensor([float(counts[k]) for k in range(len(data.labels))]).clamp(min=1)
        if data.multilabel:
            return (len(images) - number).clamp(min=1) / number
        return len(images) / (len(data.labels) * number)
    unknown = [name for name in choice if name not in data.labels]
    if unknown:
        raise LabelError(
            f"class_weights names {unknown[:5]}, which are no classes of the data. "
            f"Classes: {', '.join(data.labels[:20])}."
        )
    bad = {name: weight for name, weight in choice.items() if not weight > 0}
    if bad:
        raise LabelError(f"class_weights holds {bad}. Give numbers above 0.")
    return torch.tensor([float(choice.get(name, 1.0)) for name in data.labels])

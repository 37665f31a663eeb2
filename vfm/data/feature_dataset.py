"""Data set of stored features: what training reads when the backbone is frozen and has seen every image once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vfm.data.dataset import choose_text
from vfm.data.records import Record, list_labels
from vfm.types import Batch, Labels, MultiLabels


class StoredFeatures(Dataset[Any]):
    """The features of one split, a whole batch at a time. Loaders may be made before they are there."""

    def __init__(
        self, records: Sequence[Record], num_targets: int, seed: int | None = None
    ) -> None:
        """Say whose features these will be.

        Args:
            records: The images, N.
            num_targets: Number of labels where several may apply to an image, else 0, as of the data.
            seed: Seed by which the text of an image changes from epoch to epoch; None for the first of each.
        """
        self.seed = seed
        self._has_texts = any(record.texts for record in records)
        self.records = records
        self.arrays: Mapping[str, NDArray[np.float32]] = {}
        self.skipped: Mapping[int, str] = {}
        if num_targets:
            labels = torch.zeros((len(records), num_targets))
            for row, record in zip(labels, records, strict=True):
                row[list(list_labels(record))] = 1
            self.target: Labels = MultiLabels(labels)
        else:
            self.target = Labels(torch.tensor([record.label for record in records]))

    def fill(self, arrays: Mapping[str, NDArray[np.float32]], skipped: Mapping[int, str]) -> None:
        """Give the features.

        Args:
            arrays: Fields of `Features`, such as `pooled` [N, D]; they may lie on disk.
            skipped: The reason by position for each image that could not be read.
        """
        self.arrays, self.skipped = arrays, skipped

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Batch:
        """A batch of one image."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[Batch]:
        """One batch, in a list as torch's loader wants it, by positions or by pairs of epoch and position."""
        # Repetitions of an image in an epoch have higher indices; their features are the same.
        positions = [(key[1] if isinstance(key, tuple) else key) % len(self) for key in keys]
        good = np.array([i for i in positions if i not in self.skipped], dtype=np.int64)
        index = torch.from_numpy(good)
        batch = Batch(
            image=torch.empty((len(good), 0, 0, 3), dtype=torch.uint8),
            features={name: torch.from_numpy(array[good]) for name, array in self.arrays.items()},
            target=self.target._replace(label=self.target.label[index]),
            index=index,
            name=[self.records[i].name for i in good],
            skipped=[
                (self.records[i].name, self.skipped[i]) for i in positions if i in self.skipped
            ],
        )
        if self._has_texts:
            keyed = [key if isinstance(key, tuple) else (0, key) for key in keys]
            batch["texts"] = [
                choose_text(self.records[i], self.seed, epoch, i)
                for epoch, i in keyed
                if i not in self.skipped
            ]
        return [batch]

"""Batches by a budget of tokens: images with texts of like length come together, so that little is filled up."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, DistributedSampler
from vfm_runtime.errors import OptionError

from vfm.data.dataset import ImageDataset, Sample, Skipped
from vfm.data.feature_dataset import StoredFeatures
from vfm.types import Batch

BatchKey = list[tuple[int, int]]
"""A pair of epoch and index for each image of a batch."""


class TokenBatchSampler(DistributedSampler[BatchKey]):
    """Gives batches that a budget of tokens allows, for a loader that is told no batch size.

    Texts fall into classes of length, each sqrt(2) times as long as the one before. In every epoch the images of each
    class come in a new order, the line of all from long to short is cut where a batch is full, and the batches are
    shuffled. A batch is full by the class of its longest text, so that all epochs, and all ranks, have equally many
    batches: rank r of w takes of each the images r, r + w, .... What cannot be shared, fewer images than ranks, is left
    out: of the shortest texts, others in each epoch.

    It derives from torch's sampler so that Lightning does not put its own in place.
    """

    def __init__(
        self,
        num_tokens: NDArray[np.int64],
        *,
        budget: int,
        most: int,
        seed: int = 0,
        rank: int = 0,
        num_replicas: int = 1,
    ) -> None:
        """Plan the batches.

        Args:
            num_tokens: Tokens of the text of each image, [N].
            budget: Tokens of a batch on each process: its images times the tokens of its longest text.
            most: Images in a batch on each process.
            seed: Seed of the order, at least 0.
            rank: Rank of this process.
            num_replicas: Number of processes that share the batches.

        Raises:
            OptionError: Two of the longest texts are more than the budget.
        """
        longest = int(num_tokens.max())
        if 2 * longest > budget:
            raise OptionError(
                f"token_budget is {budget}, and the longest training text takes {longest} tokens: two of them, the "
                f"fewest that can be compared, do not fit. Give {2 * longest} or more (--data.token_budget), or cut "
                "texts (--model.text.context)."
            )
        # All that torch's sampler asks of a data set is its length.
        images = cast(Any, range(len(num_tokens)))
        super().__init__(images, num_replicas, rank, shuffle=True, seed=seed, drop_last=True)
        classes = np.ceil(2 * np.log2(num_tokens.clip(min=1)))
        self.budget, self.most = budget, most
        self.start = 0
        """Batches that the next iteration leaves out unopened; then 0 again."""
        self._lengths = np.minimum((2 ** (classes / 2)).astype(np.int64), longest)
        # Of each w images that ranks share, the first is the longest.
        line = np.sort(self._lengths)[::-1][: self.total_size : num_replicas]
        self._bounds = [0]
        while self._bounds[-1] < len(line):
            size = min(most, budget // int(line[self._bounds[-1]]))
            self._bounds.append(min(self._bounds[-1] + size, len(line)))
        # Of one image batch norm cannot learn. It is of the shortest texts, another one in each epoch.
        if len(self._bounds) > 2 and self._bounds[-1] - self._bounds[-2] == 1 < most:
            self._bounds.pop()

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def __iter__(self) -> Iterator[BatchKey]:
        """Batches of pairs of epoch and index, from `start` on.

        A generator, so that an epoch set after `iter` and before the first `next` still counts.
        """
        start, self.start = self.start, 0
        epoch = self.epoch
        bits = np.random.Philox(np.random.SeedSequence([self.seed, epoch]))
        line = np.lexsort((bits.random_raw(len(self._lengths)), -self._lengths))
        own = line[self.rank : self.total_size : self.num_replicas]
        for batch in np.argsort(bits.random_raw(len(self)), kind="stable")[start:].tolist():
            indices = own[self._bounds[batch] : self._bounds[batch + 1]]
            yield [(epoch, index) for index in indices.tolist()]


class BatchDataset(Dataset[list[Sample | Skipped] | list[Batch]]):
    """The images of a split, a whole batch by a key."""

    def __init__(self, dataset: ImageDataset | StoredFeatures) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, key: BatchKey) -> list[Sample | Skipped] | list[Batch]:
        """What is joined to a batch."""
        if isinstance(self.dataset, StoredFeatures):
            return self.dataset.__getitems__(key)
        return [self.dataset[one] for one in key]

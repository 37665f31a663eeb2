"""Sampler: the order of samples as a function of seed and epoch, whatever the number of ranks and workers."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
from torch.utils.data import DistributedSampler
from vfm_runtime.errors import OptionError


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Gives pairs of epoch and index.

    Rank r of w takes the positions r, r + w, ... of the one global order, which wraps around so
    that all ranks take equally many. The epoch goes with the index because workers that live on
    never hear of a new one.

    It derives from torch's sampler so that Lightning does not put its own in place.
    """

    def __init__(
        self, num_images: int, *, shuffle: bool, seed: int = 0, rank: int = 0, num_replicas: int = 1
    ) -> None:
        """Make the sampler.

        Args:
            num_images: Size of the split, at least 1.
            shuffle: Whether every epoch has an order of its own.
            seed: Seed of the order, at least 0.
            rank: Rank of this process.
            num_replicas: Number of processes.

        Raises:
            ValueError: There are no images.
        """
        if num_images < 1:
            raise OptionError(f"A sampler needs at least 1 image, not {num_images}.")
        # All that torch's sampler asks of a data set is its length.
        super().__init__(cast(Any, range(num_images)), num_replicas, rank, shuffle, seed)
        self.num_images = num_images
        self.start = 0
        """Samples of this rank that the next iteration leaves out unopened; then 0 again."""

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Pairs of epoch and index, from `start` on.

        A generator, so that an epoch set after `iter` and before the first `next` still counts.
        """
        start, self.start = self.start, 0
        epoch = self.epoch
        positions = np.arange(self.rank, self.total_size, self.num_replicas)[start:]
        for index in self._order(epoch)[positions % self.num_images].tolist():
            yield epoch, index

    def _order(self, epoch: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        if not self.shuffle:
            return np.arange(self.num_images)
        # Sorting raw bits: numpy keeps these for ever, but not what `permutation` makes of them.
        bits = np.random.Philox(np.random.SeedSequence([self.seed, epoch]))
        order: np.ndarray[tuple[int], np.dtype[np.int64]] = np.argsort(
            bits.random_raw(self.num_images), kind="stable"
        )
        return order

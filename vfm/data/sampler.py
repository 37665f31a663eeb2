"""Sampler: the order of samples as a function of seed and epoch, whatever the number of ranks and workers."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DistributedSampler
from vfm_runtime.errors import OptionError

_AT_ONCE = 2**28
"""Bytes of photos whose tiles are shuffled among one another."""


class Photos(NamedTuple):
    """Which of the N samples are parts of one photo, of P."""

    of_sample: NDArray[np.int64]
    """[N], index of the photo."""
    num_bytes: NDArray[np.int64]
    """[P], size of each photo when it is open."""


def compute_repeat_factors(
    labels: Sequence[Sequence[int]], num_labels: int, threshold: float
) -> NDArray[np.float64]:
    """Return how often an image comes for one of frequent classes, [N] (repeat factor sampling; Gupta et al., 2019).

    A class that a fraction f of the images shows asks for sqrt(threshold / f), at least 1, and an image for the most
    that one of its classes asks for.

    Args:
        labels: Classes that each of N images shows.
        num_labels: Number of classes of the data, seen or not.
        threshold: Fraction of the images below which a class is rare.
    """
    counts = np.zeros(num_labels)
    for of_image in labels:
        counts[list(set(of_image))] += 1
    factors = np.sqrt(threshold * len(labels) / np.maximum(counts, 1)).clip(min=1.0)
    return np.array([max((factors[k] for k in of_image), default=1.0) for of_image in labels])


class EpochSampler(DistributedSampler[tuple[int, int]]):
    """Gives pairs of epoch and index.

    Rank r of w takes the positions r, r + w, ... of the one global order, which wraps around so
    that all ranks take equally many. The epoch goes with the index because workers that live on
    never hear of a new one.

    Where samples are parts of photos, photos come in a new order in every epoch, and parts are shuffled among as many
    photos as can stay open: a worker opens a photo once an epoch, not once for each part.

    It derives from torch's sampler so that Lightning does not put its own in place.
    """

    def __init__(
        self,
        num_images: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        num_replicas: int = 1,
        photos: Photos | None = None,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        """Make the sampler.

        Args:
            num_images: Size of the split, at least 1.
            shuffle: Whether every epoch has an order of its own.
            seed: Seed of the order, at least 0.
            rank: Rank of this process.
            num_replicas: Number of processes.
            photos: Photos of which the samples are parts; None where each is an image of its own.
            weights: How often each sample comes in proportion to others, [N]; None for once an epoch. An epoch stays
                as long as it was: some samples are then left out, and the r-th repetition of one has an index that is
                r N higher, so that it may be augmented differently.

        Raises:
            ValueError: There are no images.
        """
        if num_images < 1:
            raise OptionError(f"A sampler needs at least 1 image, not {num_images}.")
        # All that torch's sampler asks of a data set is its length.
        super().__init__(cast(Any, range(num_images)), num_replicas, rank, shuffle, seed)
        self.num_images = num_images
        self.photos = photos
        self.weights = weights
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
        chosen = np.arange(self.num_images)
        if self.weights is not None:
            chosen = self._choose_samples(bits)
        if self.photos is not None:
            of_sample, num_bytes = self.photos
            turn = np.argsort(bits.random_raw(len(num_bytes)), kind="stable")
            window = np.empty(len(turn), np.int64)
            window[turn] = (num_bytes[turn].cumsum() - 1) // _AT_ONCE
            photo = of_sample[chosen % self.num_images]
            return chosen[np.lexsort((bits.random_raw(self.num_images), window[photo]))]
        order: np.ndarray[tuple[int], np.dtype[np.int64]] = np.argsort(
            bits.random_raw(self.num_images), kind="stable"
        )
        return chosen[order]

    def _choose_samples(self, bits: np.random.Philox) -> NDArray[np.int64]:
        """Return as many samples as there are, each as often as its weight says, rounded up or down at random."""
        assert self.weights is not None
        turn = np.argsort(bits.random_raw(self.num_images), kind="stable")
        ends = self.weights[turn].cumsum()
        start = float(bits.random_raw(1)[0]) / 2**64
        steps = (np.arange(self.num_images) + start) * (ends[-1] / self.num_images)
        chosen: NDArray[np.int64] = np.sort(
            turn[np.searchsorted(ends, steps, side="right").clip(max=len(turn) - 1)]
        )
        repetition = np.arange(len(chosen)) - np.searchsorted(chosen, chosen)
        return chosen + repetition * self.num_images

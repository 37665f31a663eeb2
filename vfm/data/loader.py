"""A training loader that Lightning can resume in the middle of an epoch, sample for sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch.utils.data import DataLoader
from vfm_runtime.errors import DataError

from vfm.data.dataset import ImageDataset, Sample, Skipped
from vfm.data.feature_dataset import StoredFeatures
from vfm.data.sampler import EpochSampler


class Position(NamedTuple):
    """How far training has come."""

    epoch: int
    """Epoch of the next batch, from 0."""
    batches: int
    """Batches of that epoch that are done, on each rank."""


class ResumableLoader(DataLoader[Sample | Skipped]):
    """A `DataLoader` whose state is a position; Lightning saves and loads it with a checkpoint.

    Workers run ahead of training, so the loader cannot know the position itself: it asks.
    """

    def __init__(
        self,
        dataset: ImageDataset | StoredFeatures,
        *,
        position: Callable[[], Position],
        **kwargs: Any,
    ) -> None:
        """Make the loader.

        Args:
            dataset: The training split.
            position: Gives the position at the time of the call.
            **kwargs: As for torch's loader; the sampler should be an `EpochSampler`.
        """
        super().__init__(dataset, **kwargs)
        # Public and of the same name as the argument: Lightning makes loaders anew from their
        # attributes.
        self.position = position

    def state_dict(self) -> dict[str, int]:
        """The position, and what must be equal for it to mean the same samples."""
        epoch, batches = self.position()
        return {
            "epoch": epoch,
            "batches": batches,
            "num_images": self._num_images(),
            "global_batch_size": self._global_batch_size(),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position; the next iteration starts there.

        Raises:
            ValueError: The position lies in the middle of an epoch, and the number of images or the
                batch size over all processes has changed since, so that the rest of the epoch is
                not what was left.
        """
        if state["batches"]:
            self._check("images", state["num_images"], self._num_images())
            self._check("images a step", state["global_batch_size"], self._global_batch_size())
        # Lightning's `overfit_batches` puts a plain sampler in place, which has no position.
        if isinstance(self.sampler, EpochSampler):
            self.sampler.set_epoch(state["epoch"])
            self.sampler.start = state["batches"] * (self.batch_size or 1)

    def _check(self, what: str, then: int, now: int) -> None:
        if then != now:
            raise DataError(
                "The checkpoint was saved in the middle of an epoch, when training had "
                f"{then} {what}; now it has {now}. Resume with the same data and the same batch "
                "size times number of processes, or from a checkpoint of the end of an epoch."
            )

    def _num_images(self) -> int:
        assert isinstance(self.dataset, ImageDataset | StoredFeatures)
        return len(self.dataset)

    def _global_batch_size(self) -> int:
        replicas = getattr(self.sampler, "num_replicas", 1)
        return (self.batch_size or 1) * int(replicas)

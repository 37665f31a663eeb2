"""Resumable loader: training goes on in the middle of an epoch, sample for sample."""

from collections.abc import Callable, Sized
from typing import Any, NamedTuple, cast

from torch.utils.data import DataLoader
from vfm_runtime.errors import DataError

from vfm.data.sampler import EpochSampler
from vfm.data.token_batches import TokenBatchSampler


class Position(NamedTuple):
    """How far training has come."""

    epoch: int
    """Epoch of the next batch, from 0."""
    batches: int
    """Batches of that epoch that are done, on each rank."""


class ResumableLoader(DataLoader[Any]):
    """A `DataLoader` whose state is a position; Lightning saves and loads it with a checkpoint.

    Workers run ahead of training, so the loader cannot know the position itself: it asks.
    """

    def __init__(self, dataset: Any, *, position: Callable[[], Position], **kwargs: Any) -> None:
        """Make the loader.

        Args:
            dataset: The training split.
            position: Gives the position at the time of the call.
            **kwargs: Options of torch's loader; the sampler should be an `EpochSampler` or a `TokenBatchSampler`.
        """
        super().__init__(dataset, **kwargs)
        # Public and of the same name as the argument: Lightning makes loaders anew from their attributes.
        self.position = position

    @property
    def epoch_numbers(self) -> dict[str, int]:
        """What must be equal for a position to mean the same samples, by names for a message."""
        replicas = int(getattr(self.sampler, "num_replicas", 1))
        numbers = {"num_images": len(cast(Sized, self.dataset))}
        if isinstance(self.sampler, TokenBatchSampler):
            return numbers | {
                "global_batch_size": self.sampler.most * replicas,
                "token_budget": self.sampler.budget * replicas,
                "num_batches": len(self.sampler),
            }
        return numbers | {"global_batch_size": (self.batch_size or 1) * replicas}

    def state_dict(self) -> dict[str, int]:
        """The position, and what must be equal for it to mean the same samples."""
        return {**self.position()._asdict(), **self.epoch_numbers}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position; the next iteration starts there.

        Raises:
            ValueError: The position lies in the middle of an epoch, and what it was counted by has changed since, so
                that the rest of the epoch is not what was left.
        """
        changed = [
            f"{name.replace('_', ' ')} ({state.get(name)} to {number})"
            for name, number in self.epoch_numbers.items()
            if state.get(name) != number
        ]
        if state["batches"] and changed:
            raise DataError(
                "The checkpoint was saved in the middle of an epoch, and since then have changed: "
                f"{', '.join(changed)}. Resume with the same data and the same batch size, processes and workers, or "
                "from a checkpoint of the end of an epoch."
            )
        self.start_at(Position(state["epoch"], state["batches"]))

    def start_at(self, position: Position) -> None:
        """Make the next iteration start at a position."""
        # Lightning's `overfit_batches` puts a plain sampler in place, which has no position.
        if isinstance(self.sampler, EpochSampler | TokenBatchSampler):
            self.sampler.set_epoch(position.epoch)
            self.sampler.start = position.batches * (self.batch_size or 1)


def leave_finished_epoch(trainer: Any) -> None:
    """Keep Lightning from counting an epoch twice.

    Resuming a training that is counted in steps from the end of an epoch, Lightning 2.6 runs that epoch again without
    batches, and the next one gets the number after the next.
    """
    if trainer is None:
        return
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress.current
    if loop.restarting and epochs.ready == epochs.processed:
        # Its own setter says no when training is counted in steps.
        loop._restarting = False
        loop.epoch_loop.restarting = False

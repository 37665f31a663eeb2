"""Random numbers of a step of training, such as those of dropout: the same ones when a training goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TypeVar

import torch

from vfm.training.checkpoint import CheckpointedModel
from vfm.types import Batch, StepKey

M = TypeVar("M", bound=CheckpointedModel)
T = TypeVar("T")


@contextmanager
def draw_by(key: Sequence[int], device: torch.device) -> Iterator[None]:
    """Draw what torch's own generators give by numbers, and leave these generators as they were.

    Args:
        key: The same numbers draw the same.
        device: Device that is computed on besides the CPU.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        # Not the seed of generators of one's own that a task makes from the same key.
        torch.manual_seed(hash((*key, 2)))
        yield


def draw_by_key(
    compute: Callable[[M, Batch, StepKey], T],
) -> Callable[[M, Batch, StepKey], T]:
    """Make what a method draws hang on its step alone, not on the steps before it."""

    @wraps(compute)
    def compute_by_key(task: M, batch: Batch, key: StepKey) -> T:
        with draw_by(key, task.device):
            return compute(task, batch, key)

    return compute_by_key

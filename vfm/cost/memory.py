"""Memory of a training step: what is allocated in it, operation by operation, and its peak at any batch size."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass
class MemoryTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of tensors made while it is active, and notes their sum after each operation.

    Tensors that exist before, such as the weights, do not count: the sum is what a step needs beside the built model.
    """

    live: int = 0
    timeline: list[int] = field(default_factory=list)
    """Bytes held after each operation."""

    def __post_init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._seen: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run an operation, and count what it made."""
        for value in tree_leaves((args, kwargs)):
            self._note(value, is_new=False)
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            self._note(value, is_new=True)
        self.timeline.append(self.live)
        return result

    def _note(self, value: Any, *, is_new: bool) -> None:
        if not isinstance(value, torch.Tensor) or value.device.type == "meta":
            return
        storage = value.untyped_storage()
        key = storage._cdata
        if key in self._seen:
            return
        size = storage.nbytes() if is_new else 0

        def forget(_: Any) -> None:
            self.live -= size
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, forget)
        self.live += size


def predict_peak(
    small: tuple[int, Sequence[int]], large: tuple[int, Sequence[int]], batch_size: int
) -> int:
    """Return the peak bytes of a step at another batch size, from the timelines at two.

    What each operation holds grows in a line with the batch; which of them holds most differs from size to size: in
    small batches that is where gradients are complete, in large ones where the backward pass begins.

    Args:
        small: Batch size and timeline of the smaller batch.
        large: Batch size and timeline of the larger batch.
        batch_size: Number of images to predict for.
    """
    count = max(len(small[1]), len(large[1]))
    # The loss of some tasks runs once for each image; elsewhere the operations are the same.
    first, second = (_stretch(timeline, count) for _, timeline in (small, large))
    slope = (second - first) / (large[0] - small[0])
    return int((first + slope * (batch_size - small[0])).max())


def _stretch(timeline: Sequence[int], count: int) -> NDArray[np.float64]:
    positions = np.linspace(0, len(timeline) - 1, count)
    return np.interp(positions, np.arange(len(timeline)), timeline)

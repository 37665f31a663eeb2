"""Ranks: values gathered, or reduced, over all processes of a distributed job."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.distributed import ReduceOp

T = TypeVar("T")


def gather_ranks(value: T) -> list[T]:
    """Return the values of all ranks in their order; of one process alone its own."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def reduce_ranks(value: float, device: torch.device, operation: Any = ReduceOp.SUM) -> float:
    """Return the sum, or another reduction, of a number over all ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return value
    tensor = torch.tensor(float(value), device=device)
    torch.distributed.all_reduce(tensor, operation)
    return tensor.item()

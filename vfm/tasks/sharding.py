"""FSDP2: every rank holds a part of the weights, gradients and optimiser state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard

if TYPE_CHECKING:
    from vfm.tasks.base import BaseTask


def shard(task: BaseTask) -> None:
    """Shard a task's blocks, then what is left of it; with any other strategy than ModelParallelStrategy, nothing.

    Args:
        task: With its head made.
    """
    if not isinstance(task.trainer.strategy, ModelParallelStrategy):
        return
    assert task.device_mesh is not None
    mesh = task.device_mesh["data_parallel"]
    for block in blocks_of(task.backbone.model):
        fully_shard(block, mesh=mesh)
    fully_shard(task.backbone, mesh=mesh)
    fully_shard(task.head, mesh=mesh)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The repeated parts of a timm model, such as a transformer's blocks.

    They are the innermost members of its sequences that hold several matrices.
    """
    found = [
        child
        for module in model.modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        for child in module
        if sum(p.ndim > 1 for p in child.parameters()) > 1
    ]
    known = {id(block) for block in found}
    return [b for b in found if not any(id(m) in known for m in b.modules() if m is not b)]

"""FSDP2: every rank holds a part of the weights, gradients and optimizer state."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.fsdp import fully_shard
from vfm_runtime.errors import VfmError

from vfm.training.checkpoint import CheckpointedModel


class ShardingError(VfmError, ValueError):
    """A strategy asks for another sharding than over the data."""


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy with all ranks sharing out the data, and checkpoints of one file.

    A Trainer knows it as `fsdp2`: `--trainer.strategy fsdp2`.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Take the arguments of ModelParallelStrategy, with another default of one."""
        super().__init__(**({"save_distributed_checkpoint": False} | kwargs))

    def setup_environment(self) -> None:
        """Make the mesh: Lightning's own would share out tensors, not data, among the GPUs of a machine."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        self._tensor_parallel_size = 1
        super().setup_environment()


if "fsdp2" not in StrategyRegistry:
    StrategyRegistry.register(
        "fsdp2", FSDP2, description="FSDP2 over the data, one-file checkpoints"
    )


def shard(task: CheckpointedModel) -> None:
    """Shard a task's blocks, then what is left of it; with any other strategy than ModelParallelStrategy, nothing.

    Raises:
        ShardingError: The strategy splits single tensors, which no layer here is made for.
    """
    if not isinstance(task.trainer.strategy, ModelParallelStrategy):
        return
    assert task.device_mesh is not None
    if task.device_mesh["tensor_parallel"].size() > 1:
        raise ShardingError(
            "ModelParallelStrategy splits tensors over "
            f"{task.device_mesh['tensor_parallel'].size()} ranks, and the data over "
            f"{task.device_mesh['data_parallel'].size()}; vfm shards over the data alone. "
            "Give --trainer.strategy fsdp2."
        )
    # Each rank is about to keep a part of its own, so all start from the weights of the first.
    with torch.no_grad():
        for tensor in (*task.parameters(), *task.buffers()):
            first = tensor.to(task.trainer.strategy.root_device)
            torch.distributed.broadcast(first, src=0)
            tensor.copy_(first)
    mesh = task.device_mesh["data_parallel"]
    for block in list_blocks(task.backbone.model):
        fully_shard(block, mesh=mesh)
    fully_shard(task.backbone, mesh=mesh)
    fully_shard(task.head, mesh=mesh)


def list_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the repeated parts of a timm model, such as a transformer's blocks.

    They are the innermost members of its sequences that hold several matrices.
    """
    blocks = [
        child
        for module in model.modules()
        if isinstance(module, nn.Sequential | nn.ModuleList)
        for child in module
        if sum(p.ndim > 1 for p in child.parameters()) > 1
    ]
    ids = {id(block) for block in blocks}
    return [b for b in blocks if not any(id(m) in ids for m in b.modules() if m is not b)]

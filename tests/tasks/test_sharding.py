"""What FSDP2 shards, and what it refuses; tests/tasks/test_ranks.py trains with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from tests.models.test_adapt import FAMILIES, backbone
from tests.tasks.tiny import vit
from vfm.training.sharding import ShardingError, list_blocks, shard


@pytest.mark.parametrize("name", FAMILIES)
def test_blocks_hold_most_weights_and_none_twice(name: str) -> None:
    model = backbone(name).model
    blocks = list_blocks(model)
    assert len(blocks) >= 2
    ids = [id(p) for block in blocks for p in block.parameters()]
    assert len(set(ids)) == len(ids)
    inside = sum(p.numel() for block in blocks for p in block.parameters())
    assert inside > 0.4 * sum(p.numel() for p in model.parameters())


def test_blocks_of_a_vit_are_its_blocks() -> None:
    model = backbone("vit_tiny_patch16_224").model
    assert list_blocks(model) == list(model.blocks)


def test_tensor_parallelism_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = vit()
    sizes = {"data_parallel": 1, "tensor_parallel": 4}
    mesh = {name: SimpleNamespace(size=lambda size=size: size) for name, size in sizes.items()}
    trainer: Any = SimpleNamespace(strategy=object.__new__(ModelParallelStrategy))
    monkeypatch.setattr(type(task), "trainer", trainer)
    monkeypatch.setattr(type(task), "device_mesh", mesh)
    with pytest.raises(
        ShardingError, match=r"splits tensors over 4 ranks.*--trainer.strategy fsdp2"
    ):
        shard(task)


def test_other_strategies_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    task = vit()
    monkeypatch.setattr(type(task), "trainer", SimpleNamespace(strategy=None))
    before = [type(m) for m in task.modules()]
    shard(task)
    assert [type(m) for m in task.modules()] == before
    assert not any(isinstance(p, torch.distributed.tensor.DTensor) for p in task.parameters())

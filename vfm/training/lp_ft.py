"""LP-FT: solve the head on the features of an untouched backbone before that learns (Kumar et al., 2022)."""

from __future__ import annotations

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import move_data_to_device, rank_zero_info
from torch import Tensor
from vfm_runtime.errors import VfmError

from vfm.data import ImageData
from vfm.data.feature_dataset import StoredFeatures
from vfm.models.heads import LinearHead
from vfm.models.heads.dense import DenseHead
from vfm.training import solved_head
from vfm.training.checkpoint import CheckpointedModel
from vfm.training.feature_cache import load_task_features
from vfm.training.solved_classes import solve_classes

_CHUNK = 8192
_STEPS = 100
_DECAY = 1e-4


class ProbeError(VfmError, ValueError):
    """The head cannot be solved before the backbone learns."""


def solve_head(task: CheckpointedModel, data: ImageData) -> None:
    """Solve the head on the training split: a LinearHead as the linear probe is, C and scaling by cross-validation.

    Of a DenseHead the class layer alone is solved. Of any other head the task's own loss is minimized by L-BFGS, with
    all training images in every step.

    Raises:
        ProbeError: The head reads feature maps, or the strategy shards it.
    """
    is_dense = isinstance(task.head, DenseHead)
    if "maps" in task.head.uses and not is_dense:
        raise ProbeError(
            f"--model.lp_ft true needs a head that reads no feature maps; {type(task.head).__name__} does. "
            "Leave it out, or take LinearHead, MLPHead, AttentionPoolHead, or DenseHead for boxes."
        )
    if isinstance(task.trainer.strategy, ModelParallelStrategy):
        raise ProbeError(
            "--model.lp_ft true does not go with FSDP2, which shards the head. Train the head alone first "
            "(--model.adapt linear), and go on from its checkpoint."
        )
    if is_dense:
        solve_classes(task, data)
        return
    stored = load_task_features(task, data, "train")
    if type(task.head) is LinearHead:
        solved_head.solve_head(task, data, stored)
    else:
        _minimize_loss(task, stored)


def _minimize_loss(task: CheckpointedModel, stored: StoredFeatures) -> None:
    batches = [
        stored.__getitems__(range(i, min(i + _CHUNK, len(stored))))[0]
        for i in range(0, len(stored), _CHUNK)
    ]
    total = sum(batch["target"].loss_divisor for batch in batches)
    weights = [p for p in task.head.parameters() if p.requires_grad]
    solver = torch.optim.LBFGS(
        weights, max_iter=_STEPS, history_size=10, line_search_fn="strong_wolfe"
    )
    losses: list[float] = []

    def compute_loss() -> Tensor:
        solver.zero_grad()
        value = torch.zeros((), device=task.device)
        for batch in batches:
            batch = move_data_to_device(batch, task.device)
            loss = task.compute_loss(task.compute_raw(batch), batch) / total
            loss.backward()  # type: ignore[no-untyped-call]
            value += loss.detach()
        for weight in weights:
            # The usual light penalty: without one, classes that a plane separates have no solution.
            assert weight.grad is not None
            weight.grad += _DECAY * weight.detach()
            value += 0.5 * _DECAY * weight.detach().square().sum()
        losses.append(float(value))
        return value

    with torch.enable_grad():
        task.head.eval()
        solver.step(compute_loss)  # type: ignore[no-untyped-call]
        task.head.train()
        solver.zero_grad()
    if task.trainer.world_size > 1:
        for weight in weights:
            torch.distributed.broadcast(weight.data, src=0)
    rank_zero_info(
        f"Head solved on {total} images: loss {losses[0]:.4f} to {losses[-1]:.4f} in {len(losses)} evaluations."
    )

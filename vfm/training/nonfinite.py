"""Non-finite loss: NaN or infinity ends the run before it reaches the weights, with all that is needed to see why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor

from vfm.models.tensors import read_metadata, read_plain, write_tensors
from vfm.training.callbacks import output_dir
from vfm.training.loading import load_model
from vfm.training.protocols import LossModel
from vfm.types import Batch

FOLDER = "nonfinite"
"""Folder of a run with the batch and the state."""

_STATE = "state.ckpt"
_SHOWN = 8


class NonFiniteLossError(ValueError):
    """The loss of a batch is infinite or no number."""


def require_finite(task: LossModel, loss: Tensor, batch: Batch) -> None:
    """Stop on all ranks when the loss of any is not finite; the weights are as before this batch.

    Args:
        task: In training.
        loss: Of the batch, before it is differentiated.
        batch: As given to `training_step`.

    Raises:
        NonFiniteLossError: With the names of the images; batch and state lie in the run's folder `nonfinite`.
    """
    trainer = task.trainer
    bad = (~torch.isfinite(loss.detach())).float()
    anywhere = bad.clone()
    if trainer.world_size > 1:
        torch.distributed.all_reduce(anywhere, torch.distributed.ReduceOp.MAX)
    if not anywhere.item():
        return
    folder = output_dir(trainer) / FOLDER
    trainer.save_checkpoint(folder / _STATE)
    if not bad.item():
        raise NonFiniteLossError(f"The loss of another rank is not finite; see {folder}.")
    tensors = {
        k: v for k, v in batch.items() if isinstance(v, Tensor) and k in ("image", "label", "index")
    }
    tensors |= {f"features.{k}": v for k, v in batch.get("features", {}).items()}
    file = folder / f"batch_rank{trainer.global_rank}.safetensors"
    write_tensors(file, tensors, {"name": json.dumps(batch["name"])})
    raise NonFiniteLossError(_message(task, loss, batch, file))


def replay(folder: str | Path, rank: int = 0, **load: Any) -> dict[str, float]:
    """The loss of each image of the batch that stopped a run, from the weights at that moment.

    Args:
        folder: The `nonfinite` folder of the run.
        rank: Whose batch.
        **load: As for `BaseTask.load`, such as trust.
    """
    folder = Path(folder)
    task = load_model(folder / _STATE, LightningModule, **load)
    file = folder / f"batch_rank{rank}.safetensors"
    tensors = read_plain(file)
    names = json.loads(read_metadata(file)["name"])
    features = {
        k.removeprefix("features."): v for k, v in tensors.items() if k.startswith("features.")
    }
    batch: Any = {"name": names, "image": tensors["image"], "label": tensors["label"]}
    if features:
        batch["features"] = features
    return dict(zip(names, _losses(task, batch), strict=True))


@torch.no_grad()
def _losses(task: LossModel, batch: Batch) -> list[float]:
    """Loss of each image alone, in evaluation mode."""
    was_training = task.training
    task.eval()
    losses = []
    for i in range(len(batch["name"])):
        one: Any = {"image": batch["image"][i : i + 1]}
        if "features" in batch:
            one["features"] = {k: v[i : i + 1] for k, v in batch["features"].items()}
        losses.append(float(task.loss(task.raw(one), batch["label"][i : i + 1])))
    task.train(was_training)
    return losses


def _message(task: LossModel, loss: Tensor, batch: Batch, file: Path) -> str:
    trainer = task.trainer
    where = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
    names = batch["name"]
    # A sharded model answers only when all ranks ask.
    whole = trainer.world_size == 1 or not isinstance(trainer.strategy, ModelParallelStrategy)
    broken = [n for n, p in task.named_parameters() if whole and not torch.isfinite(p).all()]
    if broken:
        cause = (
            f"{len(broken)} weights are not finite themselves ({', '.join(broken[:3])}): an earlier step was too "
            f"large. Lower --model.optim.lr (now {task.optim.lr:g}) or --model.optim.clip, or train with bf16 in place "
            "of fp16"
        )
    else:
        alone = zip(names, _losses(task, batch), strict=True) if whole else ()
        guilty = [name for name, value in alone if not torch.isfinite(torch.tensor(value))]
        names = guilty or names
        which = "these images alone" if guilty else "this batch, though of none of its images alone"
        cause = f"It is not finite for {which}: look at them and their labels, or lower --model.optim.lr"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (
        f"The loss is {float(loss):g} in {where}. {cause}.\n"
        f"Images: {', '.join(names[:_SHOWN])}{more}.\n"
        f"Batch and state from before the step: {file.parent}. Each image's loss: "
        'python -c "from vfm.training.nonfinite import replay; '
        f"print(replay('{file.parent}', {trainer.global_rank}))\""
    )

"""Non-finite loss: NaN or infinity ends the run before it reaches the weights, with all that is needed to see why."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed import ReduceOp
from vfm_runtime.errors import VfmError

from vfm.models.tensors import read_metadata, read_plain, write_tensors
from vfm.renames import update_path
from vfm.spec import get_class_path, import_class
from vfm.training.callbacks import get_output_dir
from vfm.training.checkpoint import CheckpointedModel, read_checkpoint
from vfm.training.ranks import reduce_ranks
from vfm.types import Batch, StepKey, select_image

FOLDER = "nonfinite"
"""Folder of a run with the batch and the state."""

_STATE = "state.ckpt"
_LISTS: tuple[Literal["name", "texts"], ...] = ("name", "texts")
_SHOWN = 8


class NonFiniteLossError(VfmError, ValueError):
    """The loss of a batch is infinite or no number."""


@dataclass(frozen=True)
class Replay:
    """The losses of a batch that stopped a run."""

    step: dict[str, float]
    """Sums over the batch by name, in training mode, with what the step drew for its augmentation."""
    images: dict[str, float]
    """Loss of each image alone, by its name, in evaluation mode."""


def require_finite(task: CheckpointedModel, loss: Tensor, batch: Batch, key: StepKey) -> None:
    """Stop on all ranks when the loss of any is not finite; the weights are as before this batch.

    Raises:
        NonFiniteLossError: With the names of the images; batch and state lie in the run's folder `nonfinite`.
    """
    trainer = task.trainer
    is_bad = not torch.isfinite(loss.detach()).item()
    if not reduce_ranks(is_bad, loss.device, ReduceOp.MAX):
        return
    folder = get_output_dir(trainer) / FOLDER
    trainer.save_checkpoint(folder / _STATE)
    if not is_bad:
        raise NonFiniteLossError(f"The loss of another rank is not finite; see {folder}.")
    file = folder / f"batch_rank{trainer.global_rank}.safetensors"
    tensors = {name: value for name, value in batch.items() if isinstance(value, Tensor)}
    tensors |= {f"features.{name}": value for name, value in batch.get("features", {}).items()}
    target = batch["target"]
    tensors |= {f"target.{name}": value for name, value in target._asdict().items()}
    metadata = {"target": get_class_path(type(target)), "key": json.dumps(key)}
    metadata |= {name: json.dumps(batch[name]) for name in _LISTS if name in batch}
    write_tensors(file, tensors, metadata)
    raise NonFiniteLossError(_explain(task, loss, batch, folder))


def replay(folder: str | Path, rank: int = 0, **load: Any) -> Replay:
    """Return the losses of the batch that stopped a run, from the weights at that moment, in 32 bits.

    Pairs of other ranks, which a contrastive loss compares with too, are not there.

    Args:
        folder: The `nonfinite` folder of the run.
        rank: Rank whose batch it is.
        **load: Arguments of `BaseTask.load`, such as trust.
    """
    folder = Path(folder)
    content = read_checkpoint(folder / _STATE)
    task = CheckpointedModel.restore(content, folder / _STATE, **load)
    task.restore_parts(content["state_dict"])
    batch, key = _load_batch(folder / f"batch_rank{rank}.safetensors", load.get("trust", ()))
    images = dict(zip(batch["name"], _compute_each_loss(task.eval(), batch), strict=True))
    with torch.no_grad():
        losses = task.train().compute_train_losses(batch, key)
    return Replay({name: float(loss) for name, loss in losses.items()}, images)


def _load_batch(file: Path, trust: Collection[str]) -> tuple[Batch, StepKey]:
    """Read the batch that `require_finite` wrote, and its step."""
    metadata = read_metadata(file)
    groups: dict[str, dict[str, Tensor]] = {"": {}, "features": {}, "target": {}}
    for path, tensor in read_plain(file).items():
        group, _, name = path.rpartition(".")
        groups[group][name] = tensor
    lists = {name: json.loads(metadata[name]) for name in _LISTS if name in metadata}
    batch: Any = {"skipped": [], **lists, **groups[""]}
    batch["target"] = import_class(update_path(metadata["target"]), trust)(**groups["target"])
    if groups["features"]:
        batch["features"] = groups["features"]
    key = json.loads(metadata["key"])
    return cast(Batch, batch), tuple(key)


@torch.no_grad()
def _compute_each_loss(task: CheckpointedModel, batch: Batch) -> list[float]:
    """Return the loss of each image alone, in evaluation mode."""
    was_training = task.training
    task.eval()
    losses = []
    for i in range(len(batch["name"])):
        losses.append(float(task.compute_eval_loss(select_image(batch, i))))
    task.train(was_training)
    return losses


def _explain(task: CheckpointedModel, loss: Tensor, batch: Batch, folder: Path) -> str:
    trainer = task.trainer
    where = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
    names = batch["name"]
    # A sharded model answers only when all ranks ask.
    whole = trainer.world_size == 1 or not isinstance(trainer.strategy, ModelParallelStrategy)
    broken = [n for n, p in task.named_parameters() if whole and not torch.isfinite(p).all()]
    # Infinite ones may be so by design, such as masks of an attention.
    statistics = [n for n, values in task.named_buffers() if values.isnan().any()]
    if broken:
        cause = (
            f"{len(broken)} weights are not finite themselves ({', '.join(broken[:3])}): an earlier step was too "
            f"large. Lower --model.optim.lr (now {task.optim.lr:g}) or --model.optim.max_grad_norm, or train with "
            "bf16 in place of fp16"
        )
    elif statistics:
        cause = (
            f"{len(statistics)} statistics of the model are no numbers either ({', '.join(statistics[:3])}), so that "
            "no image can be told from the others: look at these images, lower --model.optim.lr, or train with bf16 "
            "in place of fp16"
        )
    else:
        alone = zip(names, _compute_each_loss(task, batch), strict=True) if whole else ()
        guilty = [name for name, value in alone if not torch.isfinite(torch.tensor(value))]
        names = guilty or names
        which = "these images alone" if guilty else "this batch, though of none of its images alone"
        cause = f"It is not finite for {which}: look at them and their labels, or lower --model.optim.lr"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (
        f"The loss is {float(loss.detach()):g} in {where}. {cause}.\n"
        f"Images: {', '.join(names[:_SHOWN])}{more}.\n"
        f"Batch and state from before the step: {folder}. Its losses, and each image's: "
        'python -c "from vfm.training.nonfinite import replay; '
        f"print(replay('{folder}', {trainer.global_rank}))\""
    )

"""`adapter.safetensors`: what an adaptation learned and the head, without the backbone's frozen weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from vfm.models.tensors import write_tensors
from vfm.tasks.checkpoint import KEY, CheckpointError, read_checkpoint

if TYPE_CHECKING:
    from vfm.tasks.base import BaseTask

ADAPTER_FILE = "adapter.safetensors"


def write_adapter(task: BaseTask, checkpoint: Path, path: Path) -> None:
    """Write the part of a checkpoint that is not frozen.

    Args:
        task: Of the run that wrote the checkpoint.
        checkpoint: Whose weights to take.
        path: Where to.
    """
    content = read_checkpoint(checkpoint)
    frozen = {name for name, p in task.named_parameters() if not p.requires_grad}
    tensors = {k: v for k, v in content["state_dict"].items() if k not in frozen}
    write_tensors(path, tensors, {KEY: json.dumps(content[KEY])})


def put_adapter(
    task: BaseTask, tensors: Mapping[str, Tensor], entry: Mapping[str, Any], path: Path
) -> None:
    """Set what was learned, on the backbone that it was learned on.

    Raises:
        CheckpointError: The backbone has other weights.
    """
    needed = (entry["weights"] or {}).get("after")
    report = task.backbone.report
    if report is None or report.after != needed:
        found = report.after if report else "a random start"
        raise CheckpointError(
            f"{path} was learned on weights with checksum {needed} ({(entry['weights'] or {}).get('source')}); "
            f"the backbone has {found}. Give the file with those weights (base='FILE', --base FILE)."
        )
    # Not strict: the frozen weights are the backbone's already, and only they may be missing.
    missing, unexpected = task.load_state_dict(tensors, strict=False)
    frozen = {name for name, p in task.named_parameters() if not p.requires_grad}
    if unexpected or set(missing) - frozen:
        raise CheckpointError(
            f"{path} does not fit its own task: unexpected {unexpected[:4]}, missing "
            f"{sorted(set(missing) - frozen)[:4]}. It may come from another version of vfm or timm."
        )


class AdapterWriter(Callback):
    """Writes `adapter.safetensors` beside the best checkpoint when training has ended."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, where frozen weights can be had again and so need not be in it."""
        task: BaseTask = pl_module  # type: ignore[assignment]
        saved = trainer.checkpoint_callback
        if task.backbone.report is None or not isinstance(saved, ModelCheckpoint):
            return
        checkpoint = Path(saved.best_model_path)
        frozen = sum(p.numel() for p in task.backbone.parameters() if not p.requires_grad)
        if not frozen or not checkpoint.is_file() or not trainer.is_global_zero:
            return
        path = checkpoint.with_name(ADAPTER_FILE)
        write_adapter(task, checkpoint, path)
        size = path.stat().st_size / 2**20
        rank_zero_info(f"Adapter: {path} ({size:.2f} MiB; needs {task.backbone.report.source}).")

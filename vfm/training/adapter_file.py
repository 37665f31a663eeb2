"""`adapter.safetensors`: what an adaptation learned and the head, without the backbone's frozen weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from vfm.models.tensors import write_tensors
from vfm.models.weights import LoadReport
from vfm.training.checkpoint_file import KEY, CheckpointError, read_checkpoint

ADAPTER_FILE = "adapter.safetensors"


def write_adapter(model: nn.Module, checkpoint: Path, path: Path) -> None:
    """Write the part of a checkpoint that is not frozen.

    Args:
        model: Model of the run that wrote the checkpoint.
        checkpoint: Whose weights to take.
        path: Where to.
    """
    content = read_checkpoint(checkpoint)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    tensors = {k: v for k, v in content["state_dict"].items() if k not in frozen}
    write_tensors(path, tensors, {KEY: json.dumps(content[KEY])})


def put_adapter(
    model: nn.Module,
    report: LoadReport | None,
    tensors: Mapping[str, Tensor],
    entry: Mapping[str, Any],
    path: Path,
) -> None:
    """Set what was learned, on the backbone that it was learned on.

    Args:
        model: The model, built as the entry says; changed in place.
        report: How the weights of its backbone were loaded; None for a random start.
        tensors: Tensors of the adapter file.
        entry: The file's entry on the model.
        path: The file, for errors.

    Raises:
        CheckpointError: The backbone has other weights.
    """
    needed = (entry["weights"] or {}).get("after")
    if report is None or report.after != needed:
        found = report.after if report else "a random start"
        raise CheckpointError(
            f"{path} was learned on weights with checksum {needed} ({(entry['weights'] or {}).get('source')}); "
            f"the backbone has {found}. Give the file with those weights (base='FILE', --base FILE)."
        )
    # Not strict: the frozen weights are the backbone's already, and only they may be missing.
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    if unexpected or set(missing) - frozen:
        raise CheckpointError(
            f"{path} does not fit its own task: unexpected {unexpected[:4]}, missing "
            f"{sorted(set(missing) - frozen)[:4]}. It may come from another version of vfm or timm."
        )


class AdapterWriter(Callback):
    """Writes `adapter.safetensors` beside the best checkpoint when training has ended."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, where frozen weights can be had again and so need not be in it."""
        backbone: Any = pl_module.backbone
        saved = trainer.checkpoint_callback
        if backbone.report is None or not isinstance(saved, ModelCheckpoint):
            return
        checkpoint = Path(saved.best_model_path)
        frozen = sum(p.numel() for p in backbone.parameters() if not p.requires_grad)
        if not frozen or not checkpoint.is_file() or not trainer.is_global_zero:
            return
        path = checkpoint.with_name(ADAPTER_FILE)
        write_adapter(pl_module, checkpoint, path)
        size = path.stat().st_size / 2**20
        rank_zero_info(f"Adapter: {path} ({size:.2f} MiB; needs {backbone.report.source}).")

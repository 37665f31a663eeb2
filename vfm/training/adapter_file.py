"""`adapter.safetensors`: what an adaptation learned and the head, without the backbone's frozen weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info

from vfm.models.tensors import write_tensors
from vfm.training.checkpoint import KEY, read_checkpoint

ADAPTER_FILE = "adapter.safetensors"


class AdapterWriter(Callback):
    """Writes `adapter.safetensors` beside the best checkpoint when training has ended."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write it, where frozen weights can be had again and so need not be in it."""
        backbone: Any = pl_module.backbone
        saved = trainer.checkpoint_callback
        if backbone.report is None or not isinstance(saved, ModelCheckpoint):
            return
        checkpoint = Path(saved.best_model_path)
        is_frozen = any(not p.requires_grad for p in backbone.parameters())
        if not is_frozen or not checkpoint.is_file() or not trainer.is_global_zero:
            return
        path = checkpoint.with_name(ADAPTER_FILE)
        content = read_checkpoint(checkpoint)
        frozen = {name for name, p in pl_module.named_parameters() if not p.requires_grad}
        tensors = {k: v for k, v in content["state_dict"].items() if k not in frozen}
        write_tensors(path, tensors, {KEY: json.dumps(content[KEY])})
        size = path.stat().st_size / 2**20
        rank_zero_info(f"Adapter: {path} ({size:.2f} MiB; needs {backbone.report.source}).")

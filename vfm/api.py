"""The way in from Python: load what was trained or exported, and ask it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import vfm_runtime

from vfm.bundle import ExportOptions, Parity
from vfm.bundle.export import write_bundle
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.predictor import TorchPredictor


class Model(TorchPredictor):
    """A trained checkpoint or a bare backbone, asked through torch; made by `load`. `task` has the weights."""

    def __init__(
        self,
        path: str | Path,
        *,
        device: str,
        base: str | Path | None = None,
        trust: Collection[str] = (),
    ) -> None:
        self.path = Path(path)
        self._checkpoint = Checkpoint.open(self.path, base=base, trust=trust)
        super().__init__(self._checkpoint.task.to(device))

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}, {len(self.labels)} classes, {self.task.device})"

    def export(self, out: str | Path, *, images: str | Path, **options: Any) -> Parity:
        """Write a bundle, and prove on real images that it answers alike.

        Args:
            out: Folder of the bundle to write.
            images: Folder of real images.
            options: Fields of `vfm.bundle.ExportOptions`: data, int8, fp16, calibrate, reference, one_file, ...
        """
        chosen = ExportOptions(out=Path(out), images=Path(images), **options)
        device = self.task.device
        try:
            return write_bundle({"": self._checkpoint}, chosen)
        finally:
            self.task.to(device)


def load(
    path: str | Path,
    *,
    device: str = "auto",
    base: str | Path | None = None,
    trust: Collection[str] = (),
) -> Model | vfm_runtime.Model:
    """Load a checkpoint, a bundle or a bare backbone; all have `predict` and `embed`.

    Args:
        path: A .ckpt file or adapter.safetensors of a training run, the folder of a bundle, or the name of a backbone
            of timm, which only embeds.
        device: `cpu`, `cuda`, or `auto` for CUDA where there is one.
        base: For an adapter, the file of the backbone's weights where it is no longer at its old place; for the name of
            a backbone, a file of its weights in place of timm's.
        trust: Packages besides vfm whose code a checkpoint may name, such as that of your own head.

    Raises:
        CheckpointError: The file is no checkpoint of vfm.
        BundleError: The folder is no whole bundle.
    """
    if Path(path).is_dir():
        return vfm_runtime.load(path, device=device)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return Model(path, device=device, base=base, trust=trust)

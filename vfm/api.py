"""The way in from Python: load what was trained or exported, and ask it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import vfm_runtime

from vfm.bundle import Options, Parity
from vfm.bundle.export import export_all
from vfm.bundle.parity import choose_images
from vfm.bundle.source import trained_of
from vfm.tasks import BaseTask
from vfm.tasks.predictor import TorchPredictor


class Model(TorchPredictor):
    """A trained checkpoint, asked through torch; made by `load`.

    Attributes:
        task: The task with its weights.
        path: The checkpoint.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: str,
        base: str | Path | None = None,
        trust: Collection[str] = (),
    ) -> None:
        self.path = Path(path)
        super().__init__(BaseTask.load(self.path, base=base, trust=trust).to(device))

    def __repr__(self) -> str:
        return f"Model({str(self.path)!r}, {len(self.labels)} classes, {self.task.device})"

    def export(
        self, out: str | Path, *, images: str | Path, data: str | Path | None = None, **options: Any
    ) -> Parity:
        """Write a bundle, and prove on real images that it answers alike.

        Args:
            out: Folder to write.
            images: Folder of real images.
            data: Labelled validation images, where the options need them; by default the val split of the training.
            options: As of `vfm.bundle.Options`: int8, fp16, max_drop, calibrate, reference, one_file, overwrite, ...
        """
        given = Options(**options)
        paths = choose_images(Path(images), 64, videos=self.task.takes_video)
        device = self.task.device
        try:
            one = trained_of(self.task, self.path, given, None if data is None else Path(data))
            return export_all({"": one}, paths, Path(out), given)
        finally:
            self.task.to(device)


def load(
    path: str | Path,
    *,
    device: str = "auto",
    base: str | Path | None = None,
    trust: Collection[str] = (),
) -> Model | vfm_runtime.Model:
    """Load a checkpoint or a bundle; both have `labels` and `predict`.

    Args:
        path: A .ckpt file or adapter.safetensors of a training run, or the folder of a bundle.
        device: `cpu`, `cuda`, or `auto` for CUDA where there is one.
        base: For an adapter, the file of the backbone's weights where it is no longer at its old place.
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

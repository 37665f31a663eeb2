"""Bundles of random weights for the benchmark scripts: time does not depend on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vfm import ClassificationTask
from vfm.bundle import ExportOptions
from vfm.bundle.export import write_bundle
from vfm.tasks.checkpoint import Checkpoint
from vfm.training.checkpoint import list_versions

MODELS = {
    "ViT-S/16": "vit_small_patch16_224",
    "ViT-B/16": "vit_base_patch16_224",
    "DaViT-T": "davit_tiny",
}
"""timm's names, at 224 pixels."""

ORIGIN = {"versions": list_versions(), "seed": 0}


def new_task(backbone: str, num_labels: int = 1000) -> ClassificationTask:
    task = ClassificationTask(backbone, pretrained=False, image_size=224)
    task.head.prepare(task.backbone.info, [f"class {k}" for k in range(num_labels)])
    return task.eval()


def make_bundle(task: ClassificationTask, folder: Path) -> Path:
    """A bundle of the task below the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    noise(folder / "a.png")
    options = ExportOptions(images=folder, out=folder / "bundle")
    write_bundle({"": Checkpoint(task, ORIGIN)}, options, [folder / "a.png"])
    return folder / "bundle"


def noise(path: Path, height: int = 300, width: int = 400) -> None:
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def pixels_of(count: int, size: tuple[int, int] = (224, 224)) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *size, 3), dtype=np.uint8)

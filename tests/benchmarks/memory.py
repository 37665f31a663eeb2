"""Peak memory of training steps: gradient checkpointing, LoRA and LN beside plain training.

    python tests/benchmarks/memory.py [--quick]

A ViT-S/16 at 224 pixels, float32 on the CPU, bf16 on a GPU. The figure is the peak over some steps less what the
process held with the model built: activations, gradients, optimiser state. `ratio` is plain training's over the case's.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import tempfile
import warnings
from typing import Any

import lightning as L
import torch
from sides import report
from train_step import OneBatch

from vfm import ClassificationTask
from vfm.tasks.memory import peak_memory, reset_peak_memory
from vfm.types import Batch

STEPS = 3


def megabytes(size: int, batch: int, **model: Any) -> float:

    pixels = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    label = torch.arange(batch) % 10
    one = Batch(image=pixels, label=label, index=label, name=[""] * batch, skipped=[])
    task = ClassificationTask("vit_small_patch16_224", pretrained=False, image_size=size, **model)
    data = OneBatch(num_classes=10, num_images=64, augment="none")
    data.batch, data.steps, data.batch_size = one, STEPS, batch
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_epochs=1,
            precision="bf16-mixed" if torch.cuda.is_available() else "32-true",
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            limit_val_batches=0,
        )
        held = reset_peak_memory()
        trainer.fit(task, data)
        peak = peak_memory() - held
    del task, trainer, data
    gc.collect()
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller images, one round")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    size, batch = (96, 16) if quick else (224, 128 if torch.cuda.is_available() else 16)
    cases: dict[str, dict[str, Any]] = {
        "gradient checkpointing": {"grad_checkpointing": True},
        "lora": {"adapt": "lora"},
        "ln": {"adapt": "ln"},
        "lora and gradient checkpointing": {"adapt": "lora", "grad_checkpointing": True},
    }
    rounds = 1 if quick else 5
    megabytes(size, batch)  # what libraries keep for themselves after a first training
    plain, found = [], {name: [] for name in cases}  # type: ignore[var-annotated]
    for _ in range(rounds):
        plain.append(megabytes(size, batch))
        for name, model in cases.items():
            found[name].append(megabytes(size, batch, **model))
    middle = statistics.median(plain)
    for name, values in found.items():
        ours = statistics.median(values)
        report(
            f"peak memory, ViT-S/16, {size} px, batch {batch}, {name}",
            ours,
            middle,
            "MiB",
            middle / ours,
        )


if __name__ == "__main__":
    main()

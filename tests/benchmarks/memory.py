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
from pathlib import Path
from typing import Any

import lightning as L
import torch
from sides import report

STEPS = 3


def reset_peak() -> None:
    """Forget the peak so far."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """Most memory since `reset_peak`: the GPU's allocations, or else what the process has resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _status("VmHWM")


def held_bytes() -> int:
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else _status("VmRSS")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def megabytes(size: int, batch: int, **model: Any) -> float:
    from train_step import OneBatch

    from vfm import ClassificationTask
    from vfm.types import Batch

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
        reset_peak()
        held = held_bytes()
        trainer.fit(task, data)
        peak = peak_bytes() - held
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

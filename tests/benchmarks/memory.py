"""Peak memory of training steps: gradient checkpointing, LoRA and LN beside plain training.

    python tests/benchmarks/memory.py [--quick]

A ViT-S/16 at 224 pixels, float32 on the CPU, bf16 on a GPU. The figure is the peak over some steps less what the
process held with the model built: activations, gradients, optimiser state. `ratio` is plain training's over the case's.
"""

from __future__ import annotations

import argparse
import gc
import statistics
from typing import Any

import torch
from sides import report
from trainings import OneBatch, quiet, train

from vfm import ClassificationTask
from vfm.training.oom import read_peak_memory, reset_peak_memory

STEPS = 3


def megabytes(size: int, batch: int, **model: Any) -> float:
    task = ClassificationTask("vit_small_patch16_224", pretrained=False, image_size=size, **model)
    data = OneBatch(size, batch, STEPS)
    held = reset_peak_memory()
    trainer = train(task, data, precision="bf16-mixed" if torch.cuda.is_available() else "32-true")
    peak = read_peak_memory() - held
    del task, trainer, data
    gc.collect()
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller images, one round")
    quick = parser.parse_args().quick
    quiet()
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

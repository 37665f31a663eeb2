"""Training on a GPU: images/s and the share of its arithmetic (MFU) of ViT-S, B and L, bf16 and compiled.

    python tests/benchmarks/gpu_train.py [--quick] [--cpu] [--rounds N]

Each case runs twice: on one batch from memory, and from JPEG files through the whole input pipeline. `ours` is the rate
from files, `theirs` the rate from memory: the ratio is the share of the speed that the input pipeline leaves. `mfu`
counts three forward passes an image against the GPU's dense bf16 peak. --cpu tries the script on a small model.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from timm_script import write_jpegs
from trainings import WARM, Clock, OneBatch, quiet, train

from vfm import ClassificationTask, FolderData
from vfm.models.presets import measure

PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
CASES = [
    ("vit_small_patch16_224", 256, 60),
    ("vit_base_patch16_224", 256, 40),
    ("vit_large_patch16_224", 128, 40),
]


def rate(model: str, data: Any, batch: int, compiled: bool) -> float:
    task = ClassificationTask(model, pretrained=False, compile=compiled)
    clock = Clock()
    train(task, data, precision="bf16-mixed", callbacks=[clock])
    return clock.rate(batch)


def from_memory(model: str, batch: int, steps: int, compiled: bool) -> float:
    data = OneBatch(measure(model).image_size, batch, WARM + steps)
    return rate(model, data, batch, compiled)


def from_files(model: str, batch: int, steps: int, compiled: bool, workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        write_jpegs(Path(folder), batch * (WARM + steps))
        data = FolderData(folder, batch_size=batch, num_workers=workers, augment="standard")
        return rate(model, data, batch, compiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first case, one round")
    parser.add_argument("--cpu", action="store_true", help="a small model on the CPU")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if not on_gpu and not options.cpu:
        raise SystemExit("No CUDA GPU is there. --cpu tries the script on a small model.")
    quiet()
    cases = CASES[: 1 if options.quick else None] if on_gpu else [("vit_tiny_patch16_224", 8, 3)]
    gpu = torch.cuda.get_device_name() if on_gpu else "CPU"
    peak = next((value for name, value in PEAKS.items() if name in gpu), None)
    rounds = 1 if options.quick or not on_gpu else options.rounds
    for model, batch, steps in cases:
        pairs = [
            (
                from_files(model, batch, steps, on_gpu, 14 if on_gpu else 1),
                from_memory(model, batch, steps, on_gpu),
            )
            for _ in range(rounds)
        ]
        files, memory = (statistics.median(side) for side in zip(*pairs, strict=True))
        flops = 3 * 1e9 * measure(model).gflops
        row = {
            "name": f"training, {model}, batch {batch}, bf16{', compiled' if on_gpu else ''}, {gpu}",
            "ours": round(files, 1),
            "theirs": round(memory, 1),
            "unit": "images/s",
            "ratio": round(statistics.median(a / b for a, b in pairs), 4),
            "mfu_from_memory": round(memory * flops / peak, 4) if peak else None,
            "mfu_from_files": round(files * flops / peak, 4) if peak else None,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

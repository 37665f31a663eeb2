"""Whole trainings of vfm against timm's own training script, from JPEG files to the optimiser's step.

    python tests/benchmarks/timm_script.py --timm-train PATH [--quick] [--rounds N]

PATH is train.py of the repository huggingface/pytorch-image-models (it is not in timm's wheel). Both sides train the
same model on the same generated JPEG files in the same precision and batch, with random crops and mirror images, AdamW
and clipped gradients, each in a process of its own; figures are images/s from the end of the third step to the last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from sides import in_turns, report

WARM = 3
CLASSES = 4
AUGMENT = [{"RandomResizedCrop": {"scale": [0.08, 1.0]}}, "HorizontalFlip"]
OURS = """
import json, logging, sys, time
import lightning as L
from vfm import ClassificationTask, FolderData, Optim

root, model, size, batch, workers, precision, augment = json.loads(sys.argv[1])

class Clock(L.Callback):
    def on_train_batch_end(self, *args):
        print("STEP", time.perf_counter(), flush=True)

task = ClassificationTask(model, pretrained=False, image_size=size, optim=Optim(lr=1e-4))
data = FolderData(root, batch_size=batch, num_workers=workers, augment=augment)
L.Trainer(
    max_epochs=1, precision=precision, callbacks=[Clock()], logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0, num_sanity_val_steps=0,
    default_root_dir=sys.argv[2],
).fit(task, data)
"""


class Case(NamedTuple):
    model: str
    size: int
    batch: int
    precision: str
    steps: int


CPU = [
    Case("vit_tiny_patch16_224", 224, 16, "32-true", 10),
    Case("vit_small_patch16_224", 224, 8, "32-true", 8),
    Case("resnet18", 160, 16, "32-true", 12),
    Case("vit_small_patch16_224", 224, 8, "bf16-mixed", 8),
]
GPU = [
    Case("vit_small_patch16_224", 224, 128, "bf16-mixed", 60),
    Case("vit_base_patch16_224", 224, 128, "bf16-mixed", 60),
]


def write_jpegs(root: Path, number: int, distinct: int = 2048) -> None:
    """Write `number` training files and a few to validate; beyond `distinct` they are links to earlier ones."""
    generator = np.random.default_rng(0)
    written: list[Path] = []
    for i in range(number):
        path = root / "train" / str(i % CLASSES) / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if i >= distinct:
            path.hardlink_to(written[i % distinct])
            continue
        small = generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = cv2.resize(small, (500, 375), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        written.append(path)
    for path in written[: 2 * CLASSES]:
        held_out = root / "validation" / path.relative_to(root / "train")
        held_out.parent.mkdir(parents=True, exist_ok=True)
        held_out.hardlink_to(path)


def rate(command: list[str], mark: str, case: Case) -> float:
    """Images/s between the lines that each side prints at the end of a step."""
    env = os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env
    )
    times, tail = [], []
    assert process.stdout is not None
    for line in process.stdout:
        tail = [*tail[-20:], line]
        if mark in line:
            times.append(time.perf_counter())
    if process.wait() != 0 or len(times) < WARM + 2:
        raise SystemExit(f"{command[:3]} failed:\n{''.join(tail)}")
    steps = min(len(times), WARM + case.steps)
    return case.batch * (steps - WARM) / (times[steps - 1] - times[WARM - 1])


def ours(root: Path, case: Case, workers: int, out: str) -> float:
    arguments: list[Any] = [
        str(root),
        case.model,
        case.size,
        case.batch,
        workers,
        case.precision,
        AUGMENT,
    ]
    return rate([sys.executable, "-c", OURS, json.dumps(arguments), out], "STEP", case)


def theirs(root: Path, case: Case, workers: int, out: str, script: Path) -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sized = ["--img-size", str(case.size)]
    words = [
        *(sys.executable, str(script), "--data-dir", str(root), "--model", case.model, *sized),
        *(
            "--num-classes",
            str(CLASSES),
            "--batch-size",
            str(case.batch),
            "--workers",
            str(workers),
        ),
        *("--opt", "adamw", "--lr", "1e-4", "--weight-decay", "0.05", "--clip-grad", "1.0"),
        *("--color-jitter", "0", "--smoothing", "0", "--epochs", "1", "--warmup-epochs", "0"),
        *("--log-interval", "1", "--device", device, "--output", out, "--val-interval", "100"),
    ]
    if case.precision == "bf16-mixed":
        words += ["--amp", "--amp-dtype", "bfloat16"]
    if device == "cpu":
        words += ["--no-prefetcher"]
    return rate(words, "Train: 0 [", case)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timm-train", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="a small case, one round")
    parser.add_argument("--rounds", type=int, default=5, help="after one that is thrown away")
    options = parser.parse_args()
    if not options.timm_train.is_file():
        raise SystemExit(
            f"There is no {options.timm_train}: fetch train.py of huggingface/pytorch-image-models."
        )
    cases = GPU if torch.cuda.is_available() else CPU
    if options.quick:
        cases = [Case("vit_tiny_patch16_224", 224, 8, "32-true", 4)]
    workers = 12 if torch.cuda.is_available() else 1
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "images"
            write_jpegs(root, case.batch * (WARM + case.steps))
            out = str(Path(folder) / "out")
            first, second, quotient = in_turns(
                lambda case=case, root=root, out=out: ours(root, case, workers, out),
                lambda case=case, root=root, out=out: theirs(
                    root, case, workers, out, options.timm_train
                ),
                1 if options.quick else options.rounds,
            )
        name = f"training against timm's script, {case.model}, {case.size} px, batch {case.batch}, {case.precision}"
        report(name, first, second, "images/s", quotient)


if __name__ == "__main__":
    main()

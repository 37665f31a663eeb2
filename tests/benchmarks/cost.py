"""What `vfm cost train` predicts, beside what a training then takes: memory and time of a step on the CPU.

    python tests/benchmarks/cost.py [--cases 3] [--rounds 5]

Memory is the peak of the process above what it held with the model built, the median of the rounds, after a first
training that is thrown away; it is predicted from operations at 2 and 4 images, and from how much more than its tensors
a process holds at half of the batch. Time is the median step at the full batch, in seconds of one core, so that other
work does not count; it is predicted from steps of at most 16 and 32 images.
Weights are random, and a frozen backbone runs in every step. A JSON line a case.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from trainings import OneBatch, quiet, train

from vfm import ClassificationTask, SyntheticData
from vfm.cost.steps import (
    PROCESS_BYTES,
    TIMED,
    WARM,
    measure_allocator,
    run_steps,
    time_steps,
    trace_memory,
)
from vfm.training.oom import read_peak_memory, reset_peak_memory

SIZE = 64
LITE0, VIT = "efficientnet_lite0", "vit_tiny_patch16_224"
CASES: tuple[tuple[str, int, dict[str, Any]], ...] = (
    (LITE0, 32, {}),
    (LITE0, 64, {"adapt": "linear"}),
    (LITE0, 32, {"adapt": "ln"}),
    (LITE0, 32, {"grad_checkpointing": True}),
    (LITE0, 32, {"adapt": "lora"}),
    (VIT, 64, {}),
    (VIT, 256, {"adapt": "linear"}),
    (VIT, 64, {"adapt": "ln"}),
    (VIT, 64, {"grad_checkpointing": True}),
    (VIT, 64, {"adapt": "lora"}),
)
"""Backbone, images of a step, and how it is trained."""


def make_data(batch: int) -> SyntheticData:
    data = SyntheticData(
        num_classes=10, num_images=3 * batch + 20, augment="none", batch_size=batch
    )
    data.setup("fit")
    return data


def measure_peak(build: Callable[[], ClassificationTask], batch: int) -> float:
    task, data = build(), OneBatch(SIZE, batch, 2)
    held = reset_peak_memory()
    trainer = train(task, data, accelerator="cpu")
    peak = read_peak_memory() - held
    del task, trainer, data
    gc.collect()
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first ones")
    parser.add_argument("--first", type=int, default=0, help="skip as many")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    for backbone, batch, options in CASES[arguments.first : arguments.cases]:

        def build(
            backbone: str = backbone, options: dict[str, Any] = options
        ) -> ClassificationTask:
            settings = {
                "pretrained": False,
                "image_size": SIZE,
                "min_steps": 0,
                "cache_features": False,
            }
            return ClassificationTask(backbone, **settings, **options)

        peaks = [measure_peak(build, batch) for _ in range(arguments.rounds + 1)][1:]
        memory = statistics.median(peaks)
        data = make_data(batch)
        trace = trace_memory(build, data)
        factor = measure_allocator(build, data, batch, trace)
        predicted = factor * trace(batch) + PROCESS_BYTES
        times = time_steps(build, data, batch, clock=time.process_time)
        probe = run_steps(build(), data, batch, WARM + TIMED, clock=time.process_time)
        pairs = list(zip(probe.sizes, probe.seconds, strict=True))[WARM:]
        steps = [seconds for count, seconds in pairs if count == batch]  # an epoch ends with fewer
        second = statistics.median(steps)
        row = {
            "backbone": backbone,
            "batch": batch,
            "how": options.get("adapt", "full")
            + (" checkpointing" * (len(options) and "adapt" not in options)),
            "predicted_mb": predicted / 1e6,
            "measured_mb": memory / 1e6,
            "memory_error": predicted / memory - 1,
            "predicted_s": times.predict(batch),
            "measured_s": second,
            "time_error": times.predict(batch) / second - 1,
        }
        print(
            json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}),
            flush=True,
        )


if __name__ == "__main__":
    main()

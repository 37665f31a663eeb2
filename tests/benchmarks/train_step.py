"""Training steps of vfm (Lightning, callbacks, logging and all) against a plain PyTorch loop.

    python tests/benchmarks/train_step.py [--quick]

Both sides train the same network on the same batches in the same precision with AdamW, clipped gradients and a cosine
schedule; the plain loop has AdamW as torch makes it by default. Neither loads data in the measured time. Figures are
images/s over the steps after the first few.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import timm
import torch
from sides import in_turns, report, seconds
from torch import nn
from torch.nn import functional as F
from trainings import WARM, Clock, OneBatch, quiet, synchronise, train

from vfm import ClassificationTask
from vfm.training.lr_schedule import compute_learning_rate_factor
from vfm.training.optim import Optim, build_optimizer
from vfm.types import Batch

LABELS = 10


class Case(NamedTuple):
    name: str
    backbone: str
    arguments: dict[str, Any]
    size: int
    batch: int
    precision: str
    steps: int

    @property
    def channels_last(self) -> bool:
        """As on both sides: for the nets that gain by it."""
        return not self.backbone.startswith("vit")


CPU = [
    Case(
        "TinyViT of fashion_mnist.yaml, 28 px, batch 128",
        "tiny_vit_5m_224",
        {"embed_dims": [48, 96], "depths": [2, 4], "num_heads": [2, 3], "window_sizes": [7, 4]},
        28,
        128,
        "32-true",
        12,
    ),
    Case("ViT-S/16, 224 px, batch 8", "vit_small_patch16_224", {}, 224, 8, "32-true", 4),
    Case("ViT-S/16, 224 px, batch 8", "vit_small_patch16_224", {}, 224, 8, "bf16-mixed", 4),
    Case("EfficientNet-Lite0, 96 px, batch 32", "tf_efficientnet_lite0", {}, 96, 32, "32-true", 8),
]
GPU = [
    Case("ViT-S/16, 224 px, batch 128", "vit_small_patch16_224", {}, 224, 128, "bf16-mixed", 40),
    Case("ViT-B/16, 224 px, batch 128", "vit_base_patch16_224", {}, 224, 128, "bf16-mixed", 40),
    Case("ViT-S/16, 224 px, batch 16", "vit_small_patch16_224", {}, 224, 16, "bf16-mixed", 100),
]


def ours(case: Case, data: OneBatch) -> float:
    task = ClassificationTask(
        case.backbone,
        pretrained=False,
        image_size=case.size,
        backbone_args=case.arguments,
        channels_last=case.channels_last,
        optim=Optim(lr=1e-4),
    )
    clock = Clock()
    train(task, data, precision=case.precision, callbacks=[clock])
    return clock.rate(case.batch)


def theirs(case: Case, batch: Batch) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sized = {"img_size": case.size} if case.backbone.startswith("vit") else {}
    network: Any = timm.create_model(case.backbone, num_classes=LABELS, **sized, **case.arguments)
    network.to(device).train()
    optim = Optim(lr=1e-4)
    adamw = build_optimizer(network, nn.Identity(), optim, fused=False)  # torch's own default
    total = WARM + case.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda step: compute_learning_rate_factor(step, total, optim)
    )
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    mean = std = torch.full((1, 3, 1, 1), 0.5, device=device)
    start = 0.0
    for step in range(total):
        if step == WARM:
            synchronise()
            start = time.perf_counter()
        pixels, label = batch["image"].to(device), batch["target"].label.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in case.precision):
            images = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
            images = images.contiguous(memory_format=layout)
            loss = F.cross_entropy(network(images).float(), label)
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adamw.step()
        schedule.step()
        synchronise()
    return case.batch * case.steps / (time.perf_counter() - start)


def measure(case: Case, rounds: int) -> None:
    data = OneBatch(case.size, case.batch, WARM + case.steps, LABELS)
    first, second, quotient = in_turns(
        lambda: ours(case, data), lambda: theirs(case, data.batch), rounds
    )
    report(f"train step, {case.name}, {case.precision}", first, second, "images/s", quotient)


def measure_optimiser(rounds: int) -> None:
    """The step of AdamW alone, as vfm makes it and as torch does by default."""
    steps = {}
    for fused in (True, False):
        network = timm.create_model("vit_small_patch16_224", num_classes=LABELS)
        network.to("cuda" if torch.cuda.is_available() else "cpu")
        for weight in network.parameters():
            weight.grad = torch.randn_like(weight)
        steps[fused] = build_optimizer(network, nn.Identity(), Optim(lr=1e-4), fused=fused).step

    def milliseconds(fused: bool) -> float:
        def work() -> None:
            steps[fused]()
            synchronise()

        return 1000 * seconds(work)

    ours, theirs, quotient = in_turns(
        lambda: milliseconds(True), lambda: milliseconds(False), rounds
    )
    report("step of AdamW alone, ViT-S/16", ours, theirs, "ms", 1 / quotient)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first case, few rounds")
    quick = parser.parse_args().quick
    quiet()
    cases = GPU if torch.cuda.is_available() else CPU
    for case in cases[: 1 if quick else None]:
        measure(case, 3 if quick else 5)
    measure_optimiser(3 if quick else 15)


if __name__ == "__main__":
    main()

"""Training steps of vfm (Lightning, callbacks, logging and all) against a plain PyTorch loop.

    python tests/benchmarks/train_step.py [--quick]

Both sides train the same network on the same batches in the same precision with AdamW, clipped gradients and a cosine
schedule; neither loads data in the measured time. Figures are images/s over the steps after the first few.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from typing import Any, NamedTuple

import lightning as L
import timm
import torch
from sides import in_turns, report
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from vfm import ClassificationTask, SyntheticData
from vfm.tasks.optim import Optim, learning_rate_factor, optimizer
from vfm.types import Batch

WARM = 3
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


class OneBatch(SyntheticData):
    """The same batch again and again, made once."""

    batch: Batch
    steps: int

    def train_dataloader(self) -> Any:
        return DataLoader([self.batch] * self.steps, batch_size=None)  # type: ignore[arg-type]


class Clock(L.Callback):
    """Notes when each step has ended."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        synchronise()
        self.ends.append(time.perf_counter())


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def make_batch(case: Case) -> Batch:
    pixels = torch.randint(0, 256, (case.batch, case.size, case.size, 3), dtype=torch.uint8)
    label = torch.arange(case.batch) % LABELS
    return Batch(image=pixels, label=label, index=label, name=[""] * case.batch, skipped=[])


def ours(case: Case, batch: Batch) -> float:
    task = ClassificationTask(
        case.backbone,
        pretrained=False,
        image_size=case.size,
        backbone_args=case.arguments,
        channels_last=case.channels_last,
        optim=Optim(lr=1e-4),
    )
    data = OneBatch(num_classes=LABELS, num_images=64, augment="none")
    data.batch, data.steps, data.batch_size = batch, WARM + case.steps, case.batch
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        L.Trainer(
            max_epochs=1,
            precision=case.precision,  # type: ignore[arg-type]
            default_root_dir=folder,
            callbacks=[clock],
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            limit_val_batches=0,
        ).fit(task, data)
    return case.batch * case.steps / (clock.ends[-1] - clock.ends[WARM - 1])


def theirs(case: Case, batch: Batch) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sized = {"img_size": case.size} if case.backbone.startswith("vit") else {}
    network: Any = timm.create_model(case.backbone, num_classes=LABELS, **sized, **case.arguments)
    network.to(device).train()
    optim = Optim(lr=1e-4)
    adamw = optimizer(network, nn.Identity(), optim)
    total = WARM + case.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        adamw, lambda step: learning_rate_factor(step, total, optim)
    )
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    mean = std = torch.full((1, 3, 1, 1), 0.5, device=device)
    start = 0.0
    for step in range(total):
        if step == WARM:
            synchronise()
            start = time.perf_counter()
        pixels, label = batch["image"].to(device), batch["label"].to(device)
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
    batch = make_batch(case)
    first, second, quotient = in_turns(
        lambda: ours(case, batch), lambda: theirs(case, batch), rounds
    )
    report(f"train step, {case.name}, {case.precision}", first, second, "images/s", quotient)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first case, few rounds")
    quick = parser.parse_args().quick
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    cases = GPU if torch.cuda.is_available() else CPU
    for case in cases[: 1 if quick else None]:
        measure(case, 3 if quick else 5)


if __name__ == "__main__":
    main()

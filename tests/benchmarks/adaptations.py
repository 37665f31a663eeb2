"""One pretrained ViT, adapted in every way: accuracy, trained weights, time, memory; and LoRA merged against unmerged.

    python tests/benchmarks/adaptations.py [--quick] [--work DIR]

The ViT (6 blocks, width 128) is trained by vfm on five classes of Fashion-MNIST, 30,000 images, and adapted to the
other five with 200 images of each; the 5,000 test images of those five are the test. --work keeps the pretrained ViT
for another run. Needs Debian's package dataset-fashion-mnist. Prints one JSON line for each adaptation.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from fashion_mnist import NAMES, SOURCE
from PIL import Image
from trainings import quiet, train

from vfm import ClassificationTask, FolderData, IdxData, Optim
from vfm.models.adapt import Adapt
from vfm.training.oom import read_peak_memory, reset_peak_memory

FIRST = ("t-shirt", "trouser", "pullover", "sandal", "bag")
SECOND = ("dress", "coat", "shirt", "sneaker", "boot")
VIT: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "image_size": 28,
    "fit": "squash",
    "backbone_args": {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4},
}
ADAPTATIONS: tuple[Adapt, ...] = ("full", "linear", "ln", "lora", "effort", "partial")


def write_images(
    root: Path, classes: tuple[str, ...], training: int | None, test: int | None
) -> Path:
    """At most so many images a class."""
    if root.is_dir():
        return root
    data = IdxData(SOURCE, label_names=NAMES, val_fraction=0.02)
    data.setup()
    for split in ("train", "val", "test"):
        counts = dict.fromkeys(classes, 0)
        for record in data.records[split]:
            label = NAMES[record.label] if isinstance(record.label, int) else ""
            limit = training if split == "train" else test
            if label not in counts or (limit is not None and counts[label] == limit):
                continue
            counts[label] += 1
            path = root / split / label / f"{record.name.replace('/', '_')}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(record.source)).save(path)
    return root


def pretrain(work: Path, quick: bool) -> Path:
    folder = work / "pretrained"
    checkpoint = folder / "checkpoints" / "best.ckpt"
    if not checkpoint.is_file():
        L.seed_everything(0, verbose=False)
        data = FolderData(
            write_images(work / "first", FIRST, 64 if quick else None, 20 if quick else None),
            batch_size=128,
        )
        task = ClassificationTask(**VIT, pretrained=False, optim=Optim(lr=1e-3))
        trainer = train(task, data, folder, max_epochs=1 if quick else 8, accelerator="cpu")
        print(
            json.dumps({"pretrained": float(trainer.callback_metrics["val/accuracy"])}), flush=True
        )
    return checkpoint


def adapt(how: Adapt, checkpoint: Path, work: Path, epochs: int) -> dict[str, Any]:
    L.seed_everything(0, verbose=False)
    data = FolderData(work / "second", batch_size=64, augment="none", num_workers=1)
    task = ClassificationTask(**VIT, weights=checkpoint, adapt=how, optim=Optim(warmup_ratio=0.1))
    learning = sum(p.numel() for p in task.backbone.parameters() if p.requires_grad)
    folder = work / "adapted" / how
    held = reset_peak_memory()
    start = time.perf_counter()
    trainer = train(task, data, folder, max_epochs=epochs, accelerator="cpu")
    seconds, peak = time.perf_counter() - start, read_peak_memory() - held
    (results,) = trainer.test(task, data, ckpt_path="best", verbose=False)
    saved = json.loads((folder / "checkpoints" / "results.json").read_text(encoding="utf-8"))
    adapter = folder / "checkpoints" / "adapter.safetensors"
    row = {
        "name": how,
        "learning_rate": task.optim.lr,
        "accuracy": round(results["test/accuracy"], 4),
        "interval": [round(saved["test"]["accuracy"][k], 4) for k in ("low", "high")],
        "trained_of_backbone": learning,
        "seconds": round(seconds, 1),
        "peak_MiB": round(peak / 2**20, 1),
        "adapter_KiB": round(adapter.stat().st_size / 2**10, 1) if adapter.is_file() else None,
    }
    if how in ("lora", "effort"):
        row["merged_against_unmerged"] = merged_difference(task, data)
    return row


def merged_difference(task: ClassificationTask, data: FolderData) -> float:
    """Largest difference of a logit on 1,000 test images."""
    plain = copy.deepcopy(task.eval())
    plain.adaptation.merge(plain.backbone.model)
    data.preprocess = task.preprocess
    pixels = torch.cat([batch["image"] for batch in islice(data.test_dataloader(), 16)])
    with torch.no_grad():
        return float((plain(pixels)["logits"] - task(pixels)["logits"]).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="one epoch each, few images, a weak ViT"
    )
    parser.add_argument("--work", type=Path, default=None, help="a folder to keep")
    options = parser.parse_args()
    quiet()
    work = options.work or Path(tempfile.mkdtemp())
    checkpoint = pretrain(work, options.quick)
    write_images(
        work / "second", SECOND, 64 if options.quick else 200, 20 if options.quick else None
    )
    for how in ADAPTATIONS:
        print(json.dumps(adapt(how, checkpoint, work, 1 if options.quick else 20)), flush=True)


if __name__ == "__main__":
    main()

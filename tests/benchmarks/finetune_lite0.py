"""Fine-tune EfficientNet-Lite0 from ImageNet weights on a folder of Fashion-MNIST images, export, compare all answers.

    python tests/fetch_assets.py
    python tests/benchmarks/finetune_lite0.py [--quick] [--out DIR]

Needs Debian's package dataset-fashion-mnist. Prints one JSON line: test accuracy with its interval, parity, how many of
the test answers differ between torch and the runtime, seconds.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import vfm_runtime
from PIL import Image

import vfm
from vfm.cli import main as command

ROOT = Path(__file__).parents[2]
SOURCE = Path("/usr/share/datasets/fashion-mnist")
NAMES = [
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "boot",
]


def read_idx(path: Path) -> np.ndarray:
    content = gzip.decompress(path.read_bytes())
    num_dimensions = content[3]
    sizes = np.frombuffer(content, ">i4", num_dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dimensions).reshape(sizes)


def write_folder(root: Path, per_class: dict[str, int]) -> None:
    """Write the first images of each class; validation images follow the training images."""
    start = {"train": 0, "val": per_class["train"], "test": 0}
    for split, count in per_class.items():
        stem = "t10k" if split == "test" else "train"
        images = read_idx(SOURCE / f"{stem}-images-idx3-ubyte.gz")
        labels = read_idx(SOURCE / f"{stem}-labels-idx1-ubyte.gz")
        for number, name in enumerate(NAMES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in np.flatnonzero(labels == number)[start[split] :][:count]:
                Image.fromarray(images[i]).save(folder / f"{i:05d}.png")


def weights() -> Path:
    found = sorted((ROOT / ".cache" / "assets").rglob("*lite0*.pth"))
    if not found:
        raise SystemExit("The weights are missing. Run: python tests/fetch_assets.py")
    return found[0]


def run(*words: str | Path) -> None:
    if command([str(word) for word in words]) != 0:
        raise SystemExit(f"vfm {words[0]} failed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images, one epoch")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp())
    scale = 10 if options.quick else 1
    write_folder(out / "images", {"train": 300 // scale, "val": 30 // scale, "test": 100 // scale})
    recipes = ROOT / "recipes"
    quiet = ("--trainer.enable_progress_bar", "false")
    start = time.perf_counter()
    run(
        *("fit", "--config", recipes / "classification/finetune.yaml"),
        *("--config", recipes / "data/folder.yaml", "--data.root", out / "images"),
        *("--model.backbone", "tf_efficientnet_lite0", "--model.weights", weights()),
        *("--model.image_size", "96", "--model.optim.lr", "1e-3", "--trainer.precision", "32-true"),
        *("--trainer.max_epochs", "1" if options.quick else "3"),
        *("--trainer.default_root_dir", out / "runs", *quiet),
    )
    seconds = time.perf_counter() - start
    checkpoint = out / "runs/0/checkpoints/best.ckpt"
    run("test", "--ckpt_path", checkpoint, *quiet)
    run("export", checkpoint, "--images", out / "images/test", "-o", out / "bundle")
    paths = vfm_runtime.find_images(out / "images/test")
    pairs = list(
        zip(
            vfm.load(checkpoint, device="cpu").predict(paths),
            vfm_runtime.load(out / "bundle", device="cpu").predict(paths),
            strict=True,
        )
    )
    results = json.loads((checkpoint.parent / "results.json").read_text(encoding="utf-8"))
    parity = json.loads((out / "bundle/parity.json").read_text(encoding="utf-8"))
    row = {
        "name": "EfficientNet-Lite0 on a Fashion-MNIST folder",
        "accuracy": results["test"]["accuracy"],
        "fit_seconds": seconds,
        "parity_images": parity["num_images"],
        "parity_max_difference": parity["max_difference"],
        "answers": len(pairs),
        "answers_that_differ": sum(a.label != b.label for a, b in pairs),
        "largest_score_difference": float(max(abs(a.scores - b.scores).max() for a, b in pairs)),
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()

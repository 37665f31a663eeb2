"""Several labels an image on composited photos: Fashion-MNIST items pasted on real photos, EfficientNet-Lite0 tuned.

    python tests/fetch_assets.py
    python tests/benchmarks/multilabel_scenes.py [--quick] [--out DIR]

Each scene is a piece of a photo of scikit-image or scikit-learn, 128 x 128 pixels, with none to four items on it; the
kinds that occur are its labels. Test scenes have other photos and other items than training scenes. Needs Debian's
package dataset-fashion-mnist. Prints one JSON line: mean average precision and more with intervals, seconds, parity.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from fashion_mnist import NAMES, RECIPES, lite0_weights, run
from PIL import Image
from scenes import GROUNDS, ground, item, items_of, piece

SIDE = 128
SIZES = (28, 57)
COUNTS = {"train": 2000, "val": 200, "test": 600}


def scene(random: np.random.Generator, photo: Image.Image, items: np.ndarray) -> Image.Image:
    made = piece(random, photo, SIDE)
    for grey in items:
        item(random, grey, SIDE, SIZES).paste(made)
    return made


def write_scenes(root: Path, scale: int) -> Path:
    random = np.random.default_rng(0)
    rows = []
    for split, names in GROUNDS.items():
        items, kinds, pool = items_of(split)
        grounds = {name: ground(name) for name in names}
        (root / split).mkdir(parents=True)
        for number in range(COUNTS[split] // scale):
            name = names[number % len(names)]
            chosen = random.choice(pool, int(random.integers(5)), replace=False)
            path = f"{split}/{number:05d}.jpg"
            scene(random, grounds[name], items[chosen]).save(root / path, quality=90)
            labels = sorted({NAMES[kinds[i]] for i in chosen})
            rows.append((path, "|".join(labels), split, name))
    with (root / "scenes.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split", "photo"), *rows])
    return root / "scenes.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the scenes, one epoch")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp())
    table = write_scenes(out / "scenes", 10 if options.quick else 1)
    quiet = ("--trainer.enable_progress_bar", "false")
    start = time.perf_counter()
    run(
        *("fit", "--config", RECIPES / "classification/multilabel.yaml"),
        *("--config", RECIPES / "data/table.yaml", "--data.table", table),
        *("--data.label_separator", "|", "--data.allow_no_label", "true"),
        *(
            "--data.key_column",
            "photo",
            "--data.group_columns",
            "[photo]",
            "--data.augment",
            "light",
        ),
        *("--model.backbone", "tf_efficientnet_lite0", "--model.weights", lite0_weights()),
        *("--model.image_size", SIDE, "--model.fit", "squash", "--model.optim.lr", "1e-3"),
        *("--model.head", "AttentionPoolHead", "--trainer.precision", "32-true"),
        *("--model.channels_last", "true"),
        *("--trainer.max_epochs", "1" if options.quick else "3", *quiet),
        *("--trainer.default_root_dir", out / "runs"),
    )
    seconds = time.perf_counter() - start
    checkpoint = out / "runs/0/checkpoints/best.ckpt"
    run("test", "--ckpt_path", checkpoint, *quiet)
    run("export", checkpoint, "--images", out / "scenes/test", "-o", out / "bundle")
    results = json.loads((checkpoint.parent / "results.json").read_text(encoding="utf-8"))["test"]
    parity = json.loads((out / "bundle/parity.json").read_text(encoding="utf-8"))
    shown = {
        name: results[name] for name in ("mAP", "macro_f1", "micro_f1", "auroc", "exact_match")
    }
    row = {"name": "items on photos, several labels", **shown, "fit_seconds": round(seconds)}
    print(json.dumps(row | {"parity_max_difference": parity["max_difference"]}))


if __name__ == "__main__":
    main()

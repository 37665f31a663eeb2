"""A dense head beside a DETR on few images and in few steps, and with rare classes repeated beside without: 192 pixels.

    python tests/fetch_assets.py
    python tests/benchmarks/detection_heads.py [--steps 250] [--seeds 0] [--only heads repeat solved objects]
        [--sets glyphs clothes] [--quick]

- heads: 300 scenes of Fashion-MNIST items on photos to train, 150 with other items and photos to test. The dense head
  learns as detection/small_data.yaml says, the DETR with the rates of its task.
- repeat: the set `rare` of detection_sets.py, whose classes differ by 100 to 1 in training and not in the test: the
  dense head with --data.repeat_threshold 0.25 beside the same without.
- solved: the scenes of heads; the dense head with its class layer solved before the first step (--model.lp_ft true)
  beside a random start.
- objects: sets of detection_sets.py; the dense head that starts from the packaged one (--model.head.weights objects)
  beside one that starts at random, the class layer solved first for both. The glyphs of the set of that name are none
  that the packaged head has seen, but of the same font.

In all but the last the dense head starts at random. EfficientNet-Lite0 with its ImageNet weights, batches of 8, one
core. Prints the AP of both sides for each seed, and the seconds of the processor that training took.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import yaml
from detection_scenes import scenes_of
from detection_sets import write_set
from fashion_mnist import NAMES, RECIPES, lite0_weights
from sides import report
from trainings import quiet, train

from tests.data.box_writing import write_coco
from vfm import DenseHead, DetectionData, DetectionTask, DetrHead, Optim

SIDE, BATCH, REPEAT_THRESHOLD = 192, 8, 0.25
COUNTS = {"train": 300, "val": 20, "test": 150}


def make_dense() -> DenseHead:
    return DenseHead(weights=None)


Side = tuple[Callable[[], DenseHead | DetrHead], dict[str, Any]]
SIDES: dict[str, tuple[str, tuple[Side, Side]]] = {
    "heads": ("dense beside DETR", ((make_dense, {}), (DetrHead, {}))),
    "repeat": (
        "rare classes repeated beside not",
        ((make_dense, {"repeat_threshold": REPEAT_THRESHOLD}), (make_dense, {})),
    ),
    "solved": (
        "classes solved first beside not",
        ((make_dense, {"lp_ft": True}), (make_dense, {})),
    ),
    "objects": (
        "{}, a head that has seen objects beside a new one",
        (
            (lambda: DenseHead(weights="objects"), {"lp_ft": True}),
            (make_dense, {"lp_ft": True}),
        ),
    ),
}
"""What each part compares: a title, and both sides as a head and arguments of `judge_head`."""


def write_scenes(root: Path, scale: int) -> Path:
    random = np.random.default_rng(0)
    scenes = {split: scenes_of(split, count // scale, random) for split, count in COUNTS.items()}
    return write_coco(root, scenes, list(NAMES))


def judge_head(
    head: DenseHead | DetrHead,
    root: Path,
    steps: int,
    seed: int,
    *,
    repeat_threshold: float = 0.0,
    lp_ft: bool = False,
) -> dict[str, float]:
    options = {}
    if isinstance(head, DenseHead):
        recipe = yaml.safe_load((RECIPES / "detection/small_data.yaml").read_text("utf-8"))
        arguments = recipe["model"]["init_args"]
        options = {name: arguments[name] for name in ("freeze_at", "norm_stats")}
        options["optim"] = Optim(**arguments["optim"])
    L.seed_everything(seed, verbose=False)
    task = DetectionTask(
        "tf_efficientnet_lite0",
        head,
        weights=lite0_weights(),
        image_size=SIDE,
        lp_ft=lp_ft,
        **options,
    )
    data = DetectionData(
        root, batch_size=BATCH, num_workers=0, seed=seed, repeat_threshold=repeat_threshold
    )
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = train(task, data, Path(folder), max_steps=steps, limit_val_batches=0)
        seconds = time.process_time() - start
        (results,) = trainer.test(task, data, verbose=False)
    return {"AP": results["test/AP"], "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parts = ("heads", "repeat", "solved", "objects")
    parser.add_argument("--only", nargs="+", choices=parts, default=["heads", "repeat"])
    parser.add_argument("--sets", nargs="+", choices=("glyphs", "clothes"), default=["clothes"])
    parser.add_argument("--quick", action="store_true", help="30 scenes, 8 steps")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    steps = 8 if options.quick else options.steps
    scale = 10 if options.quick else 1
    for what in options.only:
        for name in options.sets if what == "objects" else [what]:
            with tempfile.TemporaryDirectory() as folder:
                compare(what, name, Path(folder), steps, scale, options.seeds)


def compare(
    what: str, name: str, folder: Path, steps: int, scale: int, seeds: Sequence[int]
) -> None:
    """Train both sides on a set, and print their AP and seconds."""
    if what in ("heads", "solved"):
        root = write_scenes(folder, scale)
    else:
        root = write_set("rare" if what == "repeat" else name, folder, scale)
    title, sides = SIDES[what]
    for seed in seeds:
        ours, theirs = (judge_head(head(), root, steps, seed, **more) for head, more in sides)
        line = f"{title.format(name)}, {steps} steps, seed {seed}"
        report(line, ours["AP"], theirs["AP"], "AP", ours["AP"] / max(theirs["AP"], 1e-3))
        ratio = theirs["seconds"] / ours["seconds"]
        report(f"time, {line}", ours["seconds"], theirs["seconds"], "s", ratio)


if __name__ == "__main__":
    main()

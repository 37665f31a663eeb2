"""A dense head beside a DETR on few images and in few steps, and with rare classes repeated beside without: 192 pixels.

    python tests/fetch_assets.py
    python tests/benchmarks/detection_heads.py [--steps 250] [--seeds 0] [--only heads repeat solved]
        [--quick]

- heads: 300 scenes of Fashion-MNIST items on photos to train, 150 with other items and photos to test. The dense head
  learns as detection/small_data.yaml says, the DETR with the rates of its task.
- repeat: the set `rare` of detection_sets.py, whose classes differ by 100 to 1 in training and not in the test: the
  dense head with --data.repeat_threshold 0.25 beside the same without.
- solved: the scenes of heads; the dense head with its class layer solved before the first step (--model.lp_ft true)
  beside a random start.

EfficientNet-Lite0 with its ImageNet weights, batches of 8, one core. Prints the AP of both sides for each seed, and the
seconds of the processor that training took.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

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
    parser.add_argument(
        "--only", nargs="+", choices=("heads", "repeat", "solved"), default=["heads", "repeat"]
    )
    parser.add_argument("--quick", action="store_true", help="30 scenes, 8 steps")
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    steps = 8 if options.quick else options.steps
    scale = 10 if options.quick else 1
    with tempfile.TemporaryDirectory() as folder:
        for what in options.only:
            root = Path(folder, what)
            root.mkdir()
            root = write_set("rare", root, scale) if what == "repeat" else write_scenes(root, scale)
            for seed in options.seeds:
                if what == "heads":
                    pair = [
                        judge_head(head, root, steps, seed) for head in (DenseHead(), DetrHead())
                    ]
                    name = f"dense beside DETR, {steps} steps, seed {seed}"
                elif what == "solved":
                    pair = [
                        judge_head(DenseHead(), root, steps, seed, lp_ft=solved)
                        for solved in (True, False)
                    ]
                    name = f"classes solved first beside not, {steps} steps, seed {seed}"
                else:
                    pair = [
                        judge_head(DenseHead(), root, steps, seed, repeat_threshold=t)
                        for t in (REPEAT_THRESHOLD, 0.0)
                    ]
                    name = f"rare classes repeated beside not, {steps} steps, seed {seed}"
                ours, theirs = pair
                report(name, ours["AP"], theirs["AP"], "AP", ours["AP"] / max(theirs["AP"], 1e-3))
                ratio = theirs["seconds"] / ours["seconds"]
                report(f"time, {name}", ours["seconds"], theirs["seconds"], "s", ratio)


if __name__ == "__main__":
    main()

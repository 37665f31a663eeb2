"""Classes that a detector is taught by five boxes each, beside training it on all of them: cut-outs at 192 pixels.

    python tests/fetch_assets.py
    python tests/benchmarks/teach_boxes.py [--steps 500] [--seeds 0 1 2] [--checkpoints FOLDER] [--quick]

A DenseHead on EfficientNet-Lite0, as detection/small_data.yaml says, batches of 8, learns five of the ten classes of
`detection_sets.py` from 300 scenes that show no others; its bundle is taught the other five by 5 boxes each, in scenes
that may show all ten. Beside it the same training on 400 scenes of all ten classes. Both are judged on 100 scenes of
all ten, with other objects and photos. Seeds draw the boxes to teach by. With --checkpoints both trainings are kept in
a folder, and taken from there the next time.

Prints the AP50 of the taught classes beside that of training (the ratio is to be at least 0.5), the AP of the old
classes with the taught ones beside without, precision and recall of the taught boxes that are shown, the seconds that
a class takes to teach, and the largest difference of torch and bundle with 1, 2 and 50 taught classes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import vfm_runtime
import yaml
from detection_sets import glyph_scenes
from fashion_mnist import RECIPES, lite0_weights
from numpy.typing import NDArray
from sides import report
from small_sets import EMOJI_KINDS
from trainings import quiet, train
from vfm_runtime.tasks.detection import Detections, compute_iou

import vfm
from tests.data.box_writing import Drawn, write_coco
from vfm import DenseHead, DetectionData, DetectionTask, Optim
from vfm.bundle.export import export
from vfm.metrics.detection import DetectedBoxes, TrueBoxes, compute_coco_metrics

SIDE, BATCH, BOXES = 192, 8, 5
KINDS = tuple(EMOJI_KINDS)
OLD, NEW = KINDS[::2], KINDS[1::2]
COUNTS = {OLD: 300, KINDS: 400}
TEST, POOL = 100, 120

Pairs = list[tuple[NDArray[np.uint8], NDArray[np.float32]]]


def fit_detector(
    kinds: Sequence[str], folder: Path, steps: int, scale: int, checkpoint: Path
) -> Path:
    """Train on scenes of some classes alone, once."""
    if checkpoint.is_file():
        return checkpoint
    random = np.random.default_rng(0)
    counts = {"train": COUNTS[tuple(kinds)] // scale, "val": 20 // scale}
    scenes = {
        split: glyph_scenes(split, count, random, kinds=kinds) for split, count in counts.items()
    }
    root = write_coco(folder / "scenes", scenes, list(kinds))
    recipe = yaml.safe_load((RECIPES / "detection/small_data.yaml").read_text("utf-8"))
    arguments = recipe["model"]["init_args"]
    L.seed_everything(0, verbose=False)
    if scale > 1:
        # Most of the time of a quick run would go into the export of the large graph.
        parts: dict[str, Any] = {
            "backbone": "vit_tiny_patch16_224",
            "backbone_args": {"depth": 1, "embed_dim": 64, "num_heads": 2},
            "head": DenseHead(width=32, depth=1),
            "pretrained": False,
        }
    else:
        parts = {
            "backbone": "tf_efficientnet_lite0",
            "head": DenseHead(),
            "weights": lite0_weights(),
        }
        parts |= {name: arguments[name] for name in ("freeze_at", "norm_stats")}
    task = DetectionTask(
        **parts,
        image_size=SIDE,
        optim=Optim(**arguments["optim"]),
    )
    data = DetectionData(root, batch_size=BATCH, num_workers=0, seed=0)
    trainer = train(task, data, folder / "run", max_steps=steps, limit_val_batches=0)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    trainer.save_checkpoint(checkpoint)
    return checkpoint


def draw_boxes(scenes: Sequence[Drawn], kind: str, random: np.random.Generator) -> Pairs:
    """Scenes with all boxes of a class in them, until there are BOXES; the last scene may bring a box more."""
    pairs: Pairs = []
    for index in random.permutation(len(scenes)):
        scene = scenes[int(index)]
        own = scene.corners[[label == kind for label in scene.labels]]
        if len(own) and sum(len(boxes) for _, boxes in pairs) < BOXES:
            pairs.append((scene.pixels, own))
    return pairs


def judge(
    predictions: Sequence[Detections], scenes: Sequence[Drawn], kinds: Sequence[str], name: str
) -> float:
    """A COCO metric of some classes alone."""
    truth, detected = [], []
    for one, scene in zip(predictions, scenes, strict=True):
        own = [label in kinds for label in scene.labels]
        ids = np.array([kinds.index(label) for label in scene.labels if label in kinds], np.int64)
        truth.append(TrueBoxes(scene.corners[own], ids, np.zeros(len(ids), bool)))
        shown = np.array([label in kinds for label in one.labels], bool)
        ids = np.array([kinds.index(label) for label in one.labels if label in kinds], np.int64)
        detected.append(DetectedBoxes(one.boxes[shown], ids, one.scores[shown]))
    return compute_coco_metrics(truth, detected, len(kinds))[0][name] or 0.0


def measure_shown(
    predictions: Sequence[Detections], scenes: Sequence[Drawn]
) -> tuple[float, float]:
    """Precision and recall of the taught boxes that are shown unless another threshold is asked for."""
    right = shown = true = 0
    for one, scene in zip(predictions, scenes, strict=True):
        best = one.above()
        for kind in NEW:
            own = scene.corners[[label == kind for label in scene.labels]]
            boxes = best.boxes[[label == kind for label in best.labels]]
            right += int((compute_iou(own, boxes).max(axis=1, initial=0) >= 0.5).sum())
            shown, true = shown + len(boxes), true + len(own)
    return right / max(shown, 1), right / max(true, 1)


def compare_sides(checkpoint: Path, bundle: Path, pool: Sequence[Drawn], count: int) -> float:
    """The largest difference of a score of torch and bundle, taught as many classes; infinite without a partner."""
    pairs = [(scene.pixels, scene.corners) for scene in pool if len(scene.corners)]
    examples = {f"class {k}": [pairs[k]] for k in range(count)}
    sides: list[Any] = [vfm.load(checkpoint), vfm_runtime.load(bundle, device="cpu")]
    answers = []
    for model in sides:
        model.taught.teach(examples)
        answers.append(model.predict([scene.pixels for scene in pool[:8]]))
    agreements = [one.compare(other) for one, other in zip(*answers, strict=True)]
    return (
        float("inf")
        if any(a.changed for a in agreements)
        else max(a.difference for a in agreements)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument(
        "--quick", action="store_true", help="30 scenes, 2 steps, one seed, a tiny backbone"
    )
    options = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    steps, scale = (2, 10) if options.quick else (options.steps, 1)
    pool = glyph_scenes("train", POOL // min(scale, 4), np.random.default_rng(77))
    test = glyph_scenes("test", TEST // scale, np.random.default_rng(5))
    pictures = [scene.pixels for scene in test]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        kept = options.checkpoints or folder / "checkpoints"
        old, whole = (
            fit_detector(kinds, folder / name, steps, scale, kept / f"{name}.ckpt")
            for name, kinds in (("old", OLD), ("all", KINDS))
        )
        write_coco(folder / "images", {"test": test}, list(KINDS))
        bundle = export(
            old, images=folder / "images/test", out=folder / "bundle", num_images=4, tolerance=1e-2
        )
        trained = vfm.load(whole).predict(pictures)
        theirs = judge(trained, test, NEW, "AP50")
        for seed in options.seeds[: 1 if options.quick else None]:
            model = vfm_runtime.load(bundle, device="cpu", num_threads=1)
            before = judge(model.predict(pictures), test, OLD, "AP")
            random = np.random.default_rng(seed)
            examples = {kind: draw_boxes(pool, kind, random) for kind in NEW}
            start = time.perf_counter()
            model.taught.teach(examples)
            seconds = (time.perf_counter() - start) / len(NEW)
            answers = model.predict(pictures)
            ours = judge(answers, test, NEW, "AP50")
            name = f"five classes taught by {BOXES} boxes each beside trained, seed {seed}"
            report(name, ours, theirs, "AP50", ours / max(theirs, 1e-3))
            after = judge(answers, test, OLD, "AP")
            name = f"old classes with taught ones beside without, seed {seed}"
            report(name, after, before, "AP", after / max(before, 1e-3))
            precision, recall = measure_shown(answers, test)
            row = {"precision": round(precision, 3), "recall": round(recall, 3)}
            print(json.dumps({"name": f"taught boxes shown, seed {seed}", **row}), flush=True)
            row = {"seconds": round(seconds, 3)}
            print(json.dumps({"name": f"teaching a class, seed {seed}", **row}), flush=True)
        for count in (1,) if options.quick else (1, 2, 50):
            difference = compare_sides(old, bundle, pool, count)
            row = {"name": f"torch and bundle, {count} taught", "difference": difference}
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

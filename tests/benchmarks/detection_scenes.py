"""Objects found on composited photos: EfficientNet-Lite0 by detection/small_data.yaml and the command line alone.

    python tests/fetch_assets.py
    python tests/benchmarks/detection_scenes.py [--quick] [--out DIR]

1,000 scenes to train, 100 to validate, 200 to test, 256 x 256 pixels, with one to six Fashion-MNIST items of ten kinds
on photos; test scenes have other photos and items. They are written as COCO, YOLO and Pascal VOC, and one checkpoint is
tested on each. Then it is exported, and the bundle answers for the test images. Needs Debian's package
dataset-fashion-mnist. Prints one JSON line, and leaves `ap_over_time.png` in DIR.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import vfm_runtime
from fashion_mnist import NAMES, RECIPES, lite0_weights, run
from scenes import GROUNDS, ground, item, items_of, piece
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from vfm_runtime.tasks.detection import compute_iou

import vfm
from tests.data.box_writing import Drawn, write_coco, write_voc, write_yolo
from vfm.data import DetectionData
from vfm.metrics.detection import DetectedBoxes, compute_coco_metrics
from vfm.report import plots
from vfm.tasks.detection.results import select_truth

SIDE, SIZES, MOST = 256, (40, 110), 6
COUNTS = {"train": 1000, "val": 100, "test": 200}
# Items that hide each other by more than this are no fair question.
OVERLAP = 0.15
WRITERS = {"coco": write_coco, "yolo": write_yolo, "voc": write_voc}
QUIET = ("--trainer.enable_progress_bar", "false")


def scenes_of(split: str, count: int, random: np.random.Generator) -> list[Drawn]:
    images, kinds, pool = items_of(split)
    grounds = {name: ground(name) for name in GROUNDS[split]}
    drawn = []
    for number in range(count):
        made = piece(random, grounds[GROUNDS[split][number % len(grounds)]], SIDE)
        boxes: list[tuple[int, ...]] = []
        labels: list[str] = []
        for index in random.choice(pool, int(random.integers(1, MOST + 1)), replace=False):
            one = item(random, images[index], SIDE, SIZES)
            others = np.array(boxes, float).reshape(-1, 4)
            if compute_iou(np.array([one.box], float), others).max(initial=0) > OVERLAP:
                continue
            one.paste(made)
            boxes.append(one.box)
            labels.append(NAMES[kinds[index]])
        corners = np.array(boxes, np.float32).reshape(-1, 4)
        drawn.append(Drawn(f"{split}{number:05d}.jpg", np.asarray(made), corners, labels))
    return drawn


def write(out: Path, scale: int) -> dict[str, Path]:
    random = np.random.default_rng(0)
    splits = {split: scenes_of(split, count // scale, random) for split, count in COUNTS.items()}
    roots = {}
    for name, writer in WRITERS.items():
        roots[name] = out / name
        roots[name].mkdir(parents=True)
        writer(roots[name], splits, list(NAMES))
    return roots


def over_time(run_folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Minutes since the first log entry, and the figure."""
    events = EventAccumulator(str(run_folder)).Reload()
    start = min(e.wall_time for tag in events.Tags()["scalars"] for e in events.Scalars(tag))
    return {
        tag: [((e.wall_time - start) / 60, e.value) for e in events.Scalars(tag)]
        for tag in ("val/AP", "val/AP50")
    }


def bundle_ap(bundle: Path, root: Path) -> tuple[float, int]:
    """AP of the bundle's answers on the test images, and how many images."""
    data = DetectionData(root)
    data.setup("test")
    records = data.records["test"]
    model = vfm_runtime.load(bundle, device="cpu")
    answers = model.predict([record.source for record in records])
    numbers = [model.labels.index(name) for name in data.labels]
    truth = [select_truth(record, [record], numbers) for record in records]
    found = [DetectedBoxes(a.boxes, a.class_ids, a.scores) for a in answers]
    return compute_coco_metrics(truth, found, len(model.labels))[0]["AP"] or 0.0, len(records)


def tested(checkpoint: Path, root: Path) -> dict[str, Any]:
    run("test", "--ckpt_path", checkpoint, "--data", "DetectionData", "--data.root", root, *QUIET)
    text = (checkpoint.parent / "results.json").read_text(encoding="utf-8")
    results: dict[str, Any] = json.loads(text)["test"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the scenes, one epoch")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp())
    roots = write(out / "scenes", 20 if options.quick else 1)
    words = ["--config", RECIPES / "detection/small_data.yaml", "--data.root", roots["coco"]]
    # Three quarters of the scenes' size: about half the work.
    words += ["--model.image_size", "192"]
    words += ["--model.weights", lite0_weights(), "--trainer.default_root_dir", out / "runs"]
    if options.quick:
        words += ["--model.min_steps", "0", "--trainer.max_epochs", "1"]
    start = time.perf_counter()
    run("fit", *words, *QUIET)
    seconds = time.perf_counter() - start
    checkpoint = out / "runs/0/checkpoints/best.ckpt"
    curve = plots.plot_learning_curves({"AP": over_time(out / "runs/0")}, xlabel="minutes")
    (out / "ap_over_time.png").write_bytes(curve)
    results = {name: tested(checkpoint, root) for name, root in roots.items()}
    bundle = out / "bundle"
    run(
        "export",
        checkpoint,
        "--images",
        roots["coco"] / "test",
        "-o",
        bundle,
        "--num_images",
        "32" if not options.quick else "8",
    )
    exported, number = bundle_ap(bundle, roots["coco"])
    parity = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    row = {
        "name": "scenes of ten kinds, EfficientNet-Lite0, nano",
        "AP": round(results["coco"]["AP"], 4),
        "AP50": results["coco"]["AP50"],
        "AP_by_format": {name: found["AP"] for name, found in results.items()},
        "AP_of_bundle": exported,
        "test_images": number,
        "fit_seconds": round(seconds),
        "largest_score_difference": parity["max_difference"],
        "version": vfm.__version__,
    }
    print(json.dumps(row))


if __name__ == "__main__":
    main()

"""A detector with tiles on whole photos of small squares: recall by `vfm test`, by the bundle and by the server, equal.

    python tests/benchmarks/tiled_recall.py [--epochs 16] [--out DIR]
    python tests/benchmarks/tiled_recall.py --checkpoint best.ckpt --data my_photos

Draws photos of 480 x 360 pixels with up to 30 squares of 8 to 12 pixels, which a model of 64 x 64 pixels cannot see in
the whole photo, trains a small detector on tiles of 64 pixels, tests and exports it, and serves the bundle. With
`--checkpoint` it takes your own model with tiles, and the test split of your data. Prints a row each, and one for the
bundle as if it had no tiles; ends with 1 where the three ways differ.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import vfm_runtime

from tests.data.box_writing import Drawn, write_coco
from vfm.cli import main as command
from vfm.data import DetectionData
from vfm.metrics.detection import DetectedBoxes, count_confusions
from vfm.tasks.detection.results import compute_box_metrics, select_truth

HEIGHT, WIDTH, TILE = 360, 480, 64
NAMES = ["red", "green", "blue"]
PHOTOS = {"train": 12, "val": 2, "test": 8}
Boxes = list[DetectedBoxes]


def run(*words: str | Path) -> None:
    if command([str(word) for word in words]) != 0:
        raise SystemExit(f"vfm {words[0]} failed")


def draw_photo(name: str, random: np.random.Generator) -> Drawn:
    pixels = random.integers(60, 120, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    cells = random.permutation((HEIGHT // 24) * (WIDTH // 24))[: random.integers(10, 31)]
    corners, labels = [], []
    for cell in cells:
        side = int(random.integers(8, 13))
        top, left = np.array(divmod(int(cell), WIDTH // 24)) * 24 + random.integers(0, 24 - side, 2)
        label = int(random.integers(len(NAMES)))
        pixels[top : top + side, left : left + side] = random.integers(0, 60, 3)
        pixels[top : top + side, left : left + side, label] = 255
        corners.append([left, top, left + side, top + side])
        labels.append(NAMES[label])
    return Drawn(name, pixels, np.array(corners, np.float32), labels)


def train(out: Path, epochs: int) -> tuple[Path, Path]:
    """The checkpoint and the data of a small detector that was trained on tiles."""
    random = np.random.default_rng(0)
    splits = {
        split: [draw_photo(f"{split}{number:03d}.png", random) for number in range(count)]
        for split, count in PHOTOS.items()
    }
    data = out / "photos"
    data.mkdir()
    write_coco(data, splits, NAMES)
    model = {
        "--model.backbone": "vit_tiny_patch16_224",
        "--model.pretrained": "false",
        "--model.backbone_args": "{embed_dim: 96, depth: 4, num_heads: 3, patch_size: 8}",
        "--model.image_size": str(TILE),
        "--model.head.num_queries": "20",
        "--model.optim.lr": "1e-3",
        "--model.optim.backbone_factor": "1",
        "--data.tile": str(TILE),
        "--data.tile_overlap": "0.3",
        "--data.augment.mosaic": "0",
        "--data.num_workers": "0",
        "--trainer.max_epochs": str(epochs),
        "--trainer.check_val_every_n_epoch": str(max(1, epochs // 4)),
        "--trainer.default_root_dir": str(out / "run"),
        "--trainer.enable_progress_bar": "false",
    }
    words = [word for pair in model.items() for word in pair]
    run("fit", "--model", "DetectionTask", "--data", "DetectionData", "--data.root", data, *words)
    return out / "run" / "0" / "checkpoints" / "best.ckpt", data


def predict_by_server(bundle: Path, paths: list[Path]) -> list[dict[str, Any]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [sys.executable, "-m", "vfm_runtime.cli", "serve", str(bundle), "--port", str(port)]
    server = subprocess.Popen([*words, "--device", "cpu"], stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/v2/health/ready", timeout=5).close()
                break
            except OSError:
                time.sleep(0.1)
        answers = []
        for path in paths:
            headers = {"Content-Type": "application/octet-stream"}
            url = f"{address}/predict?threshold=0"
            request = urllib.request.Request(url, path.read_bytes(), headers)
            with urllib.request.urlopen(request, timeout=600) as answer:
                answers.append(json.load(answer)["answer"])
        return answers
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, help="of a model with tiles")
    parser.add_argument("--data", type=Path, help="photos with boxes and a test split")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    if (options.checkpoint is None) != (options.data is None):
        raise SystemExit("Give --checkpoint and --data together, or neither.")
    out = options.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, data = options.checkpoint, options.data
    if checkpoint is None:
        checkpoint, data = train(out, options.epochs)
    words = ["--data", "DetectionData", "--data.root", data, "--trainer.logger", "false"]
    run("test", "--ckpt_path", checkpoint, *words)
    results = json.loads((checkpoint.parent / "results.json").read_text(encoding="utf-8"))["test"]
    bundle = out / "bundle"
    run("export", checkpoint, "--images", data, "--out", bundle, "--num_images", "16")

    photos = DetectionData(data)
    photos.setup("test")
    records = photos.records["test"]
    paths = [Path(str(record.source)) for record in records]
    model = vfm_runtime.load(bundle, device="cpu")
    columns = [model.labels.index(name) for name in photos.labels]
    truth = [select_truth(record, [record], columns) for record in records]
    total = sum(int((~true.ignored).sum()) for true in truth)
    # Each is the score of a box, of which ONNX Runtime's differs in the last digits.
    thresholds = [row["best_threshold"] - 1e-5 for row in results["per_class"]]

    def judge(boxes: Boxes) -> tuple[float, float]:
        """Recall at the thresholds of the test, of an IoU of 0.5, and AP."""
        matrix = count_confusions(truth, boxes, thresholds)
        metrics = compute_box_metrics(truth, boxes, len(model.labels), results["max_boxes"])
        return np.diag(matrix)[:-1].sum() / total, metrics["AP"]

    rows: dict[str, tuple[float, float]] = {}
    tested = np.array(results["confusion_matrix"])
    rows["vfm test"] = np.diag(tested)[:-1].sum() / total, results["AP"]
    answers = model.predict(paths)
    rows["the bundle"] = judge([DetectedBoxes(a.boxes, a.class_ids, a.scores) for a in answers])
    served = []
    for answer in predict_by_server(bundle, paths):
        boxes = answer["boxes"]
        served.append(
            DetectedBoxes(
                np.array([box["box"] for box in boxes], np.float32).reshape(-1, 4),
                np.array([model.labels.index(box["label"]) for box in boxes], np.int64),
                np.array([box["score"] for box in boxes], np.float32),
            )
        )
    rows["the server"] = judge(served)
    model.task_type.tiling = None
    whole = model.predict(paths)
    rows["the bundle without tiles"] = judge(
        [DetectedBoxes(a.boxes, a.class_ids, a.scores) for a in whole]
    )
    print(f"{len(paths)} photos, {total} objects")
    for name, (recall, ap) in rows.items():
        print(f"{name:<26} recall {recall:.4f}  AP {ap:.4f}")
    three = np.array(list(rows.values())[:3])
    # Torch and ONNX Runtime differ in the last digits of a score.
    if (np.ptp(three[:, 0]) > 0) or (np.ptp(three[:, 1]) > 1e-3):
        raise SystemExit("The three ways differ.")


if __name__ == "__main__":
    main()

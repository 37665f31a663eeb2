"""Trees on aerial photos: a DETR of vfm beside torchvision's Faster R-CNN, on the same weights, views and machine.

    python tests/fetch_assets.py
    python tests/benchmarks/detection_duel.py [--quick] [--minutes 20] [--seeds 0 1 2] [--out DIR]

Trained on tiles of 400 pixels of one large photo (574 boxes), tested on tiles of another photo and on a small one of
another place (340 boxes, one class). Both sides learn from the same augmented views with AdamW, a warm-up and a cosine
over the same minutes, at the same time, each on its half of the cores, so that whatever else the machine does meets
both alike; the backbone is EfficientNet-Lite0. Prints a JSON line for each seed, then the mean difference of
AP50 with its 95 % interval over test tiles, both models on the same draws.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from fashion_mnist import lite0_weights
from faster_rcnn import faster_rcnn, targets
from trainings import WARM, Clock, quiet, train
from vfm_runtime.tasks.tiling import Tiling

from vfm import DetectionData, DetectionTask, DetrHead, Optim
from vfm.data.dataset import Record
from vfm.data.detection.tiles import get_region, is_centered_in, share_out
from vfm.metrics.detection import DetectedBoxes, TrueBoxes, compute_ap50, match_detections

BACKBONE, SIDE, TILE, BATCH = "tf_efficientnet_lite0", 384, 400, 4
TRAIN = "2019_YELL_2_528000_4978000_image_crop2"
TEST = ("2019_YELL_2_541000_4977000_image_crop", "OSBS_029")
RESAMPLES = 1000
# Steps of a trial before the training, two epochs, that tell how many steps fit into its time.
TRIAL = 30


def write(root: Path) -> Path:
    """The photos and their XML files, a split each."""
    source = Path(__file__).parents[2] / ".cache/assets/deepforest/deepforest/data"
    if not source.is_dir():
        raise SystemExit("The photos are missing. Run: python tests/fetch_assets.py")
    for split, names in (("train", (TRAIN,)), ("test", TEST)):
        for name in names:
            (root / split).mkdir(parents=True, exist_ok=True)
            for suffix in (".png", ".xml"):
                shutil.copy(source / (name + suffix), root / split)
    return root


def open_data(root: Path, seed: int) -> DetectionData:
    return DetectionData(
        root,
        format="voc",
        tile=TILE,
        tile_overlap=0.2,
        val_fraction=0.0,
        batch_size=BATCH,
        num_workers=1,
        seed=seed,
    )


class Until(L.Callback):
    """Ends a training after so many seconds, and says how far it came."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.start, self.steps = seconds, 0.0, 0

    def on_train_start(self, *args: Any) -> None:
        self.start = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.steps += 1
        trainer.should_stop = time.perf_counter() - self.start >= self.seconds


def task() -> DetectionTask:
    return DetectionTask(
        BACKBONE,
        DetrHead("nano", num_queries=200, fine=True),
        weights=lite0_weights(),
        image_size=SIDE,
        channels_last=True,
        optim=Optim(lr=5e-4, weight_decay=1e-4, max_grad_norm=0.1, backbone_factor=0.2, ema=0.998),
    )


def ours(
    root: Path, seed: int, seconds: float, out: Path
) -> tuple[Callable[..., list[DetectedBoxes]], int]:
    L.seed_everything(seed, verbose=False)
    clock, trial = Clock(), TRIAL if seconds > 60 else WARM + 1
    data, options = open_data(root, seed), {"limit_val_batches": 0}
    train(task(), data, out / "trial", max_steps=trial, callbacks=[clock], **options)
    steps = max(1, int(seconds * clock.rate(batch=1)))
    L.seed_everything(seed, verbose=False)
    learned, until = task(), Until(seconds)
    train(learned, open_data(root, seed), out, max_steps=steps, callbacks=[until], **options)
    learned.eval()

    def find(images: torch.Tensor, rows: torch.Tensor) -> list[DetectedBoxes]:
        with torch.inference_mode():
            answer = learned.answer(images, rows)
        parts = (answer[name].numpy() for name in ("boxes", "labels", "scores"))
        return [DetectedBoxes(*one) for one in zip(*parts, strict=True)]

    return find, until.steps


def theirs(
    root: Path, seed: int, seconds: float, out: Path
) -> tuple[Callable[..., list[DetectedBoxes]], int]:
    L.seed_everything(seed, verbose=False)
    model = faster_rcnn(BACKBONE, 1, SIDE, lite0_weights()).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = open_data(root, seed)
    data.preprocess = task().preprocess
    data.setup("fit")
    adamw = torch.optim.AdamW(model.parameters(), lr=2e-4, weight_decay=1e-4)
    start, steps, epoch = time.perf_counter(), 0, 0
    done = 0.0
    while done < 1:
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        # The same views as the other side sees, calm ones at the end among them.
        loader.dataset.calm_from = epoch if done > 1 - data.box_augment.close_mosaic else math.inf  # type: ignore[attr-defined]
        for batch in loader:
            done = (time.perf_counter() - start) / seconds
            if done >= 1:
                break
            rate = min(1.0, done / 0.05) * 0.5 * (1 + math.cos(math.pi * done))
            for group in adamw.param_groups:
                group["lr"] = 2e-4 * rate
            objects = batch["target"]
            counts = objects.counts.tolist()
            half = objects.boxes[:, 2:] / 2
            corners = SIDE * torch.cat(
                [objects.boxes[:, :2] - half, objects.boxes[:, :2] + half], 1
            )
            wanted = targets(list(corners.split(counts)), list(objects.labels.split(counts)))
            images = list(batch["image"].permute(0, 3, 1, 2).float().div(255))
            loss = torch.stack(list(model(images, wanted).values())).sum()
            adamw.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            adamw.step()
            steps += 1
        epoch += 1
    model.eval()

    def find(images: torch.Tensor, rows: torch.Tensor) -> list[DetectedBoxes]:
        with torch.inference_mode():
            answers = model(list(images.permute(0, 3, 1, 2).float().div(255)))
        found = []
        for answer, row in zip(answers, rows.numpy(), strict=True):
            scale, start = np.tile(row[2:4] / SIDE, 2), np.tile(row[:2], 2)
            boxes = answer["boxes"].numpy() * scale + start
            found.append(
                DetectedBoxes(boxes, answer["labels"].numpy() - 1, answer["scores"].numpy())
            )
        return found

    return find, steps


SIDES = {"vfm": ours, "faster_rcnn": theirs}


def test_data(root: Path) -> DetectionData:
    data = DetectionData(
        root,
        format="voc",
        tile=TILE,
        val_fraction=0.0,
        batch_size=BATCH,
        num_workers=0,
    )
    data.preprocess = task().preprocess
    data.setup("test")
    return data


def is_core(record: Record, corners: np.ndarray) -> np.ndarray:
    """Which boxes [M, 4] of a tile have their centre nearer to it than to its neighbours: each counts in one tile."""
    assert record.objects
    assert record.objects.tile
    left, top, _, _ = get_region(record)
    regions = Tiling(TILE).place(*record.objects.tile.photo.size)
    across = share_out([(region.left, region.right) for region in regions])[left]
    down = share_out([(region.top, region.bottom) for region in regions])[top]
    core = np.array(list(zip(across, down, strict=True))).ravel() - np.array([left, top] * 2)
    return is_centered_in(core, corners)


def contest(
    side: str, root: Path, seed: int, seconds: float, out: Path
) -> tuple[list[DetectedBoxes], int]:
    """What a side finds in the test tiles after its training on half of the cores, and its steps."""
    quiet()
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    os.sched_setaffinity(0, cores[:half] if side == "vfm" else cores[-half:])
    torch.set_num_threads(half)
    find, steps = SIDES[side](root, seed, seconds, out)
    data = test_data(root)
    found: list[DetectedBoxes] = []
    for batch in data.test_dataloader():
        found += find(batch["image"], batch["geometry"])
    pairs = zip(data.records["test"], found, strict=True)
    return [DetectedBoxes(*(v[is_core(r, b.corners)] for v in b)) for r, b in pairs], steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, a few steps each")
    parser.add_argument("--minutes", type=float, default=20.0, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    quiet()
    out = options.out or Path(tempfile.mkdtemp())
    root = write(out / "photos")
    seconds = 5.0 if options.quick else 60 * options.minutes
    truth = [
        TrueBoxes(boxes.corners, np.zeros(len(boxes.corners), int), boxes.ignored | ~core)
        for record in test_data(root).records["test"]
        if (boxes := record.objects) is not None
        for core in [is_core(record, boxes.corners)]
    ]
    once = np.ones((1, len(truth)), np.int64)
    draws = []
    for seed in options.seeds[: 1 if options.quick else None]:
        row: dict[str, Any] = {"name": "trees, AP50", "seed": seed, "minutes": seconds / 60}
        samples = {}
        with ProcessPoolExecutor(len(SIDES), get_context("spawn")) as pool:
            contests = {
                side: pool.submit(contest, side, root, seed, seconds, out / f"{side}{seed}")
                for side in SIDES
            }
            for side, running in contests.items():
                found, steps = running.result()
                classes = match_detections(truth, found, 1)
                row[side] = round(float(compute_ap50(classes, truth, once)[0]), 4)
                row[f"{side}_images"] = steps * BATCH
                # The same seed draws the same images, so that the two are compared draw by draw.
                draws = np.random.default_rng(0).multinomial(
                    len(truth), np.full(len(truth), 1 / len(truth)), RESAMPLES
                )
                samples[side] = compute_ap50(classes, truth, draws)
        draws.append(samples["vfm"] - samples["faster_rcnn"])
        print(json.dumps(row), flush=True)
    mean = np.mean(draws, axis=0)
    low, high = np.quantile(mean, [0.025, 0.975])
    print(
        json.dumps(
            {
                "name": "trees, AP50, vfm less Faster R-CNN, mean of seeds",
                "difference": round(float(mean.mean()), 4),
                "interval": [round(float(low), 4), round(float(high), 4)],
                "boxes": sum(int((~t.ignored).sum()) for t in truth),
            }
        )
    )


if __name__ == "__main__":
    main()

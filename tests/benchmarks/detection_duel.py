"""Detection from few images: `vfm fit --trainer.minutes` beside torchvision's Faster R-CNN, on a core each.

    python tests/fetch_assets.py
    python tests/benchmarks/detection_duel.py [--minutes 20] [--seeds 0 1] [--only glyphs trees] [--out DIR] [--quick]

Four sets of detection_sets.py: cut-outs of ten classes, aerial photos, clothes, and cut-outs whose classes differ by
100 to 1. vfm trains by detection/small_data.yaml and the command line alone; the other side by AdamW, a warm-up and a
cosine over the same time, in batches of 4, with the norms of its backbone frozen as torchvision freezes its own. Both
start from the ImageNet weights of EfficientNet-Lite0, see the same augmented views at the same size, and run at the
same time, on one core each, so that whatever else the machine does meets both alike. Every cell, a set and a seed, is
written to DIR/cells.jsonl as it ends, and a run with the same DIR goes on after the last one. At the end: the mean
difference of AP (of AP50 for the aerial photos) with its 95 % interval over test images, both sides on the same draws.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from detection_sets import SETS, write_set
from fashion_mnist import RECIPES, lite0_weights, run
from faster_rcnn import faster_rcnn, targets
from trainings import quiet
from vfm_runtime.tasks.tiling import Tiling

from vfm import DetectionData, DetectionTask
from vfm.data.detection.tiles import get_region, is_centered_in, share_out
from vfm.data.records import Record
from vfm.metrics.detection import DetectedBoxes, TrueBoxes, compute_ap50, match_detections
from vfm.tasks import BaseTask

BACKBONE, BATCH = "tf_efficientnet_lite0", 4
SIDE, TILE, SIDE_OF_TILE = 320, 400, 384
RESAMPLES = 1000
IOUS = np.linspace(0.5, 0.95, 10)
Find = Callable[[torch.Tensor, torch.Tensor], list[DetectedBoxes]]


def get_options(name: str) -> dict[str, Any]:
    """Options of the data of a set."""
    if name != "trees":
        return {}
    return {"format": "voc", "tile": TILE, "val_fraction": 0.0}


def get_side(name: str) -> int:
    return SIDE_OF_TILE if name == "trees" else SIDE


def ours(
    name: str, root: Path, seed: int, seconds: float, out: Path, *, quick: bool
) -> tuple[Find, int]:
    """Train by the command line."""
    words: list[Any] = ["--config", RECIPES / "detection/small_data.yaml", "--data.root", root]
    words += ["--model.weights", lite0_weights(), "--model.image_size", get_side(name)]
    words += ["--seed_everything", seed, "--data.seed", seed, "--data.num_workers", 0]
    for option, value in get_options(name).items():
        words += [f"--data.{option}", value]
    if "val_fraction" in get_options(name):
        words += ["--trainer.limit_val_batches", 0]  # all tiles of the one photo are trained on
    words += ["--trainer.default_root_dir", out, "--trainer.enable_progress_bar", "false"]
    length = ["--model.min_steps", 0, "--trainer.max_epochs", 1]
    words += length if quick else ["--trainer.minutes", f"{seconds / 60:g}"]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "log.txt").open("w") as log, contextlib.redirect_stdout(log):
        run("fit", *words)
    folder = out / "0/checkpoints"
    path = folder / ("best.ckpt" if (folder / "best.ckpt").is_file() else "last.ckpt")
    task = BaseTask.load(path)
    steps = int(torch.load(folder / "last.ckpt", weights_only=True)["global_step"])
    task.eval()

    def find(images: torch.Tensor, rows: torch.Tensor) -> list[DetectedBoxes]:
        with torch.inference_mode():
            answer = task.answer(images, rows)
        parts = (answer[key].numpy() for key in ("boxes", "labels", "scores"))
        return [DetectedBoxes(*one) for one in zip(*parts, strict=True)]

    return find, steps


def theirs(
    name: str, root: Path, seed: int, seconds: float, out: Path, *, quick: bool
) -> tuple[Find, int]:
    L.seed_everything(seed, verbose=False)
    side = get_side(name)
    data = DetectionData(root, batch_size=BATCH, num_workers=0, seed=seed, **get_options(name))
    data.preprocess = preprocess(name)
    data.setup("fit")
    model = faster_rcnn(BACKBONE, len(data.labels), side, lite0_weights()).train()
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
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
            corners = side * torch.cat(
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
            scale, first = np.tile(row[2:4] / side, 2), np.tile(row[:2], 2)
            boxes = answer["boxes"].numpy() * scale + first
            found.append(
                DetectedBoxes(boxes, answer["labels"].numpy() - 1, answer["scores"].numpy())
            )
        return found

    return find, steps


SIDES = {"vfm": ours, "faster_rcnn": theirs}


def preprocess(name: str) -> Any:
    return DetectionTask(BACKBONE, pretrained=False, image_size=get_side(name)).preprocess


def open_test(name: str, root: Path) -> DetectionData:
    data = DetectionData(root, batch_size=BATCH, num_workers=0, **get_options(name))
    data.preprocess = preprocess(name)
    data.setup("test")
    return data


def is_core(record: Record, corners: np.ndarray) -> np.ndarray:
    """Which boxes [M, 4] of a tile have their centre nearer to it than to its neighbours: each counts in one tile."""
    if record.objects is None or record.objects.tile is None:
        return np.ones(len(corners), bool)
    left, top, _, _ = get_region(record)
    regions = Tiling(TILE).place(*record.objects.tile.photo.size)
    across = share_out([(region.left, region.right) for region in regions])[left]
    down = share_out([(region.top, region.bottom) for region in regions])[top]
    core = np.array(list(zip(across, down, strict=True))).ravel() - np.array([left, top] * 2)
    return is_centered_in(core, corners)


def list_truth(data: DetectionData) -> list[TrueBoxes]:
    """True boxes of the test images; of tiles those in their core."""
    truth = []
    for record in data.records["test"]:
        boxes, labels = record.objects, np.array(record.label, np.int64)
        assert boxes is not None
        truth.append(
            TrueBoxes(boxes.corners, labels, boxes.ignored | ~is_core(record, boxes.corners))
        )
    return truth


def contest(
    side: str, name: str, root: Path, seed: int, seconds: float, out: Path, quick: bool
) -> tuple[list[DetectedBoxes], int]:
    """What a side finds in the test images after its training on one core, and its steps."""
    quiet()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1] if side == "vfm" else cores[-1:])
    torch.set_num_threads(1)
    find, steps = SIDES[side](name, root, seed, seconds, out, quick=quick)
    data = open_test(name, root)
    found: list[DetectedBoxes] = []
    for batch in data.test_dataloader():
        found += find(batch["image"], batch["geometry"])
    pairs = zip(data.records["test"], found, strict=True)
    return [DetectedBoxes(*(v[is_core(r, b.corners)] for v in b)) for r, b in pairs], steps


def sample_ap(
    truth: Sequence[TrueBoxes], found: Sequence[DetectedBoxes], num_labels: int, name: str
) -> np.ndarray:
    """AP of the test images, and of RESAMPLES draws of them that depend on their number alone; AP50 of trees."""
    number = len(truth)
    draws = np.random.default_rng(0).multinomial(number, np.full(number, 1 / number), RESAMPLES)
    counts = np.concatenate([np.ones((1, number), np.int64), draws])
    ious = IOUS[:1] if name == "trees" else IOUS
    parts = [
        compute_ap50(match_detections(truth, found, num_labels, iou), truth, counts) for iou in ious
    ]
    return np.mean(parts, axis=0)


def run_cell(
    name: str, root: Path, seed: int, seconds: float, out: Path, quick: bool
) -> dict[str, Any]:
    """Let both sides learn a set, and return the cell."""
    row: dict[str, Any] = {"set": name, "seed": seed, "minutes": round(seconds / 60, 2)}
    data = open_test(name, root)
    truth, num_labels = list_truth(data), len(data.labels)
    samples = []
    with ProcessPoolExecutor(len(SIDES), get_context("spawn")) as pool:
        folder = out / f"{name}-{seed}-{seconds:g}"
        running = [
            pool.submit(
                contest,
                side,
                name,
                root,
                seed,
                seconds,
                folder / f"{side}-{time.time():.0f}",
                quick,
            )
            for side in SIDES
        ]
        for side, contestant in zip(SIDES, running, strict=True):
            found, steps = contestant.result()
            samples.append(sample_ap(truth, found, num_labels, name))
            row |= {side: round(float(samples[-1][0]), 4), f"{side}_steps": steps}
    row["metric"] = "AP50" if name == "trees" else "AP"
    row["load"] = [round(value, 1) for value in os.getloadavg()]
    np.save(out / f"{name}-{seed}-{seconds:g}.npy", np.array(samples))
    return row


def summarize(name: str, seeds: Sequence[int], seconds: float, out: Path) -> dict[str, Any]:
    """The mean of both sides and of their difference over seeds, and its interval over test images."""
    samples = np.mean([np.load(out / f"{name}-{seed}-{seconds:g}.npy") for seed in seeds], axis=0)
    low, high = np.quantile(samples[0, 1:] - samples[1, 1:], [0.025, 0.975])
    first, second = (float(value) for value in samples[:, 0])
    return {
        "name": f"{name}, {seconds / 60:g} minutes, {len(seeds)} seeds",
        "ours": round(first, 4),
        "theirs": round(second, 4),
        "ratio": round(first / max(second, 1e-4), 3),
        "difference": round(first - second, 4),
        "interval": [round(float(low), 4), round(float(high), 4)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sets, a few seconds each")
    parser.add_argument("--minutes", type=float, default=20.0, help="of each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    quiet()
    out = options.out or Path(tempfile.mkdtemp())
    out.mkdir(parents=True, exist_ok=True)
    seconds = 5.0 if options.quick else 60 * options.minutes
    seeds = options.seeds[:1] if options.quick else options.seeds
    cells = out / "cells.jsonl"
    lines = cells.read_text().splitlines() if cells.is_file() else []
    done = {(row["set"], row["seed"], row["minutes"]) for row in map(json.loads, lines)}
    for seed in seeds:
        for name in options.only:
            if (name, seed, round(seconds / 60, 2)) in done:
                continue
            root = write_set(name, out / "sets", scale=20 if options.quick else 1)
            line = json.dumps(run_cell(name, root, seed, seconds, out, options.quick))
            with cells.open("a") as file:
                print(line, file=file)
            print(line, flush=True)
    for name in options.only:
        print(json.dumps(summarize(name, seeds, seconds, out)), flush=True)


if __name__ == "__main__":
    main()

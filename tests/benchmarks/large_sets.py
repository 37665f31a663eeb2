"""Memory and time of large sets: a million records in data workers, AP of many boxes, tiles of huge photos.

    python tests/benchmarks/large_sets.py records FOLDER [--images 1000000] [--start fork|spawn] [--batches N]
    python tests/benchmarks/large_sets.py ap [--images 5000] [--classes 80]
    python tests/benchmarks/large_sets.py tiles FOLDER [--side 12000] [--photos 2]

Prints a JSON line. `records` makes FOLDER of hard links to 64 small JPEG files, where it is not there yet, and reads an
epoch by 4 workers; `tiles` a photo of noise. Memory of a worker is its proportional set (PSS) and what is its alone
(USS).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from vfm_runtime.tasks.tiling import Tiling

from vfm.data.detection import dataset
from vfm.data.detection.annotation import Annotation
from vfm.data.detection.dataset import BoxAugment, BoxDataset, collate_boxes
from vfm.data.detection.tiles import cut_record
from vfm.data.records import Record
from vfm.data.sampler import EpochSampler
from vfm.data.workers import prepare_worker
from vfm.metrics.detection import DetectedBoxes, TrueBoxes, compute_coco_metrics
from vfm.preprocess import Preprocess

MEBI = 2**20


def read_memory(process: int | str, names: tuple[str, ...]) -> float:
    """MiB of a process, summed over lines of /proc."""
    file = "status" if names[0].startswith(("Vm", "Rss")) else "smaps_rollup"
    lines = Path(f"/proc/{process}/{file}").read_text(encoding="utf-8").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.split(":")[0] in names) / 1024


def read_cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def make_links(root: Path, images: int) -> None:
    if root.exists():
        return
    sources = root.parent / f"{root.name}_sources"
    sources.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(64):
        pixels = generator.integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(sources / f"{number}.jpg")
    for label in range(100):
        folder = root / f"class_{label:03d}"
        folder.mkdir(parents=True)
        for number in range(images // 100):
            os.link(sources / f"{number % 64}.jpg", folder / f"image_{number:06d}.jpg")


def measure_records(options: argparse.Namespace) -> dict[str, Any]:
    # Not with the other imports: a spawned worker repeats those, and it needs no Lightning.
    from vfm.data import FolderData

    make_links(options.folder, options.images)
    torch.multiprocessing.set_start_method(options.start)
    data = FolderData(options.folder, num_workers=4, batch_size=256, augment="none")
    data.preprocess = Preprocess(size=(32, 32))
    start, work = time.perf_counter(), time.process_time()
    data.setup("fit")
    found, busy = time.perf_counter(), time.process_time()
    loader = data.train_dataloader()
    batches = iter(loader)
    next(batches)
    first, own = time.perf_counter(), time.process_time() - busy
    workers: Any = batches._workers  # type: ignore[attr-defined]
    in_workers = [round(read_cpu_seconds(worker.pid), 1) for worker in workers]
    rows: list[list[list[float]]] = []
    total = min(len(loader), options.batches or len(loader))
    for number, _ in enumerate(itertools.islice(batches, total - 1), start=1):
        if number in (total // 20, total // 2, total - 2):
            private = ("Private_Clean", "Private_Dirty")
            rows.append(
                [[read_memory(w.pid, ("Pss",)), read_memory(w.pid, private)] for w in workers]
            )
    mean = np.mean(rows, axis=1)
    return {
        "images": sum(map(len, data.records.values())),
        "start": options.start,
        "batches": total,
        "load": os.getloadavg()[0],
        "seconds_to_find_images": found - start,
        "cpu_seconds_to_find_images": busy - work,
        "seconds_to_first_batch": first - found,
        "cpu_seconds_to_first_batch": {"main": round(own, 1), "workers": in_workers},
        "pss_of_a_worker_mib": mean[:, 0].round(1).tolist(),
        "uss_of_a_worker_mib": mean[:, 1].round(1).tolist(),
        "main_mib": read_memory("self", ("VmRSS",)),
    }


def measure_ap(options: argparse.Namespace) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    truth, detections = [], []
    for _ in range(options.images):
        start = generator.uniform(0, 900, (20, 2))
        boxes = np.concatenate([start, start + generator.uniform(10, 200, (20, 2))], 1)
        labels = generator.integers(0, options.classes, 20)
        truth.append(TrueBoxes(boxes.astype(np.float32), labels, generator.random(20) < 0.02))
        pick = generator.integers(0, 20, 300)
        corners = (boxes[pick] + generator.normal(0, 8, (300, 4))).astype(np.float32)
        wrong = generator.integers(0, options.classes, 300)
        answers = np.where(generator.random(300) < 0.7, labels[pick], wrong)
        scores = np.sort(generator.random(300).astype(np.float32))[::-1].copy()
        detections.append(DetectedBoxes(corners, answers, scores))
    before, start, busy = read_memory("self", ("VmHWM",)), time.perf_counter(), time.process_time()
    stats, _ = compute_coco_metrics(truth, detections, options.classes)
    return {
        "images": options.images,
        "classes": options.classes,
        "AP": stats["AP"],
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - busy,
        "peak_mib": read_memory("self", ("VmHWM",)) - before,
        "load": os.getloadavg()[0],
    }


def measure_tiles(options: argparse.Namespace) -> dict[str, Any]:
    """Photos of noise in tiles of 640 pixels, an epoch of training by 2 workers; decodings of one process."""
    options.folder.mkdir(parents=True, exist_ok=True)
    generator, side = np.random.default_rng(0), options.side
    records = []
    for number in range(options.photos):
        path = options.folder / f"{side}_{number}.jpg"
        if not path.is_file():
            small = generator.integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
            Image.fromarray(small).resize((side, side)).save(path, quality=80)
        start = generator.uniform(0, side - 60, (2000, 2))
        boxes = np.concatenate([start, start + 40], 1).astype(np.float32)
        whole = Annotation(boxes, np.zeros(2000, bool), (side, side))
        record = Record(str(path), (0,) * 2000, path.name, objects=whole)
        records += cut_record(record, whole, Tiling(640, 0.2))
    images = BoxDataset(records, Preprocess(size=(320, 320)), augment=BoxAugment(mosaic=0.5))
    sampler = EpochSampler(len(images), shuffle=True, photos=images.photos)
    loader = DataLoader(
        *(images, 8),
        sampler=sampler,
        num_workers=2,
        collate_fn=collate_boxes,
        worker_init_fn=prepare_worker,
    )
    begun, peaks = time.perf_counter(), [[0.0, 0.0]]
    batches = iter(loader)
    workers: Any = batches._workers  # type: ignore[attr-defined]
    is_through = threading.Event()

    def watch() -> None:
        while not is_through.wait(0.05):
            with contextlib.suppress(OSError, ValueError):
                private = ("Private_Clean", "Private_Dirty")
                peaks.extend(
                    [[read_memory(w.pid, ("Pss",)), read_memory(w.pid, private)] for w in workers]
                )

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in batches:
        pass
    is_through.set()
    watcher.join()
    seconds, opened = time.perf_counter() - begun, [0]
    plain = dataset.open_image

    def count(*arguments: Any, **more: Any) -> Any:
        opened[0] += 1
        return plain(*arguments, **more)

    dataset.open_image = count
    for key in sampler:
        images[key]
    return {
        "tiles": len(records),
        "seconds": seconds,
        "peak_pss_and_uss_of_a_worker_mib": np.max(peaks, axis=0).round(1).tolist(),
        "photos_decoded": opened[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    records = commands.add_parser("records")
    records.add_argument("folder", type=Path)
    records.add_argument("--images", type=int, default=1_000_000)
    records.add_argument("--start", choices=("fork", "spawn"), default="fork")
    records.add_argument("--batches", type=int, help="of 256 images; by default the whole epoch")
    ap = commands.add_parser("ap")
    ap.add_argument("--images", type=int, default=5000)
    ap.add_argument("--classes", type=int, default=80)
    tiles = commands.add_parser("tiles")
    tiles.add_argument("folder", type=Path)
    tiles.add_argument("--side", type=int, default=12_000)
    tiles.add_argument("--photos", type=int, default=2)
    options = parser.parse_args()
    measure = {"records": measure_records, "ap": measure_ap, "tiles": measure_tiles}[
        options.command
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        print(json.dumps({"name": options.command} | measure(options)))


if __name__ == "__main__":
    main()

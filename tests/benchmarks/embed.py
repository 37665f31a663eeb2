"""Embedding: what `vfm embed` loses against a bare model, and the memory of a store that grows to a million rows.

    python tests/fetch_assets.py
    python tests/benchmarks/embed.py [--quick] [--rows 1000000]

EfficientNet-Lite0 with its ImageNet weights, 224 pixels, batches of 32, one core for both sides. `ours` is images a
second; `theirs`:

- batches: a bare loop of the model over batches that are decoded, resized and normalized;
- files: 1 / (decode + resize + forward), the seconds of an image in each step alone;
- rows: no second side. A stand-in for the model embeds a folder of small files into a store; the cases give the peak
  of memory, with and without the pages of files that are mapped (libraries), `ours` in MiB.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from large_sets import make_links, read_memory
from PIL import Image
from sides import in_turns, report, seconds
from small_baselines import BACKBONE, locate_weights
from small_sets import open_set
from vfm_runtime.media.image import open_image

from vfm.embed.models import open_embedder
from vfm.embed.passes import embed_batches
from vfm.embed.sources import SourceImage, list_source_images
from vfm.embed.store import EmbeddingStore, StoreModel
from vfm.embed.update import update_store
from vfm.tasks.predictor import TorchPredictor

BATCH, WIDTH = 32, 384


def write_photos(folder: Path, count: int) -> list[Path]:
    """JPEG files of 640 x 480 pixels, of pictures that a camera might have taken in the mean: textiles, enlarged."""
    folder.mkdir()
    paths = []
    for number, (source, _) in enumerate(open_set("textile").pool[:count]):
        paths.append(folder / f"{number:04d}.jpg")
        Image.open(source).convert("RGB").resize((640, 480)).save(paths[-1], quality=90)
    return paths


def compare_batches(model: TorchPredictor, paths: list[Path], rounds: int) -> None:
    inputs = [model.prepare(path) for path in paths]
    joined = {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}
    batches = [
        {name: values[start : start + BATCH] for name, values in joined.items()}
        for start in range(0, len(paths), BATCH)
    ]
    backbone, preprocess = model.task.backbone, model.task.preprocess
    (name,) = joined
    pixels = [preprocess.normalize(torch.from_numpy(batch[name])) for batch in batches]

    def run_bare() -> None:
        with torch.inference_mode():
            for images in pixels:
                backbone(images)

    ours, theirs, ratio = in_turns(
        lambda: seconds(lambda: [model.embed_prepared(batch) for batch in batches]),
        lambda: seconds(run_bare),
        rounds,
    )
    count = len(paths)
    report("embed batches", count / ours, count / theirs, "images/s", 1 / ratio)


def compare_files(model: TorchPredictor, folder: Path, paths: list[Path], rounds: int) -> None:
    images = list_source_images(folder)
    decoded = [open_image(path) for path in paths]
    preprocess = model.task.preprocess
    resized = np.stack([preprocess.resize(pixels)[0] for pixels in decoded])
    batches = [torch.from_numpy(resized[i : i + BATCH]) for i in range(0, len(paths), BATCH)]

    def run_forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                model.task.backbone(preprocess.normalize(batch))

    def run_steps() -> float:
        return (
            seconds(lambda: [open_image(path) for path in paths])
            + seconds(lambda: [preprocess.resize(pixels) for pixels in decoded])
            + seconds(run_forward)
        )

    def run_ours() -> float:
        return seconds(lambda: list(embed_batches(model, images, BATCH)))

    ours, theirs, ratio = in_turns(run_ours, run_steps, rounds)
    count = len(paths)
    report("embed files", count / ours, count / theirs, "images/s", 1 / ratio)


class StandIn:
    """A model that takes no time: what is left is vfm's own work and that of the store."""

    embedding = None

    def prepare(self, _: Any) -> dict[str, np.ndarray]:
        return {"pixels": np.zeros((1, 8, 8, 3), np.uint8)}

    def embed_prepared(self, inputs: dict[str, np.ndarray]) -> np.ndarray:
        vectors = np.random.default_rng(0).normal(size=(len(inputs["pixels"]), WIDTH))
        return vectors.astype(np.float32)


def measure_rows(folder: Path, rows: int) -> None:
    make_links(folder / "images", rows)
    peaks, is_running = dict.fromkeys(("VmRSS", "RssAnon"), 0.0), threading.Event()

    def watch() -> None:
        while not is_running.wait(0.5):
            for name, highest in peaks.items():
                peaks[name] = max(highest, read_memory("self", (name,)))

    watcher = threading.Thread(target=watch)
    watcher.start()

    def work() -> None:
        images: list[SourceImage] = list_source_images(folder / "images")
        model = StoreModel(
            fingerprint="benchmark",
            model="benchmark",
            base=None,
            source="pooled",
            normalize=True,
            width=WIDTH,
        )
        store = EmbeddingStore.create(str(folder / "store"), model, images)
        run = partial(embed_batches, StandIn(), batch_size=BATCH)  # type: ignore[arg-type]
        update_store(store, run, images, "benchmark")
        assert store.num_rows == len(images)

    work()
    is_running.set()
    watcher.join()
    used = sum(file.stat().st_size for file in (folder / "store").rglob("*") if file.is_file())
    # Beside the goal of 2 GB.
    for name, text in (("VmRSS", "peak"), ("RssAnon", "peak without pages of mapped files")):
        report(
            f"embed {rows} rows, {text}", peaks[name], 2e9 / 2**20, "MiB", 2e9 / 2**20 / peaks[name]
        )
    report(f"embed {rows} rows, store on disk", used / 2**20, rows * WIDTH * 4 / 2**20, "MiB", 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer images, rounds and rows")
    parser.add_argument("--rows", type=int, help="only a store of so many rows")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.rows is None:
            count, rounds = (64, 1) if options.quick else (192, 5)
            core = sorted(os.sched_getaffinity(0))[-1]
            os.sched_setaffinity(0, {core})
            torch.set_num_threads(1)
            paths = write_photos(folder / "photos", count)
            model, _ = open_embedder(BACKBONE, base=locate_weights(), device="cpu")
            assert isinstance(model, TorchPredictor)
            compare_batches(model, paths, rounds)
            compare_files(model, folder / "photos", paths, rounds)
        if options.rows is not None or options.quick:
            measure_rows(folder, options.rows or 5000)


if __name__ == "__main__":
    main()

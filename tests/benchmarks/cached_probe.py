"""An epoch of a linear probe with stored features against one that runs the frozen backbone.

    python tests/benchmarks/cached_probe.py [--quick]

A ViT-S/16 at 224 pixels on generated image files. `ours` is an epoch with stored features, after the first has computed
them; `theirs` is an epoch without. Training images alone; medians over epochs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
from sides import report
from trainings import quiet, train

from tests.image_folders import write_image_folder
from vfm import ClassificationTask, FolderData


class Epochs(L.Callback):
    """Seconds of each epoch, from its first batch being asked for to its last one being done."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *args: Any) -> None:
        self.starts.append(time.perf_counter())

    def on_train_epoch_end(self, *args: Any) -> None:
        self.seconds.append(time.perf_counter() - self.starts[-1])


def epoch_seconds(images: Path, backbone: str, size: int, cached: bool, epochs: int) -> float:
    task = ClassificationTask(
        backbone, pretrained=False, image_size=size, adapt="linear", cache_features=cached
    )
    data = FolderData(images, augment="none", batch_size=32, val_fraction=0.1, test_fraction=0.1)
    clock = Epochs()
    train(task, data, max_epochs=epochs, callbacks=[clock])
    return statistics.median(clock.seconds[1:] or clock.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny ViT, fewer images")
    quick = parser.parse_args().quick
    quiet()
    backbone, size = ("vit_tiny_patch16_224", 112) if quick else ("vit_small_patch16_224", 224)
    number = 60 if quick else 160
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VFM_CACHE"] = str(Path(folder) / "cache")
        images = write_image_folder(
            Path(folder) / "images", images_per_class=number, size=[(256, 256)]
        )
        ours, theirs, ratios = [], [], []
        for _ in range(1 if quick else 5):
            theirs.append(epoch_seconds(images, backbone, size, False, 1))
            ours.append(epoch_seconds(images, backbone, size, True, 6))
            ratios.append(theirs[-1] / ours[-1])
    report(
        f"epoch of a linear probe with stored features, {backbone}, {size} px, {3 * number} images",
        statistics.median(ours),
        statistics.median(theirs),
        "s",
        statistics.median(ratios),
    )


if __name__ == "__main__":
    main()

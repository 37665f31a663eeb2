"""One core from JPEG files to normalised 224 x 224 tensors: vfm's training loader against torchvision's.

    python tests/benchmarks/loader.py [--quick]

Torchvision: ImageFolder, RandomResizedCrop, RandomHorizontalFlip, ToTensor, Normalize, in a DataLoader without workers.
vfm: FolderData with the same two augmentations and the same normalisation, without workers. A second case adds
ColorJitter on both sides. The photos are those of scikit-image and scikit-learn, resized to 640 x 480 and to 1920 x
1440 and saved as JPEG of quality 90.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from sides import in_turns, report, seconds
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from vfm import FolderData, Preprocess

PREPROCESS = Preprocess(size=(224, 224))
CROP = {"RandomResizedCrop": {"scale": [0.08, 1.0]}}
JITTER = {
    "brightness": [0.8, 1.2],
    "contrast": [0.8, 1.2],
    "saturation": [0.8, 1.2],
    "hue": [-0.02, 0.02],
}


def photos() -> list[Image.Image]:
    from skimage import data
    from sklearn.datasets import load_sample_images

    scenes = [
        data.astronaut(),
        data.chelsea(),
        data.coffee(),
        data.rocket(),
        *load_sample_images().images,
    ]
    return [Image.fromarray(np.asarray(scene)) for scene in scenes]


def write(root: Path, size: tuple[int, int], count: int) -> None:
    scenes = photos()
    for number in range(count):
        folder = root / f"class_{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = scenes[number % len(scenes)].resize(size, Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:03d}.jpg", quality=90)


def our_loader(root: Path, jitter: bool) -> tuple[FolderData, DataLoader]:
    steps = [CROP, {"HorizontalFlip": {"p": 0.5}}] + jitter * [{"ColorJitter": JITTER | {"p": 1.0}}]
    data = FolderData(
        root, val_fraction=0, test_fraction=0, batch_size=16, num_workers=0, augment=steps
    )
    data.preprocess = PREPROCESS
    return data, data.train_dataloader()


def their_loader(root: Path, jitter: bool) -> DataLoader:
    colour = [transforms.ColorJitter(0.2, 0.2, 0.2, 0.02)] if jitter else []
    chain = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            *colour,
            transforms.ToTensor(),
            transforms.Normalize(PREPROCESS.mean, PREPROCESS.std),
        ]
    )
    return DataLoader(datasets.ImageFolder(root, chain), batch_size=16, shuffle=True)


def case(size: tuple[int, int], jitter: bool, count: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, size, count)
        _, ours = our_loader(root, jitter)
        theirs = their_loader(root, jitter)

        def read_ours() -> None:
            for batch in ours:
                assert PREPROCESS.normalize(batch["image"]).shape[1:] == (3, 224, 224)

        def read_theirs() -> None:
            for images, _ in theirs:
                assert images.shape[1:] == (3, 224, 224)

        figures = in_turns(
            lambda: count / seconds(read_ours), lambda: count / seconds(read_theirs), rounds
        )
    name = (
        f"loader, JPEG {size[0]}x{size[1]}, crop and flip{' and colour jitter' if jitter else ''}"
    )
    report(name, figures[0], figures[1], "images/s", figures[2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer files and rounds")
    quick = parser.parse_args().quick
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    count, rounds = (24, 3) if quick else (96, 9)
    for jitter in (False, True):
        for size in ((640, 480), (1920, 1440)):
            case(size, jitter, count, rounds)


if __name__ == "__main__":
    main()

"""Forged faces of people never seen, after training on blends of real faces alone, on the CPU.

    python tests/benchmarks/deepfake_faces.py [--quick] [--out DIR]

Faces are drawn: 64 persons to train on, 32 to choose the checkpoint by and 32 to test on, 4 images a video; training
sees real images and blends that are made of them on the fly, the test has swapped and recoloured faces. A very small
convolutional net, whose last stages keep a grid of 8 x 8 places, learns whole from a random start; or its norm layers
alone, after it was trained to tell apart what was done to a rectangle of a real face of the persons to train on:
lighter, blurred, noisy and so on. That task has no forgeries, no real side and no outlines of faces. With labels that
were dealt out anew, its answers must be those of a coin. Prints JSON lines: the video AUC of the test against 0.9, the
seconds of the training against 180, of one CPU thread, the making of the data included; and how far from 0.5 the AUC is
with other labels, against half of its interval.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray
from sides import report
from trainings import quiet, train

from vfm.data.base import ImageData
from vfm.data.records import Record
from vfm.deepfake.data.base import DeepfakeImages
from vfm.deepfake.data.dataset import collate_deepfakes
from vfm.deepfake.data.synthetic import SyntheticDeepfakes
from vfm.deepfake.loss import DeepfakeLoss
from vfm.deepfake.target import DeepfakeTarget
from vfm.deepfake.task import DeepfakeTask
from vfm.models.adapt import Adapt
from vfm.tasks import BaseTask, ClassificationTask, Optim
from vfm.types import Batch, require_target

BACKBONE, SIDE, PERSONS, FRAMES = "test_efficientnet", 64, 128, 4
# At stride 32 four places would be left of a face: too coarse to show where a border runs.
ARGUMENTS = {"output_stride": 8}
ENOUGH, SECONDS = 0.9, 180.0
EPOCHS = {"full": 80, "ln": 60, "shuffled": 12, "kinds": 12}
PICTURES = 4096
KINDS = ("lighter", "darker", "redder", "bluer", "blurred", "coarse", "sharper", "noisy")


def dealt(samples: Sequence[Any]) -> Batch:
    """A batch whose labels and masks belong to other images of it."""
    batch = collate_deepfakes(samples)
    label, mask = require_target(batch, DeepfakeTarget, dealt)
    order = np.random.default_rng(batch["index"].tolist()).permutation(len(label))
    batch["target"] = DeepfakeTarget(label[order], mask[order])
    return batch


class Shuffled(SyntheticDeepfakes):
    """Labels are right in validation and test alone."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        loader.collate_fn = dealt
        return loader


def changed(pixels: NDArray[np.uint8], kind: str, generator: np.random.Generator) -> Any:
    """A picture with a rectangle of it changed."""
    side = pixels.shape[0]
    size = generator.integers(side // 3, side * 4 // 5, 2)
    top, left = (int(generator.integers(0, side - n + 1)) for n in size)
    part = np.s_[top : top + size[0], left : left + size[1]]
    before = pixels.astype(np.float32)
    if kind in ("lighter", "darker"):
        after = before + generator.uniform(10, 40) * (1 if kind == "lighter" else -1)
    elif kind in ("redder", "bluer"):
        warm = np.array([1, 0, -1]) * (1 if kind == "redder" else -1)
        after = before + generator.uniform(8, 25) * warm
    elif kind == "blurred":
        after = cv2.GaussianBlur(before, (0, 0), generator.uniform(0.7, 1.5))
    elif kind == "coarse":
        small = cv2.resize(before, (side // 2, side // 2), interpolation=cv2.INTER_NEAREST)
        after = cv2.resize(small, (side, side))
    elif kind == "sharper":
        soft = cv2.GaussianBlur(before, (0, 0), 1.0)
        after = before + generator.uniform(0.7, 2) * (before - soft)
    else:
        after = before + generator.normal(0, generator.uniform(4, 12), before.shape)
    before[part] = after[part]
    return before.clip(0, 255).astype(np.uint8)


class Kinds(ImageData):
    """What was done to a rectangle of a real face? Of the persons to train on alone."""

    def __init__(self, faces: DeepfakeImages, pictures: int, **options: Any) -> None:
        super().__init__(**options)
        self.faces = faces
        self.pictures = pictures

    def read(self) -> dict[str, list[Record]]:
        self.faces.setup()
        reals = self.faces.records["train"]
        self.labels = KINDS
        generator = np.random.default_rng(5)
        records = []
        for number in range(self.pictures):
            kind = int(generator.integers(len(KINDS)))
            pixels = changed(reals[number % len(reals)].source, KINDS[kind], generator)  # type: ignore[arg-type]
            records.append(Record(pixels, kind, str(number)))
        return {"train": records}


def faces(kind: type[SyntheticDeepfakes], persons: int) -> SyntheticDeepfakes:
    return kind(
        num_identities=persons,
        num_frames=FRAMES,
        image_size=SIDE,
        mode="sbi",
        benign_share=0.0,
        batch_size=32,
        num_workers=0,
    )


def pretrained(out: Path, persons: int, pictures: int, epochs: int) -> Path:
    """A checkpoint of a task without forgeries."""
    L.seed_everything(1)
    task = ClassificationTask(
        BACKBONE,
        pretrained=False,
        image_size=SIDE,
        fit="squash",
        backbone_args=ARGUMENTS,
        optim=Optim(lr=5e-3),
    )
    seen = faces(SyntheticDeepfakes, persons)
    data = Kinds(seen, pictures, batch_size=32, augment="none", num_workers=0)
    trainer = train(task, data, out, max_epochs=epochs, limit_val_batches=0, accelerator="cpu")
    path = out / "kinds.ckpt"
    trainer.save_checkpoint(path)
    return path


def outcome(
    out: Path,
    data: SyntheticDeepfakes,
    adapt: Adapt,
    weights: Path | None,
    epochs: int,
    checkpoint: str = "best.ckpt",
) -> tuple[dict[str, Any], float]:
    """Results of the test, and seconds of the training with its validations."""
    L.seed_everything(0)
    task = DeepfakeTask(
        BACKBONE,
        pretrained=False,
        weights=weights,
        image_size=SIDE,
        backbone_args=ARGUMENTS,
        adapt=adapt,
        optim=Optim(lr=5e-3 if adapt == "full" else 2e-2, weight_decay=0.0),
        loss=DeepfakeLoss(uniformity=0.0, alignment=0.0, mask=0.5),
    )
    start = time.process_time()
    often = max(1, epochs // 5)
    options: dict[str, Any] = {"max_epochs": epochs, "check_val_every_n_epoch": often}
    trainer = train(task, data, out, accelerator="cpu", **options)
    seconds = time.process_time() - start
    path = out / "checkpoints" / checkpoint
    trainer.test(BaseTask.load(path), datamodule=data, verbose=False)
    results = json.loads((path.parent / "results.json").read_text(encoding="utf-8"))["test"]
    return results, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few persons, few epochs")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    quiet()
    # The seconds are those of one thread, which also makes the blends: other work on the machine does not count.
    torch.set_num_threads(1)
    out = options.out or Path(tempfile.mkdtemp())
    persons = 16 if options.quick else PERSONS
    epochs = {k: max(1, v // 25) if options.quick else v for k, v in EPOCHS.items()}
    pictures = 512 if options.quick else PICTURES
    weights = pretrained(out / "kinds", persons, pictures, epochs["kinds"])
    cases: list[tuple[Adapt, str, Path | None]] = [
        ("full", "all weights from a random start", None),
        ("ln", "norm layers of a net trained to tell edits apart", weights),
    ]
    for adapt, name, start in cases:
        data = faces(SyntheticDeepfakes, persons)
        results, seconds = outcome(out / adapt, data, adapt, start, epochs[adapt])
        auc = results["video_auc"]["value"]
        name = f"forged faces of unseen persons, {name}"
        report(name, auc, ENOUGH, "video AUC", auc / ENOUGH)
        report(f"{name}, training", seconds, SECONDS, "s", SECONDS / seconds)
    data = faces(Shuffled, persons)
    # Not the best by the validation, whose labels are right.
    results, _ = outcome(out / "shuffled", data, "full", None, epochs["shuffled"], "last.ckpt")
    found = results["video_auc"]
    apart, half = abs(found["value"] - 0.5), (found["high"] - found["low"]) / 2
    name = "forged faces, labels dealt out anew: distance of the video AUC from 0.5"
    report(name, apart, half, "AUC, against half of its 95 % interval", half / max(apart, 1e-9))


if __name__ == "__main__":
    main()

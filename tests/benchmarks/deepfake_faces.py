"""Forged faces of people never seen, after training on blends of real faces alone, on the CPU.

    python tests/benchmarks/deepfake_faces.py [--quick] [--out DIR]

Faces are drawn: 48 persons to train on, 24 to choose the checkpoint by and 24 to test on, 4 images a video; training
sees real images and blends that are made of them on the fly, the test has swapped and recoloured faces. A very small
convolutional net learns whole from a random start; or its norm layers alone, after it was trained to tell the persons
of the training apart. With labels that were dealt out anew, its answers must be those of a coin. Prints JSON lines: the
video AUC of the test against 0.9, the seconds of the training against 180; and how far from 0.5 the AUC is with other
labels, against half of its interval.
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
from sides import report
from trainings import quiet, train

from vfm.data.base import ImageData
from vfm.data.dataset import Record
from vfm.data.fakes.base import FakeImages
from vfm.data.fakes.dataset import collate_fakes
from vfm.data.fakes.procedural import SyntheticFakes
from vfm.losses.deepfake import DeepfakeLoss
from vfm.models.adapt import Adapt
from vfm.tasks import BaseTask, ClassificationTask, Optim
from vfm.tasks.deepfake import DeepfakeTask
from vfm.types import Batch

BACKBONE, SIDE, PERSONS, FRAMES = "test_efficientnet", 64, 96, 4
ENOUGH, SECONDS = 0.9, 180.0
EPOCHS = {"full": 50, "ln": 50, "shuffled": 12, "persons": 25}


def dealt(samples: Sequence[Any]) -> Batch:
    """A batch whose labels and masks belong to other images of it."""
    batch = collate_fakes(samples)
    order = np.random.default_rng(batch["index"].tolist()).permutation(len(batch["label"]))
    batch["label"], batch["mask"] = batch["label"][order], batch["mask"][order]
    return batch


class Shuffled(SyntheticFakes):
    """Labels are right in validation and test alone."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        loader.collate_fn = dealt
        return loader


class Persons(ImageData):
    """Who is it? Faces of the persons to train on, as the other trainings see them."""

    def __init__(self, faces: FakeImages, **options: Any) -> None:
        super().__init__(**options)
        self.faces = faces

    def read(self) -> dict[str, list[Record]]:
        self.faces.setup()
        pairs = zip(self.faces.items["train"], self.faces.records["train"], strict=True)
        reals = [(item.identities[0], record) for item, record in pairs]
        self.labels = tuple(sorted({person for person, _ in reals}))
        return {
            "train": [
                Record(record.source, self.labels.index(person), record.name)
                for person, record in reals
            ]
        }


def faces(kind: type[SyntheticFakes], persons: int) -> SyntheticFakes:
    return kind(
        num_identities=persons,
        num_frames=FRAMES,
        image_size=SIDE,
        mode="sbi",
        benign_share=0.0,
        batch_size=32,
        num_workers=1,
    )


def pretrained(out: Path, persons: int, epochs: int) -> Path:
    """A checkpoint of a task that has nothing to do with forgeries."""
    L.seed_everything(1)
    task = ClassificationTask(
        BACKBONE, pretrained=False, image_size=SIDE, fit="squash", optim=Optim(lr=3e-3)
    )
    data = Persons(faces(SyntheticFakes, persons), batch_size=32, augment="light", num_workers=1)
    trainer = train(task, data, out, max_epochs=epochs, limit_val_batches=0, accelerator="cpu")
    path = out / "persons.ckpt"
    trainer.save_checkpoint(path)
    return path


def tested(
    out: Path, data: SyntheticFakes, adapt: Adapt, weights: Path | None, epochs: int
) -> tuple[dict[str, Any], float]:
    """Results of the test, and seconds of the training with its validations."""
    L.seed_everything(0)
    task = DeepfakeTask(
        BACKBONE,
        pretrained=False,
        weights=weights,
        image_size=SIDE,
        adapt=adapt,
        optim=Optim(lr=3e-3 if adapt == "full" else 1e-2, weight_decay=0.0),
        loss=DeepfakeLoss(uniformity=0.0, alignment=0.0),
    )
    start = time.perf_counter()
    often = max(1, epochs // 5)
    options: dict[str, Any] = {"max_epochs": epochs, "check_val_every_n_epoch": often}
    trainer = train(task, data, out, accelerator="cpu", **options)
    seconds = time.perf_counter() - start
    best = Path(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    trainer.test(BaseTask.load(best), datamodule=data, verbose=False)
    results = json.loads((best.parent / "results.json").read_text(encoding="utf-8"))["test"]
    return results, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few persons, few epochs")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    quiet()
    # The net is so small that a second thread helps less than a second process that makes the blends.
    torch.set_num_threads(1)
    out = options.out or Path(tempfile.mkdtemp())
    persons = 16 if options.quick else PERSONS
    epochs = {k: max(1, v // 25) if options.quick else v for k, v in EPOCHS.items()}
    weights = pretrained(out / "persons", persons, epochs["persons"])
    cases: list[tuple[Adapt, str, Path | None]] = [
        ("full", "all weights from a random start", None),
        ("ln", "norm layers of a net trained to tell persons apart", weights),
    ]
    for adapt, name, start in cases:
        data = faces(SyntheticFakes, persons)
        results, seconds = tested(out / adapt, data, adapt, start, epochs[adapt])
        auc = results["video_auc"]["value"]
        name = f"forged faces of unseen persons, {name}"
        report(name, auc, ENOUGH, "video AUC", auc / ENOUGH)
        report(f"{name}, training", seconds, SECONDS, "s", SECONDS / seconds)
    data = faces(Shuffled, persons)
    results, _ = tested(out / "shuffled", data, "full", None, epochs["shuffled"])
    found = results["video_auc"]
    apart, half = abs(found["value"] - 0.5), (found["high"] - found["low"]) / 2
    name = "forged faces, labels dealt out anew: distance of the video AUC from 0.5"
    report(name, apart, half, "AUC, against half of its 95 % interval", half / max(apart, 1e-9))


if __name__ == "__main__":
    main()

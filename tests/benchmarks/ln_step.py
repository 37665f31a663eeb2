"""Training steps of a DeepfakeTask whose norm layers alone learn, against those of full fine-tuning.

    python tests/benchmarks/ln_step.py [--quick]

Both sides are the same task on the same batch of pairs with masks, from memory; figures are images/s over the steps
after the first few. A ratio of 1.18 is 0.85 times the time of a full step.
"""

from __future__ import annotations

import argparse
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from sides import in_turns, report
from torch.utils.data import DataLoader
from trainings import WARM, Clock, quiet, train
from vfm_runtime.deepfake.faces.crop import CropSpec

from vfm.deepfake.data.base import DeepfakeImages
from vfm.deepfake.target import DeepfakeTarget
from vfm.deepfake.task import DeepfakeTask
from vfm.models.adapt import Adapt
from vfm.types import Batch


class Case(NamedTuple):
    size: int
    batch: int
    precision: str
    steps: int


CPU = [Case(224, 8, "32-true", 6), Case(224, 32, "32-true", 3), Case(224, 8, "bf16-mixed", 6)]
GPU = [Case(224, 128, "bf16-mixed", 40), Case(224, 32, "bf16-mixed", 60)]


class OneBatchOfPairs(DeepfakeImages):
    """The same noise again and again: reals, each followed by its fake with a mask."""

    def __init__(self, case: Case) -> None:
        LightningDataModule.__init__(self)
        self.__dict__["_init_args"] = {}
        self.labels = ("real", "fake")
        self.batch_size, self.seed, self.augment, self.stored = case.batch, 0, "none", {}
        self.multilabel, self.records = False, {"train": []}
        self._crop = CropSpec(source="cropped", size=case.size)
        label = torch.arange(case.batch) % 2
        mask = torch.rand(case.batch, case.size, case.size) * label[:, None, None]
        pixels = torch.randint(0, 256, (case.batch, case.size, case.size, 3), dtype=torch.uint8)
        self.batch = Batch(
            image=pixels,
            target=DeepfakeTarget(label, mask),
            index=torch.arange(case.batch),
            name=[""] * case.batch,
            skipped=[],
        )
        self.steps = WARM + case.steps

    def find(self) -> Any:
        return {}, {}, {}

    def read_crop(self) -> CropSpec:
        return self.crop

    def setup(self, stage: str | None = None) -> None:
        pass

    def keep_split(self, folder: object) -> dict[str, object]:  # type: ignore[override]
        return {}

    def fingerprint(self) -> str:
        return ""

    def describe(self) -> dict[str, object]:
        return {}

    def train_dataloader(self) -> Any:
        return DataLoader([self.batch] * self.steps, batch_size=None)  # type: ignore[arg-type]


def rate(adapt: Adapt, case: Case, data: OneBatchOfPairs) -> float:
    task = DeepfakeTask(
        "vit_small_patch16_224", pretrained=False, image_size=case.size, adapt=adapt
    )
    clock = Clock()
    train(task, data, precision=case.precision, callbacks=[clock])  # type: ignore[arg-type]
    return clock.rate(case.batch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first case, few rounds")
    quick = parser.parse_args().quick
    quiet()
    cases = GPU if torch.cuda.is_available() else CPU
    for case in cases[: 1 if quick else None]:
        data = OneBatchOfPairs(case)
        first, second, quotient = in_turns(
            lambda case=case, data=data: rate("ln", case, data),
            lambda case=case, data=data: rate("full", case, data),
            2 if quick else 5,
        )
        name = f"ln step, ViT-S/16, {case.size} px, batch {case.batch}, {case.precision}"
        report(f"{name}, against a full step", first, second, "images/s", quotient)


if __name__ == "__main__":
    main()

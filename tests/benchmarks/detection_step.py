"""Training steps of a DetectionTask against torchvision's Faster R-CNN with a feature pyramid, on the same backbone.

    python tests/benchmarks/detection_step.py [--quick]

Both train from the same uint8 pixels in memory, with AdamW and clipped gradients; figures are images/s after some warm
steps. Then a DenseHead with the backbone's first stages frozen, as detection/small_data.yaml has it, against one whose
backbone learns as a whole.
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import torch
from faster_rcnn import faster_rcnn, targets
from lightning.pytorch import LightningDataModule
from sides import in_turns, report
from torch import nn
from torch.utils.data import DataLoader
from trainings import WARM, Clock, quiet, synchronise, train

from vfm import DenseHead, DetectionTask, Optim
from vfm.data.detection.base import BoxData
from vfm.data.detection.dataset import BoxAugment
from vfm.data.detection.synthetic import draw_scene
from vfm.models.backbone import Backbone
from vfm.types import Batch, Objects

CLASSES, MOST = 10, 6


class Case(NamedTuple):
    backbone: str
    size: int
    batch: int
    steps: int


CPU = [Case("tf_efficientnet_lite0", 256, 8, 6)]
GPU = [Case("resnet50", 640, 16, 30)]


class OneBatchOfBoxes(BoxData):
    """The same scenes again and again, from memory."""

    def __init__(self, case: Case) -> None:
        LightningDataModule.__init__(self)
        self.__dict__["_init_args"] = {}
        drawn = [draw_scene(case.size, CLASSES, MOST, (0, k)) for k in range(case.batch)]
        self.images = [pixels for pixels, _, _ in drawn]
        self.corners = [torch.from_numpy(annotation.corners) for _, _, annotation in drawn]
        self.classes = [torch.tensor(labels, dtype=torch.int64) for _, labels, _ in drawn]
        self.labels = tuple(map(str, range(CLASSES)))
        self.batch_size, self.seed, self.augment, self.stored = case.batch, 0, "none", {}
        self.multilabel, self.records, self._cut_by = False, {"train": []}, {}
        self.box_augment = BoxAugment()
        self.steps, self.size = WARM + case.steps, case.size

    def read(self) -> dict[str, list[object]]:  # type: ignore[override]
        return {}

    def setup(self, stage: str | None = None) -> None:
        pass

    def keep_split(self, folder: object) -> dict[str, object]:  # type: ignore[override]
        return {}

    def fingerprint(self) -> str:
        return ""

    def describe(self) -> dict[str, object]:
        return {}

    @property
    def batch(self) -> Batch:
        corners = torch.cat(self.corners) / self.size
        shares = torch.cat(
            [(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], 1
        )
        labels = torch.cat(self.classes)
        counts = torch.tensor([len(k) for k in self.classes])
        images = torch.stack([torch.from_numpy(pixels) for pixels in self.images])
        return Batch(
            image=images,
            target=Objects(shares, labels, counts),
            index=torch.arange(len(images)),
            name=[""] * len(images),
            skipped=[],
        )

    def train_dataloader(self) -> DataLoader[Batch]:  # type: ignore[override]
        batch = self.batch
        return DataLoader([batch] * self.steps, batch_size=None)  # type: ignore[arg-type]


def ours(case: Case, data: OneBatchOfBoxes, **options: Any) -> float:
    task = DetectionTask(
        case.backbone,
        **options,
        pretrained=False,
        image_size=case.size,
        channels_last=True,
        optim=Optim(lr=1e-4),
    )
    clock = Clock()
    train(task, data, callbacks=[clock])
    return clock.rate(case.batch)


def theirs(case: Case, data: OneBatchOfBoxes) -> float:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = faster_rcnn(case.backbone, CLASSES, case.size).to(device).train()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-4)
    start = 0.0
    for step in range(WARM + case.steps):
        if step == WARM:
            synchronise()
            start = time.perf_counter()
        pixels = data.batch["image"].to(device)
        images = list(pixels.permute(0, 3, 1, 2).float().div(255))
        wanted = targets([c.to(device) for c in data.corners], [k.to(device) for k in data.classes])
        loss = torch.stack(list(model(images, wanted).values())).sum()
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        synchronise()
    return case.batch * case.steps / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small case, few rounds")
    quick = parser.parse_args().quick
    quiet()
    cases = GPU if torch.cuda.is_available() else CPU
    if quick:
        cases = [Case("tf_efficientnet_lite0", 128, 4, 4)]
    for case in cases:
        data = OneBatchOfBoxes(case)
        first, second, quotient = in_turns(
            lambda case=case, data=data: ours(case, data),
            lambda case=case, data=data: theirs(case, data),
            2 if quick else 5,
        )
        name = f"detection step, nano on {case.backbone}, {case.size} px, batch {case.batch}"
        report(f"{name}, against Faster R-CNN with FPN", first, second, "images/s", quotient)
        stages = Backbone(case.backbone, pretrained=False).count_fine_stages()
        first, second, quotient = in_turns(
            lambda case=case, data=data, stages=stages: ours(
                case, data, head=DenseHead(), freeze_at=stages
            ),
            lambda case=case, data=data: ours(case, data, head=DenseHead()),
            2 if quick else 5,
        )
        name = name.replace("nano", "DenseHead") + f", the first {stages} stages frozen"
        report(f"{name}, against none", first, second, "images/s", quotient)


if __name__ == "__main__":
    main()

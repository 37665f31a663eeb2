"""The two tasks of `runtime.py` on the side of training: data, target, head, loss, task, validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vfm_runtime.tasks.confidence import ConfidenceRules

import tests.toys.runtime  # noqa: F401  # registers the side of production
from vfm.data import ImageData
from vfm.data.dataset import collate
from vfm.data.records import Record
from vfm.losses import Loss
from vfm.models.heads import Head
from vfm.tasks import BaseTask
from vfm.tasks.calibration import Calibration
from vfm.tasks.options import TaskOptions
from vfm.tasks.results import save_results
from vfm.tasks.validation import Validation
from vfm.types import require_target


class Values(NamedTuple):
    """What each image is to teach: numbers [N, C], or a class for every pixel [N, H, W]."""

    value: Tensor

    @property
    def loss_divisor(self):
        return len(self.value)

    def select(self, position):
        return self._replace(value=self.value[position : position + 1])


def draw(seed: int) -> np.ndarray:
    """A picture with a bright square on a dark ground."""
    random = np.random.default_rng(seed)
    image = random.integers(0, 90, (48, 64, 3), np.uint8)
    top, left = random.integers(0, (24, 36))
    image[top : top + 20, left : left + 24] = random.integers(170, 255, 3)
    return image


class ToyData(ImageData):
    """Pictures whose own pixels say what is true of them."""

    def __init__(self, number: int = 96, batch_size: int = 16, num_workers: int = 0, seed: int = 0):
        super().__init__(batch_size=batch_size, num_workers=num_workers, augment="none", seed=seed)
        self.number = number

    def read(self):
        self.labels = self.names
        third = self.number // 3
        records = [Record(draw(i), -1, f"{i}.png") for i in range(self.number + third)]
        return {
            "train": records[third : self.number],
            "val": records[:third],
            "test": records[self.number :],
        }

    def collate(self, samples):  # type: ignore[override]
        batch = collate(samples)
        return {**batch, "target": Values(self.truth(batch["image"].float() / 255))}


class ToyTask(BaseTask):
    """What both have in common: the loss of a split is its only metric."""

    def __init__(self, backbone: str, **options: Unpack[TaskOptions]):
        super().__init__(backbone, self.head_class(), image_size=32, fit="squash", **options)
        self.criterion = self.loss_class()

    def evaluate(self, batch):
        return {"loss": self.criterion.per_image(self.compute_raw(batch), batch)}

    def compute_metrics(self, split, predictions):
        return {"loss": float(predictions.stack("loss").mean())}

    def write_results(self, folder: Path, split, predictions, more: dict[str, Any]):
        save_results(folder, split, self.compute_metrics(split, predictions) | more)

    def open_validation(self, images):
        return ToyValidation(self.labels, images)


class ToyValidation(Validation):
    """1 less the mean absolute error."""

    metric = "nearness"

    @property
    def truth(self):
        pixels = torch.from_numpy(self.images.inputs["pixels"]).float() / 255
        return self.images.source.data.truth(pixels).numpy()

    def fit_confidence(self, outputs, *, min_precision=None):
        return Calibration(ConfidenceRules(), self.num_images, None, None)

    def measure(self, outputs):
        (values,) = outputs.values()
        answers = values if values.ndim == 2 else values.argmax(-1)
        return float(1 - np.abs(answers - self.truth).mean())


# ---------------------------------------------------------------- numbers for an image


class NumbersData(ToyData):
    names = ("red", "green")

    def truth(self, pixels):
        return pixels.mean((1, 2))[:, :2]


class NumbersHead(Head):
    uses = ("pooled",)

    def build(self, info, num_labels):
        self.linear = nn.Linear(info.width, num_labels)

    def forward(self, features):
        return {"values": self.linear(features.pooled)}

    def decode(self, raw, geometry=None):
        return {"values": raw["values"].float()}


class SquaredError(Loss):
    def forward(self, raw, batch):
        target = require_target(batch, Values, self)
        return {"squared": F.mse_loss(raw["values"], target.value, reduction="sum")}


class NumbersTask(ToyTask):
    kind, head_class, loss_class = "numbers", NumbersHead, SquaredError


# ---------------------------------------------------------------- a label for every pixel


class MaskData(ToyData):
    names = ("ground", "square")

    def truth(self, pixels):
        return (pixels.mean(-1) > 0.5).long()


class MaskHead(Head):
    uses = ("maps",)

    def build(self, info, num_labels):
        self.layer = nn.Conv2d(info.map_widths[0], num_labels, 1)
        self.stride = info.map_strides[0]

    def forward(self, features):
        return {"logits": self.layer(features.maps[0])}

    def decode(self, raw, geometry=None):
        grown = F.interpolate(raw["logits"].float(), scale_factor=self.stride, mode="bilinear")
        return {"scores_map": grown.permute(0, 2, 3, 1).softmax(-1)}


class PixelEntropy(Loss):
    def forward(self, raw, batch):
        target = require_target(batch, Values, self).value
        logits = F.interpolate(raw["logits"], target.shape[1:], mode="bilinear")
        return {"pixels": F.cross_entropy(logits, target, reduction="none").mean((1, 2)).sum()}


class MaskTask(ToyTask):
    kind, head_class, loss_class = "mask", MaskHead, PixelEntropy

"""Two tasks that the packages do not know, on the side of production: numbers for an image, a label for every pixel."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image
from vfm_runtime import open_image, register_task
from vfm_runtime.tasks.base import (
    Agreement,
    Opened,
    Prediction,
    PredictionView,
    TaskType,
    find_largest_difference,
)

COLORS = np.array([(0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255)], np.uint8)


@dataclass(frozen=True, eq=False)
class Numbers(Prediction):
    """A number by name."""

    task: ClassVar[str] = "numbers"
    values: dict[str, float]

    def to_dict(self, view=PredictionView()):
        return {"task": self.task, "values": self.values}

    def headline(self, view=PredictionView()):
        return ", ".join(f"{name} {value:.3f}" for name, value in self.values.items())

    def draw(self, source, view=PredictionView()):
        image = open_image(source).copy()
        image[: len(image) // 10] = round(255 * min(max(max(self.values.values()), 0), 1))
        return image

    def compare(self, other, *, approximate=False):
        pairs = zip(self.values.values(), other.values.values(), strict=True)
        difference = find_largest_difference(*(abs(a - b) for a, b in pairs))
        return Agreement(difference, False, self.headline(), other.headline())

    def to_golden(self):
        return {"values": list(self.values.values())}


@register_task
class NumbersType(TaskType):
    name, summary, package = "numbers", "gives numbers", "toy-tasks"
    outputs: ClassVar = {"values": "float"}
    draws = True

    def predictions(self, outputs):
        rows = outputs["values"].tolist()
        return [Numbers(dict(zip(self.labels, row, strict=True))) for row in rows]

    def drift_values(self, outputs):
        return {name: outputs["values"][:, k] for k, name in enumerate(self.labels)}


@dataclass(frozen=True, eq=False)
class Mask(Prediction):
    """A label for every pixel of the original image: `classes`, int64 [H, W]."""

    task: ClassVar[str] = "mask"
    classes: np.ndarray
    labels: tuple[str, ...]

    def to_dict(self, view=PredictionView()):
        counts = np.bincount(self.classes.ravel(), minlength=len(self.labels)) / self.classes.size
        fractions = dict(zip(self.labels, counts.tolist(), strict=True))
        return {"task": self.task, "size": list(self.classes.shape), "fractions": fractions}

    def headline(self, view=PredictionView()):
        fractions = self.to_dict()["fractions"]
        return ", ".join(f"{name} {100 * share:.0f} %" for name, share in fractions.items())

    def draw(self, source, view=PredictionView()):
        return (open_image(source) // 2 + COLORS[self.classes % len(COLORS)] // 2).astype(np.uint8)

    def compare(self, other, *, approximate=False):
        different = float((self.classes != other.classes).mean())
        changed = different > (0.05 if approximate else 0.002)
        return Agreement(0.0, changed, self.headline(), other.headline())

    def to_golden(self):
        return {"classes": self.classes.tolist()}


@register_task
class MaskType(TaskType):
    name, summary, package = "mask", "labels every pixel", "toy-tasks"
    outputs: ClassVar = {"scores_map": "float"}
    draws = True

    def open(self, source, **options):
        super().open(source, **options)
        image = open_image(source)
        return Opened([image], image.shape[:2])

    def predict(self, opened, outputs):
        height, width = opened.context
        classes = outputs["scores_map"][0].argmax(-1).astype(np.uint8)
        pasted = Image.fromarray(classes).resize((width, height), Image.Resampling.NEAREST)
        return Mask(np.asarray(pasted).astype(np.int64), self.labels)

    def predictions(self, outputs):
        return [Mask(row.argmax(-1), self.labels) for row in outputs["scores_map"]]

    def read_golden(self, row):
        return Mask(np.array(row["classes"]), self.labels)

    def drift_values(self, outputs):
        return {"foreground": (outputs["scores_map"].argmax(-1) > 0).mean((1, 2))}

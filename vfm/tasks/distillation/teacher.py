"""Teacher of a distillation: a backbone of timm, a checkpoint, or an ONNX bundle; what it gives, and its licences."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import vfm_runtime
from torch import Tensor
from torch.nn import functional as F
from vfm_runtime.bundle.manifest import hash_file
from vfm_runtime.errors import OptionError

from vfm.models.backbone import ImageSize, is_backbone_name
from vfm.models.weights import list_teachers
from vfm.tasks.base import BaseTask
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.embedding import EmbeddingTask
from vfm.training.fingerprint import compute_fingerprint

_BOM_FILE = "bom.cdx.json"
_LEAST_SCORE = 1e-7
"""Scores of a bundle are logits up to a constant as logarithms; below this they are noise of 32 bits."""


class Teacher(ABC):
    """A trained model that a student learns from; it never learns itself, and is in no checkpoint.

    Attributes:
        name: What it was opened by.
        checksum: What changes with its weights and its preprocessing.
        size: Height and width of the images that it is given, in pixels.
        shapes: Shape of an image's row of each output that it gives: embedding, tokens, logits.
        licenses: Licence of each part that it was made of; None where none is stated.
    """

    def __init__(
        self, name: str, checksum: str, size: tuple[int, int], licenses: Mapping[str, str | None]
    ) -> None:
        self.name = name
        self.checksum = checksum
        self.size = size
        self.licenses = dict(licenses)
        self.shapes: dict[str, tuple[int, ...]] = {}

    def __deepcopy__(self, memo: Any) -> Self:
        """Return itself: an average of the student's weights has the same teacher."""
        return self

    @abstractmethod
    def compute(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return its outputs for images of its size, uint8 [N, h, w, 3]: float32 on the device of the images."""

    def measure_shapes(self) -> None:
        """Set `shapes`, by its outputs for an empty image."""
        outputs = self.compute(torch.zeros((1, *self.size, 3), dtype=torch.uint8))
        self.shapes = {name: tuple(values.shape[1:]) for name, values in outputs.items()}

    @torch.no_grad()
    def answer(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return its outputs, by the names in `shapes`, for images of any size, which it is given in its own.

        Args:
            pixels: Images, uint8 [N, h, w, 3].
        """
        if tuple(pixels.shape[1:3]) != self.size:
            maps = pixels.movedim(-1, 1).float()
            maps = F.interpolate(maps, size=self.size, mode="bicubic", antialias=True)
            pixels = maps.round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
        return self.compute(pixels)

    def require(self, names: Collection[str], loss: str) -> None:
        """Refuse a loss that compares outputs which the teacher does not give.

        Raises:
            OptionError: It lacks some.
        """
        missing = [name for name in names if name not in self.shapes]
        if missing:
            raise OptionError(
                f"{loss} compares {' and '.join(missing)}, and the teacher {self.name} gives {', '.join(self.shapes)}. "
                "FeatureDistillation and RelationDistillation need embedding, LogitDistillation needs logits, a weight "
                "of tokens a teacher that is no bundle: change --model.loss or --model.teacher."
            )


class TorchTeacher(Teacher):
    """A backbone, or the task of a checkpoint."""

    def __init__(self, name: str, task: BaseTask, licenses: Mapping[str, str | None]) -> None:
        """Take the task, whose labels are known."""
        checksum = compute_fingerprint(task.backbone, task.preprocess)
        super().__init__(name, checksum, task.preprocess.size, licenses)
        self.task = task.eval().requires_grad_(False)
        self.gives_logits = task.head.gives_logits
        uses = ("pooled", "tokens") if task.backbone.pools else ("tokens",)
        task.backbone.select_outputs(tuple(dict.fromkeys((*uses, *task.head.uses))))
        self.measure_shapes()

    def compute(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return `embedding`, [N, E], `tokens`, [N, T, E'], and of a classifier `logits`, [N, C]."""
        if self.task.device != pixels.device:
            self.task.to(pixels.device)
        with torch.no_grad():
            features = self.task.backbone(self.task.preprocess.normalize(pixels))
            pooled = features.pooled if self.task.backbone.pools else features.tokens.mean(1)
            outputs = {"embedding": pooled, "tokens": features.tokens}
            if self.gives_logits:
                outputs["logits"] = self.task.head(features)["logits"]
        return {name: values.float() for name, values in outputs.items()}


class BundleTeacher(Teacher):
    """An ONNX bundle, which runs without torch."""

    def __init__(self, path: Path) -> None:
        """Load the bundle in 32 bits.

        Raises:
            OptionError: It gives neither embeddings nor scores of one label an image.
        """
        self.model = vfm_runtime.load(path, precision="fp32")
        contract = self.model.contract
        super().__init__(
            str(path), hash_file(path / "vfm.json"), contract.size, read_bundle_licenses(path)
        )
        self._output = contract.embedding.output if contract.embedding is not None else None
        self._gives_scores = "scores" in contract.type.outputs and not self.model.multilabel
        if self._output is None and not self._gives_scores:
            raise OptionError(
                f"{path} gives neither embeddings nor scores of one label an image. Export it again with --embedding "
                "pooled, or take another teacher."
            )
        self.measure_shapes()

    def compute(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return `embedding`, [N, E], and `logits`, [N, C], as far as the bundle gives them."""
        arrays = self.model.compute_outputs({"pixels": np.ascontiguousarray(pixels.cpu().numpy())})
        outputs = {}
        if self._output is not None:
            outputs["embedding"] = torch.from_numpy(arrays[self._output])
        if self._gives_scores:
            outputs["logits"] = torch.from_numpy(arrays["scores"]).clamp(min=_LEAST_SCORE).log()
        return {name: values.float().to(pixels.device) for name, values in outputs.items()}


def open_teacher(
    name: str, *, weights: Path | None = None, image_size: ImageSize | None = None
) -> Teacher:
    """Open a teacher.

    Args:
        name: Folder of a bundle, file of a checkpoint, or name of a backbone in timm.
        weights: File of weights for a name of timm, in place of timm's own.
        image_size: Size of its images where it is a name of timm; its own by default.

    Raises:
        OptionError: It gives nothing to learn from, or options do not go with it.
        CheckpointError: There is no such file, or it is none of vfm.
    """
    path = Path(name)
    if not is_backbone_name(name) and (weights is not None or image_size is not None):
        raise OptionError(
            f"teacher_weights and teacher_size are for backbones of timm by name, and the teacher is {name}, which has "
            "weights and a size of its own. Leave them out."
        )
    if path.is_dir():
        return BundleTeacher(path)
    if not is_backbone_name(name):
        opened = Checkpoint.open(path)
        licenses = list_teachers(opened.entry)
        if opened.entry.get("weights") is not None:
            licenses = {f"weights of {path.name}": opened.task.license, **licenses}
        return TorchTeacher(name, opened.task, licenses)
    task = EmbeddingTask(
        name, pretrained=weights is None, weights=weights, image_size=image_size, fit=None
    )
    report = task.backbone.report
    assert report is not None  # a teacher has weights
    return TorchTeacher(name, task, {name: task.license, **report.licenses})


def read_bundle_licenses(folder: Path) -> dict[str, str | None]:
    """Return the licence of each model that a bundle's bill of materials lists; nothing where it began at random."""
    file = folder / _BOM_FILE
    if not file.is_file():
        contract = json.loads((folder / "vfm.json").read_text(encoding="utf-8"))
        return {f"bundle {folder.name}": contract.get("license")}
    licenses: dict[str, str | None] = {}
    for part in json.loads(file.read_text(encoding="utf-8"))["components"]:
        if part["type"] == "machine-learning-model":
            stated = [one["license"] for one in part.get("licenses", [])]
            first = stated[0] if stated else {}
            licenses[part["name"]] = first.get("id") or first.get("name")
    return licenses

"""Checkpoints: a backbone and a head that rebuild themselves from one, and refuse one that does not fit."""

from __future__ import annotations

from abc import ABC
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from vfm.models import licenses
from vfm.models.backbone import Backbone
from vfm.models.heads import Head
from vfm.preprocess import Preprocess
from vfm.renames import update_class_paths
from vfm.spec import Component
from vfm.training.checkpoint_file import FORMAT, KEY, CheckpointError, versions
from vfm.training.loading import load_model
from vfm.types import Batch, Features, Raw

_OTHER_DATA = (
    "The images, labels or splits are not those that the checkpoint was trained on: training goes on with the new "
    "ones, and its figures are not comparable with the earlier ones."
)
"""Said when a training goes on with other data."""


class CheckpointedModel(Component, L.LightningModule, ABC):
    """A backbone and a head that a checkpoint rebuilds.

    Attributes:
        backbone: Gives features.
        head: Gives answers; its layers are made when the labels are known.
        preprocess: What images go through before the backbone.
        recipe: The resolved recipe of the command line, carried by the checkpoint; None from Python.
        source: The file that the model was loaded from; None for a new one.
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.preprocess = backbone.preprocess
        self.recipe: dict[str, Any] | None = None
        self.source: Path | None = None
        self._data: dict[str, Any] | None = None
        report = backbone.report
        self._weights_report = report.to_dict() if report else None
        self._license = backbone.license
        if report is not None:
            rank_zero_info(f"Weights {report}")
            # A file that states none is the user's own affair; what timm fetches is not.
            stated = self._license is not None or report.fetched
            if stated and (notice := licenses.notice(backbone.name, self._license)):
                rank_zero_warn(notice)

    @classmethod
    def load(
        cls, path: str | Path, *, base: str | Path | None = None, trust: Collection[str] = ()
    ) -> Self:
        """Rebuild a model from nothing but its checkpoint, or from an adapter and the weights that it was learned on.

        Args:
            path: A checkpoint, made by the command line or by Python; or an `adapter.safetensors`.
            base: For an adapter, the file of the backbone's weights, where it is no longer at its old place.
            trust: Packages besides vfm whose code the checkpoint may name, such as that of your own head.

        Raises:
            CheckpointError: The file cannot be read.
            SpecError: It names code that is not trusted or not found.
        """
        model: Self = load_model(path, cls, base=base, trust=trust)
        return model

    @property
    def license(self) -> str | None:
        """Licence of the pretrained weights that training started from, as timm states it."""
        return self._license

    def forward(self, pixels: Tensor) -> Raw:
        """Raw outputs of the head.

        Args:
            pixels: uint8 [N, H, W, 3], at the model's size.
        """
        raw: Raw = self.head(self.backbone(self.preprocess.normalise(pixels)))
        return raw

    def answer(self, pixels: Tensor, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Decoded answers, such as `scores` [N, C]; what the exported model computes.

        Args:
            pixels: uint8 [N, H, W, 3], at the model's size.
            geometry: float [N, 6], for heads whose answers are places in the original image.
        """
        raw = self(pixels)
        return (
            self.head.decode(raw, geometry) if self.head.needs_geometry else self.head.decode(raw)
        )

    def raw(self, batch: Batch) -> Raw:
        """Raw outputs of the head for a batch, whose features may be there already."""
        if stored := batch.get("features"):
            found: Raw = self.head(Features.partial(stored))
        else:
            found = self(batch["image"])
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that is needed to rebuild the task, and where it comes from."""
        checkpoint[KEY] = {
            "format": FORMAT,
            "model": self.spec,
            "head": self.head.spec,
            "labels": list(self.head.labels),
            "preprocess": self.preprocess.to_dict(),
            "recipe": self.recipe,
            "versions": versions(),
            "seed": torch.initial_seed(),
            "data": self._data,
            "weights": self._weights_report,
            "license": self._license,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the head for the checkpoint's labels, and check that it fits this task."""
        if KEY not in checkpoint:
            raise CheckpointError(
                f"The checkpoint has no entry '{KEY}': it was not written by vfm."
            )
        entry = update_class_paths(checkpoint[KEY])
        backbone, head = entry["model"]["init_args"]["backbone"], entry["head"]
        require_same("backbone", backbone, self.backbone.name, remedy=backbone)
        require_same("head", head, self.head.spec, remedy=head["class_path"])
        if not self.head.labels:
            self.head.prepare(self.backbone.info, entry["labels"])
        require_same_labels(tuple(entry["labels"]), self.head.labels, "the checkpoint")
        self.preprocess = Preprocess.from_dict(entry["preprocess"])
        self._license, self._weights_report = entry["license"], entry["weights"]
        if self._data is None:
            self._data = entry["data"]
        elif entry["data"] and self._data["fingerprint"] != entry["data"]["fingerprint"]:
            rank_zero_warn(_OTHER_DATA)


def require_same(name: str, stored: Any, own: Any, *, remedy: str) -> None:
    """Refuse a checkpoint of another model.

    Raises:
        CheckpointError: What is stored is not the task's own.
    """
    if stored != own:
        raise CheckpointError(
            f"The checkpoint's {name} is {stored!r}, this task's is {own!r}. "
            f"Give --model.{name} {remedy} with its arguments, or another checkpoint."
        )


def require_same_labels(found: tuple[str, ...], own: tuple[str, ...], where: str) -> None:
    """Refuse data or a checkpoint with other labels than the model's.

    Raises:
        CheckpointError: They differ.
    """
    if found == own:
        return
    more, fewer = sorted(set(found) - set(own)), sorted(set(own) - set(found))
    raise CheckpointError(
        f"The labels of {where} are not those of the model: {len(found)} against {len(own)}; "
        f"only there: {more[:5]}, only in the model: {fewer[:5]}. "
        "Resume with the data it was trained on; to learn other labels, start a new task from these weights "
        "(--model.weights)."
    )

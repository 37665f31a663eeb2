"""Checkpoints: files read without running their code, and models that rebuild themselves from one, or refuse it."""

from __future__ import annotations

import inspect
import json
import platform
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from vfm_runtime.errors import VfmError

from vfm import __version__
from vfm.models import licenses
from vfm.models.backbone import Backbone
from vfm.models.heads import Head
from vfm.models.tensors import UnreadableFileError, read_metadata, read_plain
from vfm.preprocess import Preprocess
from vfm.renames import update_class_paths
from vfm.spec import Component, build
from vfm.training.fingerprint import (
    check_golden_features,
    compute_fingerprint,
    compute_golden_features,
)
from vfm.training.optim import Optim
from vfm.types import Batch, Features, Raw, StepKey

KEY = "vfm"
"""Entry of the checkpoint that holds everything of vfm."""
ADAPTER_SUFFIX = ".safetensors"
"""How the name of an adapter file ends."""
FORMAT = 1
"""Raised when the entry changes so that older readers would misread it."""

_PACKAGES = ("torch", "timm", "lightning", "numpy")
_OTHER_DATA = (
    "The images, labels or splits are not those that the checkpoint was trained on: training goes on with the new "
    "ones, and its figures are not comparable with the earlier ones."
)


class CheckpointError(VfmError, ValueError):
    """A file is not a checkpoint of vfm, or does not fit."""


class CheckpointedModel(Component, L.LightningModule, ABC):
    """A backbone and a head that a checkpoint rebuilds.

    Attributes:
        backbone: Gives features.
        head: Gives predictions; its layers are made when the labels are known.
        optim: Optimizer, schedule, learning rate.
        preprocess: What images go through before the backbone.
        license: Licence of the pretrained weights that training started from, as timm states it.
        recipe: The resolved recipe of the command line, carried by the checkpoint; None from Python.
        source: The file that the model was loaded from; None for a new one.
        feature_change: Relative change of the golden features of that file; None where the same libraries wrote it.
    """

    optim: Optim

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.preprocess = backbone.preprocess
        self.license = backbone.license
        self.recipe: dict[str, Any] | None = None
        self.source: Path | None = None
        self.feature_change: float | None = None
        self._identity: dict[str, Any] = {"fingerprint": None, "golden_features": None}
        self._data: dict[str, Any] | None = None
        report = backbone.report
        self._weights_report = report.to_dict() if report else None
        if report is not None:
            rank_zero_info(f"Weights {report}")
            if backbone.warning is not None:
                rank_zero_warn(backbone.warning)
            # A file that states none is the user's own affair; what timm fetches is not.
            is_stated = self.license is not None or report.fetched
            if is_stated and (notice := licenses.describe_license(backbone.name, self.license)):
                rank_zero_warn(notice)

    @classmethod
    def load(
        cls, path: str | Path, *, base: str | Path | None = None, trust: Collection[str] = ()
    ) -> Self:
        """Rebuild a model, in evaluation mode, from nothing but its checkpoint, or from an adapter and its base.

        Args:
            path: A checkpoint, made by the command line or by Python; or an `adapter.safetensors`.
            base: For an adapter, the file of the backbone's weights, where it is no longer at its old path.
            trust: Packages besides vfm whose code the checkpoint may name, such as that of your own head.

        Raises:
            CheckpointError: The file cannot be read.
            SpecError: It names code that is not trusted or not found.
        """
        return cls.restore(read_model_file(path), Path(path), base=base, trust=trust)

    @classmethod
    def restore(
        cls,
        content: dict[str, Any],
        path: Path,
        *,
        base: str | Path | None = None,
        trust: Collection[str] = (),
    ) -> Self:
        """Rebuild a model like `load`, from a file that was read already.

        Raises:
            CheckpointError: The file does not fit.
            SpecError: It names code that is not trusted or not found.
        """
        entry = content[KEY]
        arguments = entry["model"]["init_args"]
        is_adapter = path.suffix == ADAPTER_SUFFIX
        changed: dict[str, Any] = {}
        if not is_adapter:
            # The weights are in the file: nothing is fetched, and the file that training began with need not exist.
            changed = {"pretrained": False, "weights": None}
        elif base is not None:
            changed = {"weights": str(base)}
        model: Self = build(
            {**entry["model"], "init_args": arguments | changed}, base=cls, trust=trust
        )
        model.__dict__["_init_args"] |= {key: arguments[key] for key in ("pretrained", "weights")}
        model.on_load_checkpoint(content)
        if is_adapter:
            _load_adapter(model, content["state_dict"], entry, path)
        else:
            model.load_state_dict(content["state_dict"])
        model.source = path
        model.eval()
        model.feature_change = check_golden_features(
            model.backbone, model.preprocess, entry, str(path)
        )
        return model

    @abstractmethod
    def compute_loss(self, raw: Raw, batch: Batch) -> Tensor:
        """Return the sum of the losses of a batch."""

    @abstractmethod
    def compute_train_losses(self, batch: Batch, key: StepKey) -> dict[str, Tensor]:
        """Return sums by name over a batch, as the step of training computes them that the key names."""

    def compute_eval_loss(self, batch: Batch) -> Tensor:
        """Return the sum of the losses of a batch, as a validation computes them."""
        return self.compute_loss(self.compute_raw(batch), batch)

    def restore_parts(self, tensors: Mapping[str, Tensor]) -> None:
        """Make what only training needs, which `load` leaves out, from the tensors of the checkpoint."""

    def forward(self, pixels: Tensor) -> Raw:
        """Return the raw outputs of the head.

        Args:
            pixels: uint8 [N, H, W, 3], at the model's size.
        """
        raw: Raw = self.head(self.backbone(self.preprocess.normalize(pixels)))
        return raw

    def answer(self, pixels: Tensor, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Return decoded predictions, such as `scores` [N, C]; what the exported model computes.

        Args:
            pixels: uint8 [N, H, W, 3], at the model's size.
            geometry: float [N, 6], for heads whose predictions are positions in the original image.
        """
        raw = self(pixels)
        arguments = (geometry,) if self.head.needs_geometry else ()
        return self.head.decode(raw, *arguments)

    def compute_raw(self, batch: Batch) -> Raw:
        """Return the raw outputs of the head for a batch, which may hold stored features in place of images."""
        features = batch.get("features")
        raw: Raw = self.head(Features.fill(features)) if features else self(batch["image"])
        return raw

    def read_preprocess(self, entry: Mapping[str, Any]) -> Preprocess:
        """Return the preprocessing that a checkpoint's entry holds."""
        return Preprocess(**entry["preprocess"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that is needed to rebuild the task, and where it comes from."""
        checkpoint[KEY] = {
            "format": FORMAT,
            "model": self.spec,
            "head": self.head.spec,
            "labels": list(self.head.labels),
            "preprocess": self.preprocess.to_dict(),
            "recipe": self.recipe,
            "versions": list_versions(),
            "seed": torch.initial_seed(),
            "data": self._data,
            "weights": self._weights_report,
            "license": self.license,
            **self._identify(checkpoint.get("state_dict") or {}),
        }

    def _identify(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return fingerprint and golden features of the weights that are saved, which may be averages of these."""
        prefix = "backbone."
        saved = {
            name.removeprefix(prefix): tensor
            for name, tensor in state.items()
            if name.startswith(prefix)
        }
        if saved:  # empty on all ranks but the first, where weights are sharded
            fingerprint = compute_fingerprint(self.backbone, self.preprocess, saved)
            if fingerprint != self._identity["fingerprint"]:
                golden = compute_golden_features(self.backbone, self.preprocess, saved)
                self._identity = {"fingerprint": fingerprint, "golden_features": golden}
        return self._identity

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the head for the checkpoint's labels, and check that it fits this task."""
        if KEY not in checkpoint:
            raise CheckpointError(
                f"The checkpoint has no entry '{KEY}': it was not written by vfm."
            )
        entry = update_class_paths(checkpoint[KEY])
        backbone, head = entry["model"]["init_args"]["backbone"], entry["head"]
        _require_same("backbone", backbone, self.backbone.name, remedy=backbone)
        # A head of an earlier version says nothing of arguments that came later.
        current = inspect.signature(type(self.head)).parameters.items()
        defaults = {name: p.default for name, p in current if p.default is not p.empty}
        head = {**head, "init_args": defaults | head["init_args"]}
        _require_same("head", head, self.head.spec, remedy=head["class_path"])
        if not self.head.labels:
            self.head.prepare(self.backbone.info, entry["labels"])
        require_same_labels(tuple(entry["labels"]), self.head.labels, "the checkpoint")
        self.preprocess = self.read_preprocess(entry)
        self.license, self._weights_report = entry["license"], entry["weights"]
        if self._data is None:
            self._data = entry["data"]
        elif entry["data"] and self._data["fingerprint"] != entry["data"]["fingerprint"]:
            rank_zero_warn(_OTHER_DATA)


def _require_same(name: str, stored: Any, current: Any, *, remedy: str) -> None:
    if stored != current:
        raise CheckpointError(
            f"The checkpoint's {name} is {stored!r}, this task's is {current!r}. "
            f"Give --model.{name} {remedy} with its arguments, or another checkpoint."
        )


def require_same_labels(labels: tuple[str, ...], expected: tuple[str, ...], owner: str) -> None:
    """Refuse data or a checkpoint with other labels than the model's.

    Raises:
        CheckpointError: They differ.
    """
    if labels == expected:
        return
    more, fewer = sorted(set(labels) - set(expected)), sorted(set(expected) - set(labels))
    raise CheckpointError(
        f"The labels of {owner} are not those of the model: {len(labels)} against {len(expected)}; "
        f"only there: {more[:5]}, only in the model: {fewer[:5]}. "
        "Resume with the data it was trained on; to learn other labels, start a new task from these weights "
        "(--model.weights)."
    )


def _load_adapter(
    model: CheckpointedModel, tensors: Mapping[str, Tensor], entry: Mapping[str, Any], path: Path
) -> None:
    """Set what was learned, on the backbone that it was learned on; refuse one with other weights."""
    report, origin = model.backbone.report, entry["weights"] or {}
    needed = origin.get("after")
    if report is None or report.after != needed:
        checksum = report.after if report else "a random start"
        raise CheckpointError(
            f"{path} was learned on weights with checksum {needed} ({origin.get('source')}); "
            f"the backbone has {checksum}. Give the file with those weights (base='FILE', --base FILE)."
        )
    # Not strict: the frozen weights are the backbone's already, and only they may be missing.
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    if unexpected or set(missing) - frozen:
        raise CheckpointError(
            f"{path} does not fit its own task: unexpected {unexpected[:4]}, missing "
            f"{sorted(set(missing) - frozen)[:4]}. It may come from another version of vfm or timm."
        )


@cache
def list_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide what a model computes, read once a process."""
    ours = {"python": platform.python_version(), "vfm": __version__}
    return ours | {name: version(name) for name in _PACKAGES}


def read_model_file(path: str | Path) -> dict[str, Any]:
    """Return what a checkpoint holds, or an adapter file, in the same form.

    Raises:
        CheckpointError: There is no such file, it is damaged, or vfm did not write it.
    """
    path = Path(path)
    if path.suffix != ADAPTER_SUFFIX:
        return read_checkpoint(path)
    if not path.is_file():
        raise CheckpointError(
            f"There is no adapter {path}. Training with --model.adapt lora, effort, ln or linear writes one "
            "beside its checkpoints."
        )
    try:
        metadata, tensors = read_metadata(path), read_plain(path)
    except UnreadableFileError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as an adapter: {error}\nCopy it again."
        ) from error
    if KEY not in metadata:
        raise CheckpointError(
            f"{path} is no adapter of vfm: it says nothing of a task. Bare weights go to --model.weights."
        )
    return _update_entry({KEY: json.loads(metadata[KEY]), "state_dict": tensors}, path)


def read_checkpoint(path: str | Path, *, lazy: bool = False) -> dict[str, Any]:
    """Read a checkpoint without running any code that it may hold.

    Args:
        path: File that Lightning wrote.
        lazy: Whether tensors are read from the disk only where they are used.

    Raises:
        CheckpointError: There is no such file, it is damaged, or vfm did not write it.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"There is no checkpoint {path}. Training writes best.ckpt and last.ckpt into the "
            "'checkpoints' folder of its run."
        )
    try:
        content = read_plain(path, lazy=lazy)
    except UnreadableFileError as error:
        raise CheckpointError(
            f"{path} ({path.stat().st_size:,} bytes) cannot be read as a checkpoint: {error}\n"
            "It may be cut short or of another kind. Copy it again, or give another .ckpt file."
        ) from error
    if not isinstance(content, Mapping) or KEY not in content:
        raise CheckpointError(
            f"{path} was not written by vfm: it has no entry '{KEY}'. "
            "Give a .ckpt of a vfm training run; bare weights go to --model.weights instead."
        )
    return _update_entry(dict(content), path)


def _update_entry(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a file's content with its class paths brought up to date; refuse a format of a later version."""
    number = content[KEY]["format"]
    if number > FORMAT:
        raise CheckpointError(
            f"{path} has format {number}; this vfm reads up to {FORMAT}. Upgrade vfm."
        )
    content[KEY] = update_class_paths(content[KEY])
    return content

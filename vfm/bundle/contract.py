"""What a bundle's contract is made of: labels, rules of sureness, and where the training images lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vfm_runtime.bundle.contract import SEVERAL, Contract, HeadContract
from vfm_runtime.tasks.confidence import Rules

from vfm.bundle.errors import ExportError
from vfm.bundle.ood import Placed, Reference, place
from vfm.bundle.source import Trained
from vfm.tasks import BaseTask
from vfm.tasks.calibration import Calibration
from vfm.tasks.checkpoint import versions
from vfm.tasks.predictor import TorchPredictor
from vfm.tasks.validation import Validation


@dataclass(frozen=True)
class Fitted:
    """A contract, and what it was fitted on."""

    contract: Contract
    calibrations: dict[str, Calibration]
    """By the names of the heads that are calibrated."""
    placed: Placed | None
    """Where the training images lie, and the validation images to them."""

    @property
    def reference(self) -> Reference | None:
        """What the graph measures images against."""
        return None if self.placed is None else self.placed.reference


def fit(
    trained: Mapping[str, Trained],
    *,
    calibrate: bool = False,
    min_precision: float | None = None,
    reference: bool = False,
    trust: Sequence[str] = (),
) -> Fitted:
    """Fit what was asked for, and write the contract.

    Args:
        trained: By the names of the heads; that of a single one is empty. In evaluation mode, on the CPU.
        calibrate: Fit temperatures and thresholds.
        min_precision: Share of sure answers that shall be right.
        reference: Fit where the training images lie.
        trust: Packages besides vfm whose code the checkpoints may name.

    Raises:
        ExportError: A model of that kind has no such thing, or there are no validation images.
        CalibrationError: There are too few images.
        ReferenceFitError: There are too few images.
    """
    calibrations = {}
    if calibrate:
        for name, one in trained.items():
            images = _images(one, "calibrate")
            outputs = images.outputs(TorchPredictor(one.task).run)
            calibrations[name] = one.task.fit_confidence(
                outputs, images, min_precision=min_precision
            )
    placed = _place(trained, trust) if reference else None
    heads = {
        name: HeadContract(
            task=one.task.kind,
            labels=one.task.labels,
            rules=_rules(one.task, calibrations.get(name), placed),
        )
        for name, one in trained.items()
    }
    return Fitted(_contract(trained, heads), calibrations, placed)


def _contract(trained: Mapping[str, Trained], heads: dict[str, HeadContract]) -> Contract:
    task = next(iter(trained.values())).task
    single = heads.get("")
    return Contract(
        task=SEVERAL if single is None else single.task,
        labels=tuple(heads) if single is None else single.labels,
        preprocess=task.preprocess.to_dict(),
        backbone=task.backbone.name,
        license=task.license,
        versions=versions(),
        rules=None if single is None else single.rules,
        heads=heads if single is None else None,
    )


def _rules(
    task: BaseTask, found: Calibration | None, placed: Placed | None
) -> dict[str, Any] | None:
    stated = task.rules()
    if stated is not None or (found is None and placed is None):
        return stated
    rules = Rules() if found is None else found.rules
    if placed is not None:
        rules = replace(rules, reference=True, max_distance=placed.max_distance)
    return rules.to_dict()


def _place(trained: Mapping[str, Trained], trust: Sequence[str]) -> Placed:
    """By the images of one head: the backbone, of which it is, is that of all."""
    one = trained[placing_head(trained)]
    if one.task.reference_refusal is not None:
        raise ExportError(one.task.reference_refusal)
    # What any head reads, as the graph has it.
    reads = list(dict.fromkeys(field for t in trained.values() for field in t.task.head.reads))
    if one.checkpoint is None:
        raise ExportError("--reference needs the checkpoint, which says what was trained on.")
    return place(one.checkpoint, one.task, _images(one, "reference"), reads=reads, trust=trust)


def placing_head(trained: Mapping[str, Trained]) -> str:
    """Name of the head whose images say where the training images lie.

    Args:
        trained: By the names of the heads.
    """
    # The backbone of one that reads no pooled vector does not give any.
    return max(trained, key=lambda name: "pooled" in trained[name].task.head.reads)


def _images(one: Trained, option: str) -> Validation:
    if one.validation is None:
        raise ExportError(f"--{option} needs labelled validation images. Name them with --data.")
    return one.validation

"""Fingerprint of a backbone with its preprocessing, and golden features that show when libraries compute others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.distributed.tensor import DTensor

from vfm.models.backbone import Backbone
from vfm.models.tensors import compute_checksum
from vfm.preprocess import Preprocess

TOLERANCE = 1e-2
"""Largest relative change of golden features that another device or another rounding explains; TF32 reaches 3e-3."""

_NUM_IMAGES, _NUM_VALUES = 2, 64


def compute_fingerprint(
    backbone: Backbone, preprocess: Preprocess, state: Mapping[str, Tensor] | None = None
) -> str:
    """Return the identity of a model that embeds: 32 hexadecimal digits of its name, weights and preprocessing.

    It is the same for a checkpoint, its bundle, the features that are cached and the vectors in a store, whatever
    versions of libraries are installed.

    Args:
        backbone: Backbone with its weights.
        preprocess: What images go through before it.
        state: Other weights than those that it has now, by their names in the backbone.
    """
    parts = {
        "backbone": backbone.name,
        "weights": compute_checksum(backbone.state_dict() if state is None else state),
        "preprocess": preprocess.to_dict(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def generate_images(size: tuple[int, int]) -> torch.Tensor:
    """Return golden images, uint8 [2, H, W, 3], the same on every machine: a smooth one, and one of fine grain."""
    y, x, c = np.indices((*size, 3), dtype=np.int64)
    smooth = (x * 255 // max(size[1] - 1, 1) + y * (c + 1) * 85 // max(size[0] - 1, 1)) % 256
    grain = (x * 73_856_093 ^ y * 19_349_663 ^ c * 83_492_791) // 7 % 256
    return torch.from_numpy(np.stack([smooth, grain]).astype(np.uint8))


@torch.no_grad()
def compute_golden_features(
    backbone: Backbone, preprocess: Preprocess, state: Mapping[str, Tensor] | None = None
) -> dict[str, list[float]] | None:
    """Return features of generated images: 64 numbers of each image, spread over every field that the backbone gives.

    Args:
        backbone: Backbone of any mode; its modes stay.
        preprocess: What images go through before it.
        state: Other weights than those that it has now, by their names in the backbone.

    Returns:
        The numbers by field; None where weights are spread over ranks, are of less than 32 bits, or give no numbers.
    """
    weights = list(backbone.parameters())
    if any(isinstance(p, DTensor) or p.dtype != torch.float32 for p in weights):
        return None
    pixels = generate_images(preprocess.size).to(weights[0].device)
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    try:
        # Compiled code is of the training's own batches: another batch would be compiled for minutes.
        with (
            torch.compiler.set_stance("force_eager"),
            torch.autocast(pixels.device.type, enabled=False),
        ):
            arguments = (preprocess.normalize(pixels),)
            features = torch.func.functional_call(backbone, dict(state or {}), arguments)
    finally:
        for module, mode in modes:
            module.training = mode
    fields = {"pooled": features.pooled}
    fields |= {f"map {number}": values for number, values in enumerate(features.maps)}
    golden = {name: _sample(values) for name, values in fields.items() if values.numel()}
    return golden if np.isfinite(list(golden.values())).all() else None


def check_golden_features(
    backbone: Backbone, preprocess: Preprocess, entry: Mapping[str, Any], path: str
) -> float | None:
    """Compute golden features again under other libraries than a checkpoint's, and warn where they have changed.

    Args:
        backbone: Backbone with the checkpoint's weights.
        preprocess: Preprocessing of the checkpoint.
        entry: What the checkpoint says of itself, with `golden_features` and `versions`.
        path: File of the checkpoint, for the warning.

    Returns:
        Their largest relative change; None where libraries are the same, or the checkpoint has none.
    """
    golden, current = entry.get("golden_features"), list_libraries()
    written = {name: entry["versions"].get(name) for name in current}
    if golden is None or written == current:
        return None
    features = compute_golden_features(backbone, preprocess)
    change = float("inf") if features is None else _measure_change(golden, features)
    if change > TOLERANCE:
        before, now = (
            ", ".join(f"{name} {number}" for name, number in versions.items())
            for versions in (written, current)
        )
        rank_zero_warn(
            f"{path}: its backbone {backbone.name} computes other features here ({now}) than where it was trained "
            f"({before}): they differ by {change:.1%} on generated images, where rounding explains {TOLERANCE:.0%}. "
            "Figures of its training need not hold. Install those versions, or measure it again with `vfm test`."
        )
    return change


def list_libraries() -> dict[str, str]:
    """Return the versions of the libraries that compute features."""
    return {name: version(name) for name in ("timm", "torch")}


def _sample(values: Tensor) -> list[float]:
    flat = values.float().reshape(_NUM_IMAGES, -1)
    positions = torch.linspace(0, flat.shape[1] - 1, _NUM_VALUES, device=flat.device).long()
    sampled: list[Any] = flat[:, positions].flatten().cpu().tolist()
    return sampled


def _measure_change(
    golden: Mapping[str, list[float]], features: Mapping[str, list[float]]
) -> float:
    """Return the largest change of a field, relative to its length; infinite where one is missing."""
    change = 0.0
    for name, values in golden.items():
        if len(features.get(name, ())) != len(values):
            return float("inf")
        before, after = np.array(values), np.array(features[name])
        norm = max(float(np.linalg.norm(before)), float(np.finfo(np.float32).tiny))
        change = max(change, float(np.linalg.norm(after - before)) / norm)
    return change

"""Activation functions: the one that weights were trained with, by timm's notes or a config, against the model's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
from torch import nn

from vfm.models.weights import LoadReport

_QUICK = "QuickGELU"
_KINDS = {"quick_gelu": _QUICK, "gelu": "GELU", "gelu_pytorch_tanh": "GELUTanh"}
_CONFIGS = ("config.json", "open_clip_config.json")
# What transformers takes where the config of a model does not name one.
_QUICK_BY_DEFAULT = ("clip", "clip_vision_model", "clip_text_model")


def find_mismatch(model: nn.Module, name: str, report: LoadReport) -> str | None:
    """Find weights that were trained with another activation than the model has; return what to say of them.

    Args:
        model: Model of timm, with its weights.
        name: Name of the model in timm, with its tag.
        report: What the load of its weights did.

    Returns:
        A warning with its remedy; None where nothing says that they differ.
    """
    used = {type(module).__name__ for module in model.modules()} & set(_KINDS.values())
    expected, source = (None, "") if report.fetched else _read_kind(report)
    if expected is None and (report.fetched or "." in name):
        notes = " ".join(getattr(model, "pretrained_cfg", {}).get("notes") or ())
        if _QUICK.lower() in notes.lower():
            expected, source = _QUICK, f"timm's note on {name} ('{notes}')"
    if expected is None or not used or expected in used:
        return None
    base, dot, tag = name.partition(".")
    family, _, size = base.rpartition("_")
    other = f"{family}_quickgelu_{size}" if expected == _QUICK else base.replace("_quickgelu", "")
    remedy = "Use a model that computes it, or be aware of it."
    if other != base and timm.is_model(other):
        remedy = f"Use --model.backbone {other}{dot}{tag}; a model that was trained with {name} goes on as it is."
    return (
        f"{name} computes {', '.join(sorted(used))}, and its weights were trained with {expected}, says {source}: "
        f"features differ from those that were published. {remedy}"
    )


def _read_kind(report: LoadReport) -> tuple[str | None, str]:
    """Read which activation a file of weights was trained with; also return what says it."""
    path = Path(report.source)
    if report.backbone is not None:  # a checkpoint of vfm
        is_clip = "_clip_" in report.backbone
        kind = _QUICK if "quickgelu" in report.backbone else "GELU" if is_clip else None
        return kind, f"{path} (of {report.backbone})"
    for config in (path.with_name(name) for name in _CONFIGS):
        try:
            values = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(values, Mapping) and (kind := _find_kind(values)):
            return kind, str(config)
    return None, ""


def _find_kind(values: Mapping[str, Any]) -> str | None:
    """Find the activation in a config of transformers, open_clip or timm."""
    parts = [values, *(values.get(key) for key in ("vision_config", "model_cfg", "pretrained_cfg"))]
    maps = [part for part in parts if isinstance(part, Mapping)]
    for part in reversed(maps):
        if part.get("quick_gelu") is True or _QUICK.lower() in str(part.get("notes", "")).lower():
            return _QUICK
        if (kind := _KINDS.get(str(part.get("hidden_act")))) is not None:
            return kind
    return _QUICK if any(part.get("model_type") in _QUICK_BY_DEFAULT for part in maps) else None

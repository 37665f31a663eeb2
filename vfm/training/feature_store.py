"""Where features are kept, and under which key: the same weights, preprocessing and images give the same features."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from vfm_runtime.errors import VfmError

from vfm.models.backbone import Backbone
from vfm.models.tensors import checksum
from vfm.preprocess import Preprocess

_FREE_SHARE = 0.9


class CacheError(VfmError, OSError):
    """Features cannot be kept."""


def cache_dir() -> Path:
    """The folder of all features: $VFM_CACHE/features, by default in ~/.cache/vfm. Anything in it may be deleted."""
    root = os.environ.get("VFM_CACHE") or Path.home() / ".cache" / "vfm"
    return Path(root) / "features"


def key_of(
    backbone: Backbone, preprocess: Preprocess, images: str, reads: Sequence[str], precision: str
) -> str:
    """Name of a folder of features.

    Args:
        backbone: With its weights.
        preprocess: Of the backbone.
        images: Fingerprint of the images and their order.
        reads: Fields of the features.
        precision: Of the computation, such as `bf16-mixed`.
    """
    made_of = {
        "backbone": backbone.name,
        "weights": checksum(backbone.state_dict()),
        "preprocess": preprocess.to_dict(),
        "images": images,
        "reads": sorted(reads),
        "precision": precision,
        "versions": [timm.__version__, torch.__version__],
    }
    text = json.dumps(made_of, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def require_space(folder: Path, num_bytes: int) -> None:
    """Refuse to fill a disk.

    Raises:
        CacheError: The features would take most of what is free.
    """
    free = shutil.disk_usage(folder).free
    if num_bytes > _FREE_SHARE * free:
        raise CacheError(
            f"The features would take {num_bytes / 2**30:.1f} GiB; {folder.parent} has {free / 2**30:.1f} GiB left. "
            "Set VFM_CACHE to a folder on a larger disk, or do without: --model.cache_features false."
        )

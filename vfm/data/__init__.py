"""Images with labels or boxes, from folders, tables, MNIST files or generated, as Lightning data modules."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vfm.data.base import ImageData as ImageData
    from vfm.data.detection.auto import DetectionData as DetectionData
    from vfm.data.detection.synthetic import SyntheticScenes as SyntheticScenes
    from vfm.data.digits import DigitsData as DigitsData
    from vfm.data.folder import FolderData as FolderData
    from vfm.data.idx import IdxData as IdxData
    from vfm.data.pairs import PairData as PairData, PairShards as PairShards
    from vfm.data.shards import ShardData as ShardData
    from vfm.data.synthetic import SyntheticData as SyntheticData
    from vfm.data.table import TableData as TableData
    from vfm.data.unlabeled import UnlabeledData as UnlabeledData

_HOME = {
    "DetectionData": "detection.auto",
    "DigitsData": "digits",
    "FolderData": "folder",
    "IdxData": "idx",
    "ImageData": "base",
    "PairData": "pairs",
    "PairShards": "pairs",
    "ShardData": "shards",
    "SyntheticData": "synthetic",
    "SyntheticScenes": "detection.synthetic",
    "TableData": "table",
    "UnlabeledData": "unlabeled",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """Import a data module when it is first used: a spawned data worker, which needs none, loads no Lightning."""
    if name not in _HOME:
        raise AttributeError(f"module 'vfm.data' has no attribute '{name}'")
    return getattr(importlib.import_module(f"vfm.data.{_HOME[name]}"), name)

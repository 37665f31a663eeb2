"""Feature cache: a frozen backbone runs once over the images, and later epochs and runs read its features from disk."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from vfm_runtime.errors import VfmError

from vfm.data import ImageData
from vfm.data.feature_dataset import StoredFeatures
from vfm.models.backbone import Backbone
from vfm.preprocess import Preprocess
from vfm.training.checkpoint import CheckpointedModel
from vfm.training.fingerprint import compute_fingerprint, list_libraries
from vfm.training.ranks import gather_ranks

_DONE = "done.json"
_ABANDONED = 7 * 24 * 3600
"""Seconds after which what a stopped job left half done is deleted."""
_FREE_FRACTION = 0.9
"""Most of a disk's free space that features may take."""


class CacheError(VfmError, OSError):
    """Features cannot be kept."""


class Ranks(NamedTuple):
    """How the processes of a job share the work and wait for each other; by default there is one."""

    rank: int = 0
    barrier: Callable[[], Any] = lambda: None
    broadcast: Callable[[Any], Any] = lambda value: value
    """Gives every process the value of rank 0."""
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What the backbone runs under, such as autocast."""
    precision_name: str = "32-true"


_ALONE = Ranks()


def replace_images(task: CheckpointedModel, data: ImageData) -> None:
    """Let features stand in for the training and validation images, where that changes no result.

    It comes before the loaders are made; `fill_features` gives the features themselves.
    """
    if not task.backbone.frozen or "maps" in task.head.uses:
        return
    if data.augment != "none":
        rank_zero_info(
            f"The backbone is frozen, but --data.augment {data.augment} shows it other images in every epoch. "
            "With --data.augment none its features are computed once, and later epochs cost next to nothing."
        )
        return
    splits = ["train", "val"] if task.trainer.limit_val_batches else ["train"]
    data.stored = {
        s: StoredFeatures(data.records[s], data.num_targets, data.seed if s == "train" else None)
        for s in splits
        if data.records.get(s)
    }


def fill_features(task: CheckpointedModel, data: ImageData) -> None:
    """Give the features that `replace_images` announced, by the final weights of the task."""
    for split, waiting in data.stored.items():
        features = load_task_features(task, data, split)
        waiting.fill(features.arrays, features.skipped)


def load_task_features(task: CheckpointedModel, data: ImageData, split: str) -> StoredFeatures:
    """Return the features of a split that the task's head reads, in the trainer's precision."""
    trainer = task.trainer
    ranks = Ranks(
        trainer.global_rank,
        trainer.strategy.barrier,
        trainer.strategy.broadcast,
        trainer.precision_plugin.forward_context,
        str(trainer.precision),
    )
    arguments = (task.backbone, task.preprocess, data, split, task.head.uses)
    return load_features(*arguments, ranks=ranks, progress=rank_zero_info)


@torch.no_grad()
def load_features(
    backbone: Backbone,
    preprocess: Preprocess,
    data: ImageData,
    split: str,
    reads: Sequence[str],
    *,
    ranks: Ranks = _ALONE,
    progress: Callable[[str], Any] = lambda text: None,
) -> StoredFeatures:
    """Return the features of a split without augmentation, from the cache, or computed now and kept there.

    Args:
        backbone: Backbone on its device, which runs in evaluation mode.
        preprocess: Preprocessing of the backbone.
        data: Data module that has read its records.
        split: `train`, `val` or `test`.
        reads: Fields of `Features` without `maps`; the backbone must have been told so (`select_outputs`).
        ranks: The processes of this job, each of which computes its part.
        progress: Takes a sentence on what was done.

    Raises:
        CacheError: The disk has too little space, or ranks do not share the folder.
    """
    data.preprocess = preprocess
    preprocess = data.preprocess  # with the bit depth that the data says
    parts = [
        compute_fingerprint(backbone, preprocess),
        data.hash_split(split),
        sorted(reads),
        ranks.precision_name,
        list_libraries(),
    ]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
    folder = get_cache_dir() / key
    records = data.records[split]
    # Rank 0 decides for all: another job may finish the same features between two looks.
    partial = ranks.broadcast(None if (folder / _DONE).is_file() else _reserve_partial(folder))
    if partial is not None:
        try:
            skipped = _compute_features(backbone, preprocess, data, split, reads, ranks, partial)
            if ranks.rank == 0:
                _publish(partial, folder, skipped)
        finally:
            if ranks.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
        ranks.barrier()
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in reads}
    size = sum(array.nbytes for array in arrays.values()) / 2**20
    origin = "found in" if partial is None else "computed once and kept in"
    progress(f"Features of {len(records)} images of '{split}' {origin} {folder} ({size:.1f} MiB).")
    done = json.loads((folder / _DONE).read_text(encoding="utf-8"))
    stored = StoredFeatures(records, data.num_targets)
    stored.fill(arrays, {int(index): reason for index, reason in done["skipped"].items()})
    return stored


def get_cache_dir() -> Path:
    """Return the folder of all features: $VFM_CACHE/features, by default in ~/.cache/vfm. All in it may be deleted."""
    root = os.environ.get("VFM_CACHE") or Path.home() / ".cache" / "vfm"
    return Path(root) / "features"


def _reserve_partial(folder: Path) -> Path:
    """Return a path of this job's own, since two jobs may compute the same features at once; delete abandoned ones."""
    for path in folder.parent.glob(f"{folder.name}.*.partial"):
        with suppress(FileNotFoundError):  # its job is through this moment
            if time.time() - path.stat().st_mtime > _ABANDONED:
                shutil.rmtree(path)
    return folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.partial")


def _compute_features(
    backbone: Backbone,
    preprocess: Preprocess,
    data: ImageData,
    split: str,
    reads: Sequence[str],
    ranks: Ranks,
    folder: Path,
) -> dict[int, str]:
    """Write an array for each field, and return the reason by index of the images that no rank could read."""
    device = next(backbone.parameters()).device
    was_training = backbone.training
    backbone.eval()
    arrays: dict[str, NDArray[np.float32]] = {}
    names = {record.name: i for i, record in enumerate(data.records[split])}
    skipped: dict[int, str] = {}
    if ranks.rank == 0:
        pixels = torch.zeros((1, *preprocess.size, 3), dtype=torch.uint8, device=device)
        example = backbone(preprocess.normalize(pixels))
        shapes = {name: (len(names), *getattr(example, name).shape[1:]) for name in reads}
        _reserve_arrays(folder, shapes)
    ranks.barrier()
    for name in reads:
        path = folder / f"{name}.npy"
        if not path.is_file():
            raise CacheError(
                f"Rank {ranks.rank} does not find {path}, which rank 0 has made. Point VFM_CACHE to a folder that all "
                "nodes share, or train without it: --model.cache_features false."
            )
        arrays[name] = np.load(path, mmap_mode="r+")
    for batch in data.build_plain_loader(split):
        skipped |= {names[name]: reason for name, reason in batch["skipped"]}
        if len(batch["image"]) == 0:
            continue
        with ranks.precision():
            features = backbone(preprocess.normalize(batch["image"].to(device)))
        for name, array in arrays.items():
            array[batch["index"].numpy()] = getattr(features, name).float().cpu().numpy()
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]
    backbone.train(was_training)
    ranks.barrier()
    return {index: reason for part in gather_ranks(skipped) for index, reason in part.items()}


def _reserve_arrays(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """Make a float32 file of each shape; refuse to fill the disk."""
    folder.mkdir(parents=True)
    num_bytes = sum(4 * int(np.prod(shape)) for shape in shapes.values())
    free = shutil.disk_usage(folder).free
    if num_bytes > _FREE_FRACTION * free:
        raise CacheError(
            f"The features would take {num_bytes / 2**30:.1f} GiB; {folder.parent} has {free / 2**30:.1f} GiB left. "
            "Set VFM_CACHE to a folder on a larger disk, or do without: --model.cache_features false."
        )
    for name, shape in shapes.items():
        path = folder / f"{name}.npy"
        np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()


def _publish(partial: Path, folder: Path, skipped: dict[int, str]) -> None:
    """Move a complete folder to its final path."""
    (partial / _DONE).write_text(json.dumps({"skipped": skipped}), encoding="utf-8")
    if not (folder / _DONE).is_file():
        shutil.rmtree(folder, ignore_errors=True)  # someone deleted a part of it
    try:
        os.replace(partial, folder)  # noqa: PTH105 - atomic on every system
    except OSError:
        # Another job was first, and its features are the same.
        if not (folder / _DONE).is_file():
            raise

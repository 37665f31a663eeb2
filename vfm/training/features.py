"""Compute the features of a split: run a backbone over it once, and keep what it gives."""

from __future__ import annotations

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
from numpy.typing import NDArray

from vfm.data import ImageData
from vfm.data.feature_dataset import StoredFeatures
from vfm.models.backbone import Backbone
from vfm.preprocess import Preprocess
from vfm.training.feature_store import CacheError, cache_dir, key_of, require_space

_DONE = "done.json"
_ABANDONED = 7 * 24 * 3600
"""Seconds after which what a stopped job left half done is deleted."""


class Ranks(NamedTuple):
    """How the processes of a job share the work and wait for each other; by default there is one."""

    rank: int = 0
    world: int = 1
    barrier: Callable[[], Any] = lambda: None
    broadcast: Callable[[Any], Any] = lambda value: value
    """Gives every process the value of rank 0."""
    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    """What the backbone runs under, such as autocast."""
    precision_name: str = "32-true"


_ALONE = Ranks()


@torch.no_grad()
def features_of(
    backbone: Backbone,
    preprocess: Preprocess,
    data: ImageData,
    split: str,
    reads: Sequence[str],
    *,
    ranks: Ranks = _ALONE,
    root: Path | None = None,
    progress: Callable[[str], Any] = lambda text: None,
) -> StoredFeatures:
    """Features of a split without augmentation, from the cache or computed now and kept there.

    Args:
        backbone: On its device; it is run in evaluation mode.
        preprocess: Of the backbone.
        data: Of `trainer` or of none; its loaders open the images.
        split: `train`, `val` or `test`.
        reads: Fields of `Features`: `pooled`, `tokens` or both.
        ranks: The processes of this job, each of which computes its share.
        root: Folder of the cache; `cache_dir()` by default.
        progress: Is given a sentence on what was done.

    Raises:
        CacheError: The disk has too little space, or ranks do not share the folder.
    """
    data.preprocess = preprocess
    key = key_of(backbone, preprocess, data.hash_split(split), reads, ranks.precision_name)
    folder = (root or cache_dir()) / key
    records = data.records[split]
    # Rank 0 decides for all: another job may finish the same features between two looks.
    partial = ranks.broadcast(None if (folder / _DONE).is_file() else _new_partial(folder))
    if partial is not None:
        try:
            _compute(backbone, preprocess, data, split, reads, ranks, partial)
            if ranks.rank == 0:
                _finish(partial, folder, ranks.world)
        finally:
            if ranks.rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
        ranks.barrier()
        what = "computed once and kept in"
    else:
        what = "found in"
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in reads}
    size = sum(array.nbytes for array in arrays.values())
    progress(
        f"Features of {len(records)} images of '{split}' {what} {folder} ({size / 2**20:.1f} MiB)."
    )
    skipped = json.loads((folder / _DONE).read_text(encoding="utf-8"))["skipped"]
    stored = StoredFeatures(records, data.num_targets)
    stored.fill(arrays, {int(k): v for k, v in skipped.items()})
    return stored


def _new_partial(folder: Path) -> Path:
    """A name of this job's own, since two jobs may compute the same features at once."""
    for left in folder.parent.glob(f"{folder.name}.*.partial"):
        with suppress(FileNotFoundError):  # its job is through this moment
            if time.time() - left.stat().st_mtime > _ABANDONED:
                shutil.rmtree(left)
    return folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.partial")


def _compute(
    backbone: Backbone,
    preprocess: Preprocess,
    data: ImageData,
    split: str,
    reads: Sequence[str],
    ranks: Ranks,
    folder: Path,
) -> None:
    device = next(backbone.parameters()).device
    was_training = backbone.training
    backbone.eval()
    arrays: dict[str, NDArray[np.float32]] = {}
    names = {record.name: i for i, record in enumerate(data.records[split])}
    skipped: dict[int, str] = {}
    _make_arrays(backbone, preprocess, len(names), reads, ranks, folder)
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
            features = backbone(preprocess.normalise(batch["image"].to(device)))
        for name, array in arrays.items():
            array[batch["index"].numpy()] = getattr(features, name).float().cpu().numpy()
    for array in arrays.values():
        array.flush()  # type: ignore[attr-defined]
    text = json.dumps(skipped)
    (folder / f"skipped_{ranks.rank}.json").write_text(text, encoding="utf-8")
    backbone.train(was_training)
    ranks.barrier()


def _make_arrays(
    backbone: Backbone,
    preprocess: Preprocess,
    num_images: int,
    reads: Sequence[str],
    ranks: Ranks,
    folder: Path,
) -> None:
    if ranks.rank == 0:
        device = next(backbone.parameters()).device
        pixels = torch.zeros((1, *preprocess.size, 3), dtype=torch.uint8, device=device)
        example = backbone(preprocess.normalise(pixels))
        shapes = {name: (num_images, *getattr(example, name).shape[1:]) for name in reads}
        folder.mkdir(parents=True)
        require_space(folder, sum(4 * int(np.prod(shape)) for shape in shapes.values()))
        for name, shape in shapes.items():
            path = folder / f"{name}.npy"
            np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape).flush()
    ranks.barrier()


def _finish(partial: Path, folder: Path, world: int) -> None:
    skipped: dict[str, str] = {}
    for rank in range(world):
        skipped |= json.loads((partial / f"skipped_{rank}.json").read_text(encoding="utf-8"))
    (partial / _DONE).write_text(json.dumps({"skipped": skipped}), encoding="utf-8")
    if not (folder / _DONE).is_file():
        shutil.rmtree(folder, ignore_errors=True)  # someone deleted a part of it
    try:
        os.replace(partial, folder)  # noqa: PTH105 - atomic on every system
    except OSError:
        # Another job was first, and its features are the same.
        if not (folder / _DONE).is_file():
            raise

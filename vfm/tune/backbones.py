"""Backbones of `vfm tune`: opened, timed, and judged by heads on their frozen features."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from vfm_runtime.errors import OptionError

from vfm.metrics import Interval
from vfm.models.licenses import find_terms
from vfm.tasks import ClassificationTask
from vfm.training.feature_cache import load_features
from vfm.training.frozen_heads import JOINED
from vfm.training.oom import read_peak_memory, reset_peak_memory
from vfm.tune.clock import Clock, OutOfTimeError, measure_seconds
from vfm.tune.frozen import PoolHeads
from vfm.tune.images import LabeledPool

_BATCH, _RUNS, _LATENCY_RUNS = 8, 4, 12
_OPENING = 1.25
"""Time of an image with its file opened and resized, as a multiple of its time in the backbone."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class TriedBackbone:
    """A backbone with its frozen heads, and what it costs."""

    settings: dict[str, Any]
    """Arguments of its task."""
    task: ClassificationTask
    heads: PoolHeads
    forward: float
    """Seconds of an image in the backbone, in batches."""
    latency: float
    """Seconds of one image alone, from pixels to embedding."""
    memory: int
    """Most bytes beyond what was held before, while the features were computed."""
    seconds: float
    """Time of the features."""

    @property
    def name(self) -> str:
        """Name in timm."""
        return str(self.settings["backbone"])

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.task.preprocess.size[0]

    @property
    def stride(self) -> int:
        """Pixels along one side of a cell of the last feature map, of which the side is a multiple."""
        return self.task.backbone.info.map_strides[-1]

    def measure_forward(self) -> None:
        """Measure the time of an image in the backbone again: the machine may have been busy before."""
        self.forward = _measure_time(self.task, _BATCH, _RUNS) / _BATCH

    @property
    def interval(self) -> Interval:
        """Score of the best frozen head, with its interval."""
        assert self.heads.choice is not None
        return self.heads.choice.interval

    def to_row(self, metric: str) -> dict[str, Any]:
        """Return a row of the table of backbones."""
        interval = self.interval
        license = self.task.license
        return {
            "backbone": self.name,
            metric: interval.value,
            "low": interval.low,
            "high": interval.high,
            "best frozen head": self.heads.best.name,
            "ms an image": 1000 * self.latency,
            "MiB": round(self.memory / 2**20),
            "licence": (license or "not stated") + " (!)" * (not find_terms(license).commercial),
        }


def try_backbone(
    settings: dict[str, Any], pool: LabeledPool, clock: Clock, num_left: int
) -> TriedBackbone:
    """Compute the features of all images, and judge the heads on them.

    Args:
        settings: Arguments of the task.
        pool: Images to learn from; those that cannot be read are left out.
        clock: Time budget that all backbones share.
        num_left: Number of backbones that share what is left of it.

    Raises:
        OutOfTimeError: The time does not suffice for the features.
    """
    task = ClassificationTask(**settings, adapt="linear", multilabel=pool.data.multilabel)
    task.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    task.backbone.select_outputs(JOINED)
    forward = _measure_time(task, _BATCH, _RUNS) / _BATCH
    latency = _measure_time(task, 1, _LATENCY_RUNS)
    _require_time(len(pool.indices), forward, clock, num_left)
    print(
        f"{len(pool.indices)} images of {len(pool.data.labels)} classes to learn from; "
        f"{1 / forward:.0f} images/s through {settings['backbone']}",
        flush=True,
    )
    start, before = time.perf_counter(), reset_peak_memory()
    data = pool.select(range(len(pool.indices)))
    data.setup("fit")
    stored = load_features(task.backbone, task.preprocess, data, "train", JOINED)
    memory, seconds = read_peak_memory() - before, time.perf_counter() - start
    readable = [i for i in range(len(pool.indices)) if i not in stored.skipped]
    if stored.skipped:
        index, reason = next(iter(stored.skipped.items()))
        log.warning(
            "%d of %d images cannot be read and are left out, such as %s: %s",
            *(len(stored.skipped), len(pool.indices), pool.records[index].name, reason),
        )
        pool = pool.keep_only(readable)
    features = {name: np.asarray(array[readable]) for name, array in stored.arrays.items()}
    heads = PoolHeads(pool, features)
    heads.judge(clock.left / num_left)
    return TriedBackbone(settings, task, heads, forward, latency, memory, seconds)


def _require_time(num_images: int, forward: float, clock: Clock, num_left: int) -> None:
    needed = num_images * forward * _OPENING * num_left
    if needed <= clock.left + 0.1 * clock.total:
        return
    fewer = max(2, int(num_images * clock.total / (needed + clock.elapsed)))
    raise OutOfTimeError(
        f"The features of {num_images} images would take {needed / 60:.2g} minutes at {1 / forward:.1f} images/s, and "
        f"--minutes is {clock.total / 60:g}. Give --minutes {math.ceil((needed + clock.elapsed) / 6 + 1) / 10:g} or "
        f"more, fewer images (--num-images {fewer}), a smaller --image-size, or a smaller --backbone.",
        needed,
    )


@torch.inference_mode()
def _measure_time(task: ClassificationTask, num_images: int, runs: int) -> float:
    """Measure the median seconds of a pass from black pixels to embeddings."""
    size = (num_images, *task.preprocess.size, 3)
    pixels = torch.zeros(size, dtype=torch.uint8, device=task.device)
    return measure_seconds(
        lambda: task.backbone(task.preprocess.normalize(pixels)).pooled.sum().item(), runs
    )


def format_backbones(rows: list[dict[str, Any]]) -> str:
    """Return the table of backbones as text."""
    cells = [list(rows[0])] + [
        [
            f"{v:.3f}"
            if isinstance(v, float) and v <= 1
            else f"{v:.1f}"
            if isinstance(v, float)
            else str(v)
            for v in row.values()
        ]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def split_backbones(names: str, weights: Path | None) -> list[tuple[str, Path | None]]:
    """Return each backbone of a text with commas, and the file of its weights.

    Raises:
        OptionError: There are other numbers of files than of backbones.
    """
    backbones = [name.strip() for name in names.split(",") if name.strip()]
    if weights is None:
        return [(name, None) for name in backbones]
    files = str(weights).split(",") if len(backbones) > 1 else [str(weights)]
    if len(files) != len(backbones):
        raise OptionError(
            f"--backbone names {len(backbones)} backbones, --weights {len(files)} files. Give a file for each, in the "
            "same order with commas between, or leave --weights out."
        )
    return [(name, Path(file)) for name, file in zip(backbones, files, strict=True)]

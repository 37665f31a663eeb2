"""Features of images for `vfm doctor`: edges and colors of thumbnails, or the embeddings of a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from vfm_runtime.errors import OptionError

from vfm.data.records import Record
from vfm.embed.models import open_embedder
from vfm.embed.passes import ImageTower, embed_batches
from vfm.embed.sources import SourceImage
from vfm.models.backbone import is_backbone_name
from vfm.tasks.embedding import EmbeddingTask
from vfm.tasks.predictor import TorchPredictor

THUMBNAILS = "edges and colors of thumbnails (histograms of gradients; no model)"
"""Name of the features that take no weights."""

Float = NDArray[np.float32]
_CHUNK = 1000
_TICK = 100
"""Batches after which it is said how far it is."""


def describe_thumbnails(gray: NDArray[np.uint8], colors: NDArray[np.uint8]) -> Float:
    """Return features that take no weights, float32 [N, 1956]: histograms of gradients (HOG), and coarse colors.

    Reference: Dalal and Triggs, Histograms of oriented gradients, 2005.

    Args:
        gray: Thumbnails, uint8 [N, 64, 64].
        colors: Smaller ones, uint8 [N, 16, 16, 3].
    """
    parts = [_describe_edges(gray[i : i + _CHUNK]) for i in range(0, max(len(gray), 1), _CHUNK)]
    coarse = colors.reshape(len(colors), 8, 2, 8, 2, 3).mean(axis=(2, 4)) / 255
    coarse = coarse.reshape(len(colors), -1) - 0.5
    # Norms of the two parts are brought together: there are many more histograms than colors.
    return np.concatenate([np.concatenate(parts) / 7, coarse / 7], axis=1).astype(np.float32)


def _describe_edges(gray: NDArray[np.uint8]) -> Float:
    """Return histograms of 9 directions in cells of 8 pixels, normalized by blocks of 2 x 2, float32 [N, 1764]."""
    values = gray.astype(np.float32)
    down, across = np.gradient(values, axis=(1, 2))
    strength = np.hypot(down, across)
    direction = np.minimum((np.arctan2(down, across) % np.pi * (9 / np.pi)).astype(np.int8), 8)
    cells = np.stack(
        [
            (strength * (direction == k)).reshape(len(gray), 8, 8, 8, 8).sum(axis=(2, 4))
            for k in range(9)
        ],
        axis=-1,
    )
    blocks = np.concatenate(
        [cells[:, :-1, :-1], cells[:, 1:, :-1], cells[:, :-1, 1:], cells[:, 1:, 1:]], axis=-1
    )
    # A flat block has a floor, so that noise does not count as much as edges.
    blocks /= np.linalg.norm(blocks, axis=-1, keepdims=True) + 64
    return blocks.reshape(len(gray), 1764)


def open_tower(
    model: str,
    *,
    base: Path | None = None,
    image_size: int | None = None,
    device: str = "auto",
    trust: Collection[str] = (),
) -> ImageTower:
    """Open a model that embeds: a bundle, a checkpoint, a pair, or the name of a backbone at any size.

    Args:
        model: Name or path of the model, as for `vfm embed`.
        base: File of the backbone's weights, in place of timm's.
        image_size: Side of a backbone's input in pixels; its own by default.
        device: `cpu`, `cuda`, or `auto`.
        trust: Packages besides vfm whose code a checkpoint may name.

    Raises:
        OptionError: The model gives no embeddings, or its size is fixed.
    """
    if image_size is None:
        return open_embedder(model, base=base, device=device, trust=trust)[0]
    if not is_backbone_name(model):
        raise OptionError(
            f"--image-size is {image_size}, but {model} has a size of its own. Leave it out, or name a backbone."
        )
    task = EmbeddingTask(model, image_size=image_size, pretrained=base is None, weights=base)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = TorchPredictor(task.to(device))
    predictor.select_embedding(None, normalize=True)
    return predictor


def embed_records(
    tower: ImageTower,
    records: Sequence[Record],
    batch_size: int,
    progress: Callable[[str], None],
) -> Float:
    """Return the embedding of each image, float32 [N, D]; zeros where the model cannot open it."""
    images = [SourceImage(record.name, {}, part=record) for record in records]
    rows: list[Float | None] = []
    for number, (prepared, vectors) in enumerate(embed_batches(tower, images, batch_size), 1):
        computed = iter(vectors)
        rows += [None if row.reason else next(computed) for row in prepared]
        if number % _TICK == 0:
            progress(f"{len(rows):,} of {len(records):,} images embedded")
    width = next((len(row) for row in rows if row is not None), 1)
    return np.stack([np.zeros(width, np.float32) if row is None else row for row in rows])

"""Rows and queries for the benchmark of search: real embeddings, and draws around each of them.

Embeddings of EfficientNet-Lite0 at 64 pixels of all 70,000 images of Fashion-MNIST and of 2,000 textures of fabric,
reduced to 384 numbers by PCA, each of norm 1; they take 3 minutes of two cores, once. Or embeddings by MiniLM, as
wide, of 72,000 names and definitions of ImageNet's classes. Around each stand 14 rows, with noise as long as the median
distance of the 5th neighbor. Queries are real embeddings around which there are no rows.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from minilm import list_texts, locate_encoder
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from small_baselines import build_net
from small_sets import CACHE, FASHION, _read_idx, open_set
from timm.data import resolve_data_config
from torch.nn import functional as F

from vfm.incontext.conse import TextEncoder

SIDE, WIDTH, DRAWS = 64, 384, 14
NUM_CENTERS, NUM_QUERIES = 72_000, 1000

Vectors = NDArray[np.float32]


def compute_embeddings(name: str, cache: Path = CACHE / "search") -> Vectors:
    """Embeddings [72000, 384] of norm 1 in a fixed random order, kept in a file.

    Args:
        name: Of what: one of `SETS`.
        cache: Folder of the file.
    """
    file = cache / f"{name}-{SIDE}-{WIDTH}.npy"
    if not file.is_file():
        vectors = SETS[name]()
        cache.mkdir(parents=True, exist_ok=True)
        np.save(file, vectors)
    return np.asarray(np.load(file), np.float32)


def embed_images() -> Vectors:
    raw = np.concatenate([_embed(batch) for batch in _iterate_batches()])
    raw = raw[np.random.default_rng(0).permutation(len(raw))]
    return _normalize(PCA(WIDTH, random_state=0).fit_transform(raw))


def embed_texts() -> Vectors:
    return TextEncoder(locate_encoder())(list_texts()[:NUM_CENTERS])


SETS: dict[str, Callable[[], Vectors]] = {"images": embed_images, "texts": embed_texts}


def draw_rows(num_rows: int, name: str = "images", seed: int = 0) -> tuple[Vectors, Vectors]:
    """Rows [num_rows, 384] and queries [1000, 384], all of norm 1.

    Args:
        num_rows: Number of rows, at most 994,000.
        name: Of what: one of `SETS`.
        seed: Seed of the noise.
    """
    embeddings = compute_embeddings(name)
    queries, centers = embeddings[:NUM_QUERIES], embeddings[NUM_QUERIES:]
    centers = centers[: -(-num_rows // DRAWS)]
    noise = measure_noise(embeddings)
    random = np.random.default_rng(seed)
    rows = np.empty((len(centers) * DRAWS, WIDTH), np.float32)
    for start in range(0, len(centers), 1000):
        block = np.repeat(centers[start : start + 1000], DRAWS, axis=0)
        draws = random.standard_normal(block.shape, np.float32)
        rows[start * DRAWS : start * DRAWS + len(block)] = _normalize(
            block + noise * _normalize(draws)
        )
    order = random.permutation(len(rows))[:num_rows]
    return rows[order], queries


def measure_noise(embeddings: Vectors) -> float:
    """Return the median distance of the 5th neighbor, over 1,000 of the embeddings."""
    sample = embeddings[:1000]
    squared = np.maximum(2 - 2 * sample @ embeddings.T, 0)
    return float(np.median(np.sqrt(np.partition(squared, 5, axis=1)[:, 5])))


def _iterate_batches():
    pixels = [
        _read_idx(FASHION / f"{name}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
        for name in ("train", "t10k")
    ]
    clothes = np.concatenate(pixels)
    for start in range(0, len(clothes), 256):
        yield torch.from_numpy(clothes[start : start + 256].copy())[:, None].expand(-1, 3, -1, -1)
    textile = open_set("textile")
    paths = [path for path, _ in textile.pool + textile.test]
    for start in range(0, len(paths), 64):
        images = [
            Image.open(path).convert("RGB").resize((SIDE, SIDE))
            for path in paths[start : start + 64]
        ]
        yield torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(
            0, 3, 1, 2
        )


_NET: list[torch.nn.Module] = []


@torch.inference_mode()
def _embed(batch: torch.Tensor) -> Vectors:
    if not _NET:
        _NET.append(build_net(0).eval().to(memory_format=torch.channels_last))
    images = F.interpolate(batch.float() / 255, (SIDE, SIDE), mode="bicubic", antialias=True)
    config = resolve_data_config({}, model=_NET[0])
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return _NET[0](((images - mean) / std).to(memory_format=torch.channels_last)).numpy()


def _normalize(vectors: Vectors) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

"""Embeddings of a backbone: the head that gives them, and what they are made of."""

from __future__ import annotations

import hashlib

from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.embedding import OUTPUT, EmbeddingSpec

from vfm.models.backbone import Backbone
from vfm.models.heads.embedding import SOURCES, EmbeddingHead
from vfm.models.tensors import compute_checksum
from vfm.preprocess import Preprocess
from vfm.training.fingerprint import compute_fingerprint


def build_embedding_head(
    backbone: Backbone, source: str | None, *, normalize: bool
) -> EmbeddingHead:
    """Return a head that makes vectors of a backbone's features.

    Args:
        backbone: Backbone of any task; it must be told to compute what the head uses (`select_outputs`).
        source: Part of the features; None for the pooled vector, or the mean of the patches where the backbone was
            built for a head without it.
        normalize: Whether vectors are divided by their L2 norm.

    Raises:
        OptionError: There is no such source, or this backbone has no layers for it any more.
    """
    source = source or ("pooled" if backbone.pools else "patches")
    head = EmbeddingHead(source, normalize=normalize)  # type: ignore[arg-type]
    if head.source == "pooled" and not backbone.pools:
        raise OptionError(
            "The head of this model reads no pooled vector, so its backbone has no layers for one. Choices: "
            f"{', '.join(name for name in SOURCES if name != 'pooled')}."
        )
    return head


def describe_embedding(
    backbone: Backbone, preprocess: Preprocess, head: EmbeddingHead
) -> EmbeddingSpec:
    """Return what the vectors of a head on a backbone are made of, with the fingerprint of the model."""
    fingerprint = compute_fingerprint(backbone, preprocess)
    if state := head.state_dict():
        text = fingerprint + compute_checksum(state)
        fingerprint = hashlib.sha256(text.encode()).hexdigest()[:32]
    return EmbeddingSpec(OUTPUT, head.source, head.normalize, fingerprint)

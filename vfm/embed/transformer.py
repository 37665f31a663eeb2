"""Embeddings as a step of a scikit-learn pipeline: images in, vectors out."""

from __future__ import annotations

import os
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from vfm_runtime.bundle.contract import MANIFEST_FILE
from vfm_runtime.bundle.predictor import Predictor

from vfm.embed.models import open_embedder
from vfm.models.heads.embedding import EmbeddingSource

_MOST_BYTES = 256 * 2**20
"""Size of the vectors that are remembered for a model."""


class ImageEmbedder(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turns images into vectors by a model that embeds, for any estimator of scikit-learn behind it.

    It learns nothing. A process embeds each file once, however many heads and folds are tried behind it, and a copy or
    a pickle holds the arguments alone.

        classifier = make_pipeline(ImageEmbedder("bundle"), LogisticRegression())
        GridSearchCV(classifier, {"logisticregression__C": [0.1, 1, 10]}).fit(paths, labels)
    """

    def __init__(
        self,
        model: str = "",
        *,
        source: EmbeddingSource | None = None,
        normalize: bool = True,
        base: str | None = None,
        device: str = "auto",
        batch_size: int = 32,
        trust: Collection[str] = (),
    ) -> None:
        """Take the arguments, which are looked at when images come.

        Args:
            model: Folder of a bundle, checkpoint, or name of a backbone.
            source: Part of the features; None for the usual one.
            normalize: Whether vectors are divided by their L2 norm.
            base: File of the backbone's weights, for an adapter or a name.
            device: `cpu`, `cuda`, or `auto`.
            batch_size: Images that go through the model at once.
            trust: Packages besides vfm whose code a checkpoint may name.
        """
        self.model = model
        self.source = source
        self.normalize = normalize
        self.base = base
        self.device = device
        self.batch_size = batch_size
        self.trust = trust

    def fit(self, images: Sequence[Any], targets: Any = None) -> Self:
        """Learn nothing: the model is fixed."""
        return self

    def transform(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """Return the embeddings of N images, float32 [N, D].

        Args:
            images: Paths, bytes of files or arrays, as `predict` takes them.

        Raises:
            ImageError: An image cannot be opened; no vector stands in for it.
            OptionError: The model does not embed, or not in this way, or there are no images.
        """
        files = [name for name in (self.model, self.base) if name is not None]
        opened = _open_once(
            self.model,
            self.source,
            self.normalize,
            self.base,
            self.device,
            tuple(self.trust),
            tuple(map(_identify, files)),
        )
        return opened.embed(images, self.batch_size)

    def __sklearn_is_fitted__(self) -> bool:
        """Whether images can be transformed: always."""
        return True


@dataclass(frozen=True)
class _OpenedModel:
    """A model with the vectors of the files that it has embedded."""

    predictor: Predictor
    vectors: dict[Hashable, NDArray[np.float32]] = field(default_factory=dict)

    def embed(self, images: Sequence[Any], batch_size: int) -> NDArray[np.float32]:
        sources = [
            os.fspath(image) if isinstance(image, os.PathLike) else image for image in images
        ]
        keys = [_identify(source) if isinstance(source, str) else None for source in sources]
        new = [i for i, key in enumerate(keys) if key is None or key not in self.vectors]
        if not new and sources:
            return np.stack([self.vectors[key] for key in keys])
        # The base's method: the one for torch would choose its default vector again.
        chosen = [sources[i] for i in new]
        computed = Predictor.embed(self.predictor, chosen, batch_size=batch_size)
        of_new = dict(zip(new, computed, strict=True))
        rows = [of_new[i] if i in of_new else self.vectors[key] for i, key in enumerate(keys)]
        for i, vector in of_new.items():
            if keys[i] is not None and (len(self.vectors) + 1) * vector.nbytes <= _MOST_BYTES:
                self.vectors[keys[i]] = vector
        return np.stack(rows)


# Searches over parameters copy their steps for every fit; the model and what it has seen are shared by the copies.
@lru_cache(maxsize=2)
def _open_once(
    model: str,
    source: EmbeddingSource | None,
    normalize: bool,
    base: str | None,
    device: str,
    trust: tuple[str, ...],
    files: tuple[Hashable, ...],
) -> _OpenedModel:
    """Open a model; `files` tells one that was replaced meanwhile from the one before."""
    path = None if base is None else Path(base)
    predictor, _ = open_embedder(
        model, source=source, normalize=normalize, base=path, device=device, trust=trust
    )
    return _OpenedModel(predictor)


def _identify(name: str) -> Hashable:
    """Return what changes with a file, or with a bundle by its manifest; the name of what is no file."""
    path = Path(name)
    path = path / MANIFEST_FILE if path.is_dir() else path
    try:
        status = path.stat()
    except OSError:
        return name
    return str(path.absolute()), status.st_size, status.st_mtime_ns

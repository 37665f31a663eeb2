"""Taught classes: teach, forget, classify and why, by shrinkage LDA or the nearest class mean of embeddings."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.errors import OptionError, StateError
from vfm_runtime.heads_on_features import AffineHead
from vfm_runtime.media.image import ImageSource, Pixels
from vfm_runtime.search import find_nearest
from vfm_runtime.tasks.classification import LabelPrediction
from vfm_runtime.tasks.embedding import EmbeddingSpec
from vfm_runtime.teaching.head import fit_taught_head
from vfm_runtime.teaching.state import TaughtExample, TaughtState, check_labels
from vfm_runtime.teaching.taught import Taught, center_vectors


class EmbeddingModel(Protocol):
    """Model that can be taught: its embedding, and how it opens an image."""

    embedding: EmbeddingSpec | None

    def embed(self, images: Any) -> NDArray[np.float32]:
        """Return the embeddings [N, D] of a list of images."""

    def open_pixels(self, image: ImageSource) -> Pixels:
        """Open one image."""


@dataclass(frozen=True)
class Evidence:
    """An example that an answer rests on."""

    example: TaughtExample
    similarity: float
    """Cosine of both vectors, of whole images with the mean of all examples subtracted."""
    picture: bytes
    """JPEG of the image or box, shrunk; empty where pictures are not kept."""

    def to_dict(self) -> dict[str, Any]:
        """Return the example without its picture, ready for JSON."""
        example = self.example
        values = {"label": example.label, "similarity": self.similarity}
        return {**values, "name": example.name, "sha256": example.sha256}

    def headline(self) -> str:
        """Return the example and its similarity for the shell."""
        example = self.example
        return f"{example.name or example.sha256[:12]} ({example.label}, {self.similarity:.3f})"


@dataclass(frozen=True, eq=False)
class Explanation:
    """The answer of the taught classes for an image, and the examples nearest to it."""

    prediction: LabelPrediction
    evidence: tuple[Evidence, ...]
    version: int
    """Version of the state that answered."""

    def to_dict(self, top: int = 5) -> dict[str, Any]:
        """Return all but the pictures, ready for JSON."""
        prediction = self.prediction
        best = [{"label": label, "score": score} for label, score in prediction.top(top)]
        values = {"label": prediction.label, "score": prediction.score, "top": best}
        return {
            **values,
            "nearest": [one.to_dict() for one in self.evidence],
            "state_version": self.version,
        }

    def lines(self) -> list[str]:
        """Return the answer and the examples for the shell."""
        return [self.prediction.headline() + format_nearest(self.evidence)]


@dataclass(frozen=True, eq=False)
class _Fitted:
    state: TaughtState
    head: AffineHead
    center: NDArray[np.float32]
    """Mean of the vectors of the examples, [D]."""
    scaled: NDArray[np.float32]
    """Vectors of the examples less their mean, of norm 1, [N, D]."""


class TaughtClasses(Taught):
    """Classes that one model was taught, in a folder or in memory; the bundle itself never changes."""

    def __init__(
        self,
        model: EmbeddingModel,
        folder: str | Path | None = None,
        *,
        keep_pictures: bool = False,
    ) -> None:
        """Open the state.

        Args:
            model: Model whose `embed` gives the vectors that classes are taught by.
            folder: Folder of the state; None to keep it in memory.
            keep_pictures: Whether small pictures of examples are kept too, for `why`; else vectors alone.

        Raises:
            OptionError: The model gives no embeddings that say their fingerprint.
            DataError: The state of the folder is damaged, or of another model.
        """
        if model.embedding is None or not model.embedding.fingerprint:
            raise OptionError(
                "This model gives no embeddings that say their fingerprint, and classes are taught by embeddings. "
                "Export it again with --embedding pooled."
            )
        super().__init__(model.embedding.fingerprint, folder, keep_pictures=keep_pictures)
        self._model = model
        self._fitted: _Fitted | None = None

    def teach(self, images_by_label: Mapping[str, Sequence[Any]]) -> TaughtState:
        """Teach classes by images of each; all of them are learned, or none where one cannot be opened.

        A class that was taught before gets more examples. Images that it has already are left out.

        Args:
            images_by_label: Images, as `predict` takes them, by the name of their class.

        Raises:
            ImageError: An image cannot be opened.
            OptionError: A class has no images or no proper name, or there would be too much.
            DataError: An image is an example of another class.
            StateError: The state cannot be written; it stays as it was.
        """
        names = check_labels(list(images_by_label))
        empty = [
            name
            for name, some in zip(names, images_by_label.values(), strict=True)
            if not len(some)
        ]
        if empty or not names:
            raise OptionError(
                f"There are no images of {format_names(empty)}. Give one or more of each class."
            )
        sources = [image for images in images_by_label.values() for image in images]
        labels = [
            name for name, some in zip(names, images_by_label.values(), strict=True) for _ in some
        ]
        vectors = self._model.embed(sources)
        examples = [
            TaughtExample(label, hash_image(source), name_image(source))
            for label, source in zip(labels, sources, strict=True)
        ]
        return self.add(examples, vectors, [self._shrink(source) for source in sources])

    def add(
        self,
        examples: Sequence[TaughtExample],
        vectors: NDArray[np.float32],
        pictures: Sequence[bytes],
    ) -> TaughtState:
        """Add examples whose embeddings [N, D] were computed; errors are those of `teach`."""
        return self.store.change(lambda state: state.add(examples, vectors, pictures))

    def explain(self, vectors: NDArray[np.float32], num_nearest: int = 3) -> list[Explanation]:
        """Answer for embeddings [M, D] by the taught classes, with the nearest examples.

        Raises:
            StateError: Fewer than two classes were taught.
        """
        fitted = self._fit()
        state, labels = fitted.state, fitted.state.labels
        logits = fitted.head.compute_logits(vectors)
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores /= scores.sum(axis=1, keepdims=True)
        explanations = []
        for vector, row in zip(center_vectors(vectors, fitted.center), scores, strict=True):
            similarities = fitted.scaled @ vector
            evidence = tuple(
                Evidence(state.examples[i], float(similarities[i]), state.pictures[i])
                for i in find_nearest(similarities, num_nearest)
            )
            prediction = LabelPrediction.from_scores(row, labels)
            explanations.append(Explanation(prediction, evidence, state.version))
        return explanations

    def _fit(self) -> _Fitted:
        """Fit the head anew where the state has changed."""
        state, fitted = self.store.read(), self._fitted
        if fitted is not None and fitted.state is state:
            return fitted
        labels = state.labels
        if len(labels) < 2 or state.vectors is None:
            raise StateError(
                f"{len(labels)} class{'es' * (len(labels) != 1)} {'were' if len(labels) != 1 else 'was'} taught. Teach "
                "two or more, such as one of all else, so that there is a choice."
            )
        rows = {label: row for row, label in enumerate(labels)}
        target = np.array([rows[example.label] for example in state.examples])
        # The mean in 64 bits, all else in 32: thousands of classes are fitted in a quarter of a second.
        center = state.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
        scaled = center_vectors(state.vectors, center)
        head = fit_taught_head(state.vectors, target, center, scaled)
        fitted = _Fitted(state, head, center, scaled)
        self._fitted = fitted
        return fitted

    def _shrink(self, image: Any) -> bytes:
        return self.shrink_picture(self._model.open_pixels(image)) if self.keeps_pictures else b""


def format_nearest(evidence: Sequence[Evidence]) -> str:
    """Return the examples that an answer rests on, to stand after it; nothing where there are none."""
    nearest = ", ".join(one.headline() for one in evidence)
    return f"; nearest: {nearest}" if nearest else ""


def format_names(names: Sequence[str]) -> str:
    """Return names in quotes, the first of them where they are many."""
    shown = ", ".join(f"'{name}'" for name in names[:5]) or "any class"
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def hash_image(image: Any) -> str:
    """Return the checksum of a file or its bytes, or of the pixels of an image."""
    if isinstance(image, str | Path):
        image = Path(image).read_bytes()
    data = image if isinstance(image, bytes) else np.ascontiguousarray(image).tobytes()
    return hashlib.sha256(data).hexdigest()


def name_image(source: Any) -> str:
    """Return the name of a file without its folders; empty for other images."""
    return Path(source).name if isinstance(source, str | Path) else ""

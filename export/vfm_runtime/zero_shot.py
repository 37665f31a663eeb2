"""Zero-shot classifier: labels by words, with prompt ensembles and a threshold for none of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.heads_on_features import AffineHead
from vfm_runtime.media.image import ImageSource, Pixels
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.classification import ClassificationType
from vfm_runtime.teaching.state import check_labels

TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a {}.")
"""Prompts that a label stands in by default."""
REFUSED = 0.95
"""Fraction of images of none of the labels that a calibrated threshold refuses."""


class TextModel(Protocol):
    """A text tower, whose vectors, of norm 1, are compared with those of images by cosine."""

    @property
    def scale(self) -> float | None:
        """What cosines are multiplied by to be logits."""

    @property
    def bias(self) -> float | None:
        """What is then added, where each label has a probability of its own (SigLIP); None of CLIP."""

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, [M, D]."""


@dataclass(frozen=True)
class ZeroShotAnswer:
    """The answer for one image."""

    label: str | None
    """The most similar label; None where none is similar enough."""
    score: float
    """Probability of the most similar label: among all of them, or by itself where the model was trained so."""
    similarity: float
    """Cosine of the image and that label."""


@dataclass(frozen=True, eq=False)
class ZeroShotClassifier:
    """Vectors of C labels, made of words."""

    labels: tuple[str, ...]
    """Names of the labels."""
    vectors: NDArray[np.float32]
    """[C, D], of norm 1."""
    scale: float
    """What cosines are multiplied by to be logits."""
    bias: float | None
    """What is then added, where each label has a probability of its own."""

    def compute_similarities(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return cosines [N, C] of the vectors of images, [N, D], with the labels."""
        return np.asarray(embeddings @ self.vectors.T, np.float32)

    def make_head(self) -> AffineHead:
        """Return the affine map of vectors of images to logits."""
        bias = np.full(len(self.labels), self.bias or 0.0)
        return AffineHead(self.scale * self.vectors.astype(np.float64), bias)

    def score(self, embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return probabilities [N, C] of the labels, for the vectors of images, [N, D]."""
        logits = self.make_head().compute_logits(embeddings)
        if self.bias is not None:
            return np.asarray(1 / (1 + np.exp(-logits)))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def answer(
        self, embeddings: NDArray[np.float32], none_below: float | None = None
    ) -> list[ZeroShotAnswer]:
        """Answer for images by their vectors, [N, D].

        Args:
            embeddings: Vectors of the images, of norm 1.
            none_below: Cosine below which the most similar label is not similar enough; None to answer always.
        """
        if len(embeddings) == 0:
            return []
        cosines = self.compute_similarities(embeddings)
        scores = self.score(embeddings)
        answers = []
        for row, similar in zip(scores, cosines, strict=True):
            best = int(similar.argmax())
            is_none = none_below is not None and similar[best] < none_below
            label = None if is_none else self.labels[best]
            answers.append(ZeroShotAnswer(label, float(row[best]), float(similar[best])))
        return answers

    def calibrate(self, embeddings: NDArray[np.float32]) -> float:
        """Return the cosine below which 95 % of images lie that show none of the labels, by their vectors, [N, D].

        Raises:
            DataError: There are fewer than 20 of them.
        """
        if len(embeddings) < 20:
            raise DataError(
                f"There are {len(embeddings)} images of none of the labels that can be read. Give 20 or more, so that "
                "one in twenty can be told."
            )
        return float(np.quantile(self.compute_similarities(embeddings).max(axis=1), REFUSED))


class ZeroShotModel(Predictor):
    """A model of images and texts, asked which of some labels, given as words, an image shows."""

    def __init__(self, model: Predictor, classifier: ZeroShotClassifier) -> None:
        """Take the labels in place of the model's own.

        Args:
            model: Model that embeds images and texts.
            classifier: Labels as vectors of that model.
        """
        super().__init__(ClassificationType(classifier.labels, None), model.batch_size)
        self.value_range, self.embedding = model.value_range, model.embedding
        self._model = model
        self._classifier = classifier

    def prepare(self, image: ImageSource) -> Arrays:
        """Open one image and bring it to the model's size."""
        return self._model.prepare(image)

    def run(self, inputs: Arrays) -> Arrays:
        """Return `scores` [N, C] of what `prepare` has made of one image or of several joined."""
        scores = self._classifier.score(self._model.embed_prepared(inputs))
        return {"scores": scores.astype(np.float32)}

    def open_pixels(self, image: ImageSource) -> Pixels:
        """Open one image as the model does."""
        return self._model.open_pixels(image)


def fit_zero_shot(model: TextModel, prompts: Mapping[str, Sequence[str]]) -> ZeroShotClassifier:
    """Make a classifier of words: the vector of a label is the mean of those of its prompts (Radford et al., 2021).

    Args:
        model: Pair of an image and a text tower.
        prompts: Texts by label, whose vectors are averaged.

    Raises:
        OptionError: The model has no text tower.
    """
    rows = []
    for texts in prompts.values():
        mean = model.embed_text(texts).mean(axis=0)
        rows.append(mean / max(float(np.linalg.norm(mean)), 1e-12))
    assert model.scale is not None  # of what embeds texts
    return ZeroShotClassifier(tuple(prompts), np.stack(rows), model.scale, model.bias)


def make_prompts(labels: Sequence[str], templates: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return each label in each template, in place of `{}`.

    Raises:
        OptionError: There are fewer than two labels, one stands twice, or a template has no `{}`.
    """
    names = check_labels(labels)
    if len(names) < 2:
        raise OptionError(
            f"There is {len(names)} label. Give two or more with commas between, such as --labels cat,dog."
        )
    bad = [template for template in templates if template.count("{}") != 1]
    if bad:
        raise OptionError(
            f"The template '{bad[0]}' has {bad[0].count('{}')} times {{}}, where the label stands. Write it once, such "
            "as 'a photo of a {}.'."
        )
    return {name: [text.replace("{}", name) for text in (templates or TEMPLATES)] for name in names}


def read_prompts(path: Path) -> dict[str, list[str]]:
    """Read the prompts of each label of a JSON file: an object of lists of texts.

    Raises:
        DataError: It is no such file.
        OptionError: There are fewer than two labels, or a name cannot be one.
    """
    example = '{"cat": ["a photo of a cat.", "a kitten."], "dog": ["a photo of a dog."]}'
    try:
        pairs = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=list)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Check its path.") from error
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}). Write it as {example}.") from error
    is_object = isinstance(pairs, list) and all(
        isinstance(pair, tuple)
        and isinstance(pair[1], list)
        and pair[1]
        and all(isinstance(text, str) and text.strip() for text in pair[1])
        for pair in pairs
    )
    if not is_object:
        raise DataError(f"{path} is no object of lists of texts. Write it as {example}.")
    make_prompts([label for label, _ in pairs])
    return {label.strip(): texts for label, texts in pairs}

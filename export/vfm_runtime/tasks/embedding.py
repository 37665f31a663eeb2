"""Embedding: a vector of each image, as the prediction of a bare backbone or beside the predictions of a head."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm_runtime.errors import DataError, OptionError, format_value
from vfm_runtime.tasks.base import Agreement, Arrays, Prediction, PredictionView, TaskType
from vfm_runtime.tasks.confidence import require_finite

OUTPUT = "embedding"
"""Output of the graph that holds the vectors."""

_TINY = 1e-12
_MOST_CHANGE = {False: 1e-4, True: 0.05}
"""Largest distance by cosine of two embeddings of one image, by whether one was computed in fewer bits."""


@dataclass(frozen=True)
class EmbeddingSpec:
    """What an embedding is made of; the contract of a bundle holds it as the extension `embedding`."""

    output: str = OUTPUT
    """Output of the graph that holds the vectors."""
    source: str = ""
    """Part of the features that they are made of, such as `pooled`; empty where the bundle does not say."""
    normalize: bool = False
    """Whether they are divided by their L2 norm."""
    fingerprint: str = ""
    """Checksum of model and preprocessing: vectors of one fingerprint can be compared; empty where it is not said."""

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Read the plain values of a contract.

        Raises:
            OptionError: They are not an output's name and, maybe, the other fields, each of its type.
        """
        types = {"output": str, "source": str, "normalize": bool, "fingerprint": str}
        if (
            not isinstance(values, dict)
            or not {"output"} <= set(values) <= set(types)
            or not all(isinstance(value, types[name]) for name, value in values.items())
            or not re.fullmatch(r"[A-Za-z0-9_]+", values["output"])
        ):
            raise OptionError(f"An embedding is described by {format_value(values)}.")
        return cls(**values)


def measure_cosine(one: ArrayLike, other: ArrayLike) -> NDArray[np.float64]:
    """Return the cosine of vectors [..., D] with others, row by row."""
    a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return np.asarray((a * b).sum(-1) / np.maximum(norms, _TINY), np.float64)


@dataclass(frozen=True, eq=False)
class EmbeddingPrediction(Prediction):
    """The embedding of one image."""

    task: ClassVar[str] = "embedding"
    vector: NDArray[np.float32]
    """float32 [D]."""

    def to_dict(self, view: PredictionView = PredictionView()) -> dict[str, Any]:
        """Return the vector as a list of numbers."""
        return {"task": self.task, "vector": self.vector.tolist()}

    def headline(self, view: PredictionView = PredictionView()) -> str:
        """Return the first numbers of the vector, how many there are, and its norm."""
        first = ", ".join(f"{value:.4f}" for value in self.vector[:4])
        return (
            f"[{first}, ...] of {len(self.vector)} numbers, norm {np.linalg.norm(self.vector):.4f}"
        )

    def compare(self, other: Self, *, approximate: bool = False) -> Agreement:
        """Compare by cosine: the difference is 1 less the cosine."""
        distance = float(1 - measure_cosine(self.vector, other.vector))
        if not np.isfinite(distance):
            distance = float("inf")
        changed = distance > _MOST_CHANGE[approximate]
        return Agreement(max(distance, 0.0), changed, self.headline(), other.headline())

    def to_golden(self) -> dict[str, Any]:
        """Return the vector by the name of the output."""
        return {OUTPUT: self.vector.tolist()}


class EmbeddingType(TaskType):
    """Embeds images; its one label says so, and names no class."""

    name = EmbeddingPrediction.task
    summary = "embeds images"
    outputs: Mapping[str, str] = {OUTPUT: "float"}

    def predictions(self, outputs: Arrays) -> Sequence[EmbeddingPrediction]:
        """Return the embedding of each image."""
        vectors = np.asarray(outputs[OUTPUT], np.float32)
        if len(vectors):
            require_finite("embedding", vectors)
        return [EmbeddingPrediction(vector) for vector in vectors]

    def check_shapes(self, shapes: Mapping[str, Sequence[Any]]) -> None:
        """Refuse a graph whose output is not a vector an image."""
        shape = list(shapes[OUTPUT])
        if len(shape) != 2:
            raise DataError(f"gives embeddings of shape {shape}, not [images, numbers]")

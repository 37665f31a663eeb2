"""Drift reference: histograms of a model's answers before it was shipped, as a bundle's `reference.json` has them."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vfm_runtime.bundle.contract import REFERENCE_FILE, parse_json
from vfm_runtime.errors import DataError, format_value
from vfm_runtime.tasks.base import DRIFT_LABELS, Arrays
from vfm_runtime.validation import is_number, is_whole

_NUM_BINS = 10
_SLACK = 1e-6


@dataclass(frozen=True)
class Histogram:
    """Shares of images by the value of one figure. B bins; checked when made."""

    edges: tuple[float, ...]
    """Upwards, B - 1; a value at an edge belongs to the bin above it."""
    shares: tuple[float, ...]
    """B, adding up to 1."""

    def __post_init__(self) -> None:
        for name in ("edges", "shares"):
            object.__setattr__(self, name, _read_numbers(name, getattr(self, name)))
        if any(low >= high for low, high in pairwise(self.edges)):
            _refuse("edges", self.edges, "numbers of which each is larger than the one before")
        if len(self.shares) != len(self.edges) + 1:
            _refuse("shares", self.shares, f"{len(self.edges) + 1} numbers, one more than edges")
        _check_shares(self.shares)

    @classmethod
    def fit(cls, values: ArrayLike) -> Self:
        """Fit the deciles of values, float [N], at least one; fewer bins where many values are equal."""
        array = np.asarray(values, np.float64)
        cuts = np.quantile(array, np.arange(1, _NUM_BINS) / _NUM_BINS)
        # Nothing lies below an edge at the least value.
        edges = [float(edge) for edge in np.unique(cuts) if edge > array.min()]
        counts = np.bincount(np.searchsorted(edges, array, "right"), minlength=len(edges) + 1)
        return cls(tuple(edges), tuple((counts / len(array)).tolist()))

    def find_bins(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Return the bin of each of some values, float [N], as int64 [N]."""
        return np.searchsorted(self.edges, values, "right").astype(np.int64)


@dataclass(frozen=True)
class DriftReference:
    """Histograms and label shares to compare later answers with; checked when made."""

    num_images: int
    """Images that it was made from, none of which the model has learned from."""
    histograms: dict[str, Histogram]
    """By the name of the figure: `component_0` and so on, `distance`, `score`."""
    labels: dict[str, tuple[float, ...]]
    """Share of the images of which each label is the best one, by the name of the figure."""

    def __post_init__(self) -> None:
        if not is_whole(self.num_images) or not 1 <= self.num_images <= sys.maxsize:
            _refuse("num_images", self.num_images, f"a whole number from 1 to {sys.maxsize}")
        if not self.histograms and not self.labels:
            _refuse("histograms", self.histograms, "at least one figure")
        for name, shares in self.labels.items():
            _check_shares(_read_numbers(name, shares))

    @classmethod
    def fit(cls, values: Arrays, num_labels: Mapping[str, int]) -> Self:
        """Fit the reference to drift values of images that the model has not learned from.

        Args:
            values: Drift values of all images by name, as `TaskType.drift_values` gives them.
            num_labels: Number of labels of each head by its name; the name of a single one is empty.
        """
        histograms, labels = {}, {}
        for name, column in values.items():
            head, _, figure = name.rpartition(".")
            if figure == DRIFT_LABELS:
                counts = np.bincount(column, minlength=num_labels[head])
                labels[name] = tuple((counts / len(column)).tolist())
            else:
                histograms[name] = Histogram.fit(column)
        return cls(len(next(iter(values.values()))), histograms, labels)

    def to_dict(self) -> dict[str, Any]:
        """Return the reference as plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build a reference from what `to_dict` returned, and check every value, with a DataError."""
        _check_keys("reference", values, ("num_images", "histograms", "labels"))
        for name in ("histograms", "labels"):
            if not isinstance(values[name], Mapping):
                _refuse(name, values[name], "an object")
        histograms = {}
        for name, one in values["histograms"].items():
            _check_keys(name, one, ("edges", "shares"))
            histograms[name] = Histogram(one["edges"], one["shares"])
        labels = {name: _read_numbers(name, shares) for name, shares in values["labels"].items()}
        return cls(values["num_images"], histograms, labels)

    def check_labels(self, num_labels: Mapping[str, int]) -> None:
        """Refuse shares that are not one a label, with a DataError; `num_labels` is as for `fit`."""
        for name, shares in self.labels.items():
            number = num_labels.get(name.rpartition(".")[0])
            if len(shares) != number:
                _refuse(name, list(shares), f"as many shares as the model has labels, {number}")

    @classmethod
    def load(cls, bundle: str | Path) -> Self:
        """Read the `reference.json` in the folder of a bundle.

        Raises:
            DataError: There is none, or it is damaged.
        """
        path = Path(bundle) / REFERENCE_FILE
        if not path.is_file():
            raise DataError(
                f"{bundle} has no {REFERENCE_FILE}, so there is nothing to tell drift by. Export the bundle anew with "
                "a reference."
            )
        try:
            return cls.from_dict(parse_json(path.read_bytes()))
        except ValueError as error:
            raise DataError(f"{path} is no reference: {error}") from error

    def write(self, folder: Path) -> None:
        """Write `reference.json` into the folder of a bundle."""
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        (folder / REFERENCE_FILE).write_text(text, encoding="utf-8")


def _read_numbers(name: str, values: object) -> tuple[float, ...]:
    if not isinstance(values, list | tuple):
        _refuse(name, values, "a list of numbers")
    for value in values:
        if not is_number(value):
            _refuse(name, value, "numbers that are finite")
    return tuple(float(value) for value in values)


def _check_shares(shares: Sequence[float]) -> None:
    if not shares or min(shares) < 0 or abs(sum(shares) - 1) > _SLACK:
        _refuse("shares", list(shares), "numbers from 0 that add up to 1")


def _check_keys(name: str, values: object, keys: Sequence[str]) -> None:
    if not isinstance(values, Mapping) or set(values) != set(keys):
        _refuse(name, values, f"an object with the keys {', '.join(keys)}")


def _refuse(name: str, value: object, expected: str) -> NoReturn:
    raise DataError(f"The reference's '{name}' is {format_value(value)}; expected {expected}.")

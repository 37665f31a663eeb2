"""The contracts between the layers: what data gives a task, a backbone gives a head, a head gives a loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, Protocol, Self, TypedDict, TypeVar

import torch
from torch import Tensor
from vfm_runtime.errors import MismatchError

Raw = dict[str, Tensor]
"""What a head's forward gives: named tensors, before they are decoded to an answer."""

StepKey = tuple[int, int, int, int]
"""Where in a training a step is: seed of the data, epoch, index of the batch in its epoch, and rank."""

T = TypeVar("T")


class Target(Protocol):
    """What a batch's images are to teach: a NamedTuple of tensors, which DataLoader and Trainer can move.

    Each task has a type of its own, that its data fills and its loss reads; what lies between them looks at this alone.
    """

    @property
    def loss_divisor(self) -> int:
        """Number that a batch's summed loss is divided by, such as that of its images."""

    def select(self, position: int) -> Self:
        """The target of one image alone."""

    def _asdict(self) -> dict[str, Any]:
        """The tensors by name, from which the type can be made again."""


class Labels(NamedTuple):
    """The label of each image. N images, C label names."""

    label: Tensor
    """int64 [N], index into the data's label names, -1 where there is none; float32 [N, C], fractions of the labels,
    where images were mixed."""

    @property
    def loss_divisor(self) -> int:
        """Number of images."""
        return len(self.label)

    def select(self, position: int) -> Self:
        """The label of one image."""
        return self._replace(label=self.label[position : position + 1])


class MultiLabels(Labels):
    """The labels of each image, of which several or none may apply: `label` is float32 [N, C] of zeros and ones."""

    __slots__ = ()


class Objects(NamedTuple):
    """The objects of a batch's images, those of the first image first. T objects, N images."""

    boxes: Tensor
    """float32 [T, 4], center x and y, width and height, as fractions of the model's input."""
    labels: Tensor
    """int64 [T], index into the data's label names."""
    counts: Tensor
    """int64 [N], objects of each image."""

    @property
    def loss_divisor(self) -> int:
        """Number of objects: by these a detector's loss is normalised."""
        return len(self.labels)

    def select(self, position: int) -> Self:
        """The objects of one image."""
        start = int(self.counts[:position].sum())
        part = slice(start, start + int(self.counts[position]))
        counts = self.counts[position : position + 1]
        return self._replace(boxes=self.boxes[part], labels=self.labels[part], counts=counts)


class Batch(TypedDict):
    """Images of one size with their target. Files that could not be read are not in it, but listed."""

    image: Tensor
    """uint8 [N, H, W, 3], RGB, already at the model's size; [N, 0, 0, 3] where `features` stand in."""
    features: NotRequired[dict[str, Tensor]]
    """Fields of `Features` that a frozen backbone gave for these images."""
    target: Target
    """What the images are to teach; `require_target` gives it in the type that a loss or a task reads."""
    geometry: NotRequired[Tensor]
    """float32 [N, 6], where each image lies in its original, as `vfm.preprocess.Geometry.to_row` gives it."""
    index: Tensor
    """int64 [N], position of each sample in its split."""
    name: list[str]
    """Path or name of each sample."""
    texts: NotRequired[list[str]]
    """What is written of each image; empty of one of which nothing is."""
    skipped: list[tuple[str, str]]
    """Name and reason of each sample of this batch that could not be read."""


def require_target(batch: Batch, kind: type[T], reader: object) -> T:
    """Return the target of a batch, of the type that a loss or task reads.

    Args:
        batch: Images with any target.
        kind: Type that is read, such as `Objects`.
        reader: Loss or task that reads it, for the error.

    Raises:
        TypeError: The target is of another type.
    """
    target = batch["target"]
    if not isinstance(target, kind):
        raise MismatchError(
            f"{type(reader).__name__} reads {kind.__name__}, but the data gives {type(target).__name__}. "
            "Give a loss and data of the same task (--model.loss, --data)."
        )
    return target


def select_image(batch: Batch, position: int) -> Batch:
    """Return a batch of the one image, or of its features, that stands in a row of a batch."""
    part = slice(position, position + 1)
    one = Batch(
        image=batch["image"][part],
        target=batch["target"].select(position),
        index=batch["index"][part],
        name=batch["name"][part],
        skipped=[],
    )
    if "features" in batch:
        one["features"] = {name: values[part] for name, values in batch["features"].items()}
    if "texts" in batch:
        one["texts"] = batch["texts"][part]
    if "geometry" in batch:
        one["geometry"] = batch["geometry"][part]
    return one


@dataclass(frozen=True)
class Features:
    """What every backbone gives, whatever its family. N images, width D, a last grid of h x w."""

    pooled: Tensor
    """[N, D], one vector an image, pooled as the backbone was trained."""
    tokens: Tensor
    """[N, h * w, D'], one vector a place, row by row; class and register tokens are left out."""
    maps: tuple[Tensor, ...]
    """Feature maps [N, D', h, w], finest first; the last one holds the tokens."""
    map_means: Tensor = torch.empty(0)  # noqa: RUF009 - never written to
    """[N, sum of the maps' widths], the mean of each map over its grid, joined; where a head reads it."""
    class_token: Tensor = torch.empty(0)  # noqa: RUF009 - never written to
    """[N, D'], the class token of a transformer after its last norm; where a head reads it."""

    @classmethod
    def fill(cls, fields: Mapping[str, Tensor]) -> Self:
        """Return features of which only some of `pooled`, `tokens` and `map_means` are there; others hold nothing."""
        nothing = torch.empty(0)
        pooled, tokens = (fields.get(name, nothing) for name in ("pooled", "tokens"))
        return cls(pooled, tokens, (), fields.get("map_means", nothing))


@dataclass(frozen=True)
class FeatureInfo:
    """Sizes of `Features`, known before the first image: what a head is built from."""

    width: int
    """D, the width of `pooled`."""
    token_width: int
    """D', the width of `tokens`."""
    map_widths: tuple[int, ...] = ()
    """Width of each of the `maps`."""
    map_strides: tuple[int, ...] = ()
    """Pixels of the input for one place, of each of the `maps`."""

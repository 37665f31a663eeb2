"""Data set of images: from records to samples and batches, as data workers run it."""

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset
from vfm_runtime.media.image import ImageError

from vfm.data.records import Record, read_source
from vfm.data.sampler import Photos
from vfm.data.transforms import TrainTransform
from vfm.preprocess import Preprocess
from vfm.types import Batch, Labels, MultiLabels, Target


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, ready for a batch."""

    image: NDArray[np.uint8]
    """uint8 [h, w, 3], at the model's size."""
    label: NDArray[Any]
    """int64 [], or float32 [C] of zeros and ones where several labels may apply."""
    index: int
    """Position in its split."""
    name: str
    text: str = field(default="", kw_only=True)
    """One of its texts, in training another from epoch to epoch; empty where it has none."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Stands for an image that could not be read."""

    name: str
    reason: str
    target: NDArray[Any]
    """Target of the kind that the batch holds; its values mean nothing."""
    size: tuple[int, int]
    """Height and width that the image would have had, in pixels."""


@dataclass(eq=False)
class ImageDataset(Dataset[Sample | Skipped]):
    """The images of one split; what it gives depends on seed, epoch and index alone."""

    records: Sequence[Record]
    """The images, in the order of the split."""
    preprocess: Preprocess
    """Preprocessing of the model; used alone when there is no transform."""
    transform: TrainTransform | None = None
    """Augmentation, for training."""
    seed: int = 0
    """Seed of the augmentation."""
    num_labels: int = 0
    """C of multi-label targets; not needed where each image has one label."""
    num_views: int = 0
    """Number of augmentations of each image, which epochs take in turn; 0 for a new one in every epoch."""
    photos: Photos | None = field(default=None, init=False)
    """Which records are parts of one photo, in training; None where each is an image of its own."""
    weights: NDArray[np.float64] | None = field(default=None, init=False)
    """How often each record comes in training in proportion to others, [N]; None for all alike."""

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | Skipped:
        """One image, by its index, or by a pair of epoch and index as `EpochSampler` gives."""
        epoch, index = key if isinstance(key, tuple) else (0, key)
        return self.open_sample(index, epoch, read_source(self.records[index % len(self)]))

    def open_sample(
        self, index: int, epoch: int, source: str | bytes | NDArray[np.uint8]
    ) -> Sample | Skipped:
        """One image, from what its record names or the bytes that were read from there.

        Args:
            index: Position in the split; of the r-th repetition in an epoch r N higher, as `EpochSampler` has it.
            epoch: Epoch, which decides on the augmentation.
            source: Path, bytes or pixels, as `open_image` takes them.
        """
        record = self.records[index % len(self)]
        if self.num_views:
            epoch, index = epoch % self.num_views, index % len(self)
        target = np.array(record.label)
        if isinstance(record.label, tuple):
            target = np.zeros(self.num_labels, dtype=np.float32)
            target[list(record.label)] = 1
        try:
            if self.transform is None:
                pixels = self.preprocess.resize(self.preprocess.open(source))[0]
            else:
                pixels = self.transform(source, sample_seed(self.seed, epoch, index))
        except ImageError as error:
            return Skipped(record.name, error.reason, target, self.preprocess.size)
        seed = None if self.transform is None else self.seed
        text = choose_text(record, seed, epoch, index)
        return Sample(pixels, target, index % len(self), record.name, text=text)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Seed of one sample's augmentation, 64 bits, unrelated to those of its neighbours."""
    packed = struct.pack("<qqq", seed, epoch, index)
    return int.from_bytes(hashlib.blake2b(packed, digest_size=8).digest(), "little")


def choose_text(record: Record, seed: int | None, epoch: int, index: int) -> str:
    """Choose a text of an image: the first, or with a seed another from epoch to epoch; empty where there is none."""
    texts = record.texts
    if seed is None or len(texts) < 2:
        return texts[0] if texts else ""
    # The high bits: the low ones begin the augmentation.
    return texts[(sample_seed(seed, epoch, index) >> 32) % len(texts)]


def collate(samples: Sequence[Sample | Skipped | Batch]) -> Batch:
    """Join samples to a batch; what is one already stays as it is.

    Unreadable ones are listed and leave the batch smaller, down to none; another image never takes
    their place, since that would count some images twice.
    """
    if isinstance(samples[0], dict):
        return samples[0]
    good = [sample for sample in samples if isinstance(sample, Sample)]
    bad = [sample for sample in samples if isinstance(sample, Skipped)]
    label = np.stack([s.label for s in good]) if good else np.stack([s.target for s in bad])[:0]
    kind = MultiLabels if label.ndim == 2 else Labels
    batch = build_batch(good, bad, kind(torch.from_numpy(label)))
    if any(sample.text for sample in good):
        batch["texts"] = [sample.text for sample in good]
    return batch


def build_batch(good: Sequence[Any], bad: Sequence[Skipped], target: Target) -> Batch:
    """A batch of samples that have image, index and name, and their target; it lists the unreadable ones."""
    images = [s.image for s in good] or [np.zeros((*bad[0].size, 3), np.uint8)]
    return Batch(
        image=torch.from_numpy(np.stack(images)[: len(good)]),
        target=target,
        index=torch.tensor([s.index for s in good], dtype=torch.int64),
        name=[s.name for s in good],
        skipped=[(s.name, s.reason) for s in bad],
    )

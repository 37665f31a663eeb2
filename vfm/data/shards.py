"""Webdataset shards, local or on any file system of fsspec: read from front to back, every image once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import islice
from typing import Any, Unpack

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info
from vfm_runtime.errors import OptionError

from vfm.data.base import ImageData
from vfm.data.dataset import ImageDataset, Sample, Skipped, collate
from vfm.data.loader import Position, ResumableLoader, leave_finished_epoch
from vfm.data.options import LoaderOptions
from vfm.data.records import Record
from vfm.data.tar import ShardError, TarImage, TarSample, expand_shards, list_shards, read_images
from vfm.data.transforms import Augment
from vfm.types import Batch

_START = Position(0, 0)


class ShardData(ImageData):
    """Images in webdataset shards: tar files in which `KEY.jpg` and its label `KEY.cls` follow each other.

    Each process and worker reads a part of its own of the epoch's shards from front to back; together they give every
    image once (a few twice, where the processes would get unequal numbers). Shards come in a new order every epoch,
    and images within a window. The window mixes neighbours alone: write shards in random order. How images fall into
    batches depends on the number of processes and workers, so a run is repeated by the same numbers.
    """

    def __init__(
        self,
        train: str,
        *,
        val: str | None = None,
        test: str | None = None,
        label_file: str | None = "cls",
        label_names: Sequence[str] = (),
        shuffle: int = 1000,
        augment: Augment = "standard",
        **options: Unpack[LoaderOptions],
    ) -> None:
        """Make the data module; the shards' headers are read by `setup`, once, and kept in ~/.cache/vfm ($VFM_CACHE).

        Args:
            train: Shards to train on: a path or URL with `*` or with numbers such as `{000..127}`, or several by `::`.
            val: Shards to validate on.
            test: Shards for the test.
            label_file: Ending of the files that hold labels: a number or a name. null: no labels are read, as for a
                pretraining.
            label_names: Names of the classes by number; by default the numbers or names found.
            shuffle: Images of the window from which the next one is drawn, in each worker.
            augment: Augmentation of training images, as for `ImageData`.
            **options: Options of every data module.

        Raises:
            ValueError: An argument lies outside its range.
        """
        super().__init__(augment=augment, **options)
        if shuffle < 1:
            raise OptionError(f"shuffle is {shuffle}. Give the size of the window, 1 or more.")
        self.patterns = {"train": train, "val": val, "test": test}
        self.label_file = label_file
        self.label_names = tuple(label_names)
        self.shuffle = shuffle

    def read(self) -> dict[str, list[Record]]:
        """List the samples of all shards."""
        # No name of a file ends in a slash, so that no label is read where none is asked for.
        samples = {
            split: list_shards(expand_shards(pattern), self.label_file or "/")
            for split, pattern in self.patterns.items()
            if pattern is not None
        }
        names = {sample.label for sample in samples["train"] if sample.label is not None}
        numeric = all(name.isdigit() for name in names)
        self.labels = self.label_names or tuple(sorted(names, key=int if numeric else None))
        numbers = {name: number for number, name in enumerate(self.labels)}
        return {
            split: [Record(s.image, self._find_label(s, numbers), s.key) for s in of_split]
            for split, of_split in samples.items()
        }

    def read_predict(self) -> list[Record]:
        """The test shards, or else the validation shards."""
        self._read_once()
        return self.records.get("test") or self.records.get("val") or []

    def remedy(self, split: str) -> str:
        """Name the option."""
        return f"Give --data.{split} 'shards-{{000..009}}.tar'."

    def train_dataloader(self) -> ResumableLoader:
        """Batches in a new order every epoch, augmented, resumable with the same numbers of processes and workers."""
        if "train" in self.stored:
            return super().train_dataloader()
        leave_finished_epoch(self.trainer)
        images = self._pack(self._build_training_dataset(), "train")
        return self._build_shard_loader("train", images, self.shuffle, self._find_position)

    def _build_eval_loader(self, dataset: Any, split: str) -> Any:
        if not isinstance(dataset, ImageDataset):
            return super()._build_eval_loader(dataset, split)
        return self._build_shard_loader(split, dataset, 1, lambda: _START)

    def _build_shard_loader(
        self, split: str, images: ImageDataset, window: int, position: Callable[[], Position]
    ) -> ShardLoader:
        rank, world = self._rank_and_world
        stream = ShardStream(
            images,
            batch_size=self.batch_size,
            window=window,
            order=split == "train" and window > 1,
            rank=rank,
            world=world,
        )
        options = self._choose_loader_options(split) | {"batch_size": None, "collate_fn": None}
        # The position goes to the workers when they start.
        return ShardLoader(stream, position=position, **(options | {"persistent_workers": False}))

    def _find_label(self, sample: TarSample, numbers: dict[str, int]) -> int:
        label = sample.label
        if self.label_file is None:
            return -1
        if label is None:
            raise ShardError(
                f"'{sample.key}' in {sample.image.shard} has no file '{sample.key}.{self.label_file}' with its label. "
                "Name the ending of the label files with --data.label_file."
            )
        if self.label_names and label.isdigit() and int(label) < len(self.label_names):
            return int(label)
        if label not in numbers:
            raise ShardError(
                f"'{sample.key}' in {sample.image.shard} has the label '{label}', which is none of "
                f"{', '.join(list(numbers)[:8])}. Mend the shard or --data.label_names."
            )
        return numbers[label]


@dataclass(eq=False)
class ShardStream(IterableDataset[Batch]):
    """The batches of one process, cut out of the epoch's one sequence of shards."""

    images: ImageDataset
    """Images in tar files, those of a shard together."""
    _: KW_ONLY
    batch_size: int
    """Images in a batch of each process."""
    window: int
    """Number of images from which the next one is drawn."""
    order: bool
    """Whether shards come in a new order every epoch."""
    rank: int
    """Rank of this process."""
    world: int
    """Number of processes."""
    position: Position = _START
    """Where the next iteration starts."""

    def __len__(self) -> int:
        """Batches of this process, as many as of every other."""
        return -(-self._share // self.batch_size)

    @property
    def _share(self) -> int:
        share = -(-len(self.images) // self.world)
        # Batch norm cannot learn from a last batch of one.
        lonely = self.order and share > 1 and self.batch_size > 1 and share % self.batch_size == 1
        return share - lonely

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this worker, from the position on."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        epoch, done = self.position
        mine = range(worker, len(self), workers)
        first = sum(len(range(w, len(self), workers)) for w in range(worker)) * self.batch_size
        share = self._order_images(epoch)[first : first + len(mine) * self.batch_size]
        generator = np.random.default_rng([self.images.seed, epoch, self.rank, worker])
        plan = _shuffle_in_window(share, self.window, generator)
        skip = len(range(worker, min(done, len(self)), workers)) * self.batch_size
        samples = self._read_samples(share, plan[skip:], epoch)
        while group := list(islice(samples, self.batch_size)):
            yield collate(group)

    def _order_images(self, epoch: int) -> list[int]:
        """Positions of this process's images, shard after shard; it wraps around, so that all get equally many."""
        shards: dict[str, list[int]] = {}
        for i in range(len(self.images)):
            shards.setdefault(self._get_source(i).shard, []).append(i)
        groups = list(shards.values())
        if self.order:
            np.random.default_rng([self.images.seed, epoch]).shuffle(groups)
        everything = [i for group in groups for i in group]
        start = self.rank * (-(-len(everything) // self.world))
        return [everything[i % len(everything)] for i in range(start, start + self._share)]

    def _read_samples(
        self, share: Sequence[int], plan: Sequence[int], epoch: int
    ) -> Iterator[Sample | Skipped]:
        """Read forwards, and give images in the order of the plan."""
        wanted = set(plan)
        ahead = [i for i in share if i in wanted]
        contents = zip(ahead, read_images(self._get_source(i) for i in ahead), strict=True)
        held: dict[int, bytes] = {}
        for i in plan:
            while i not in held:
                j, content = next(contents)
                held[j] = content
            yield self.images.open_sample(i, epoch, held.pop(i))

    def _get_source(self, index: int) -> TarImage:
        source = self.images.records[index].source
        assert isinstance(source, TarImage)
        return source


class ShardLoader(ResumableLoader):
    """A resumable loader of the batches of a `ShardStream`."""

    def __init__(self, dataset: ShardStream, **kwargs: Any) -> None:
        super().__init__(dataset, **kwargs)
        self.stream = dataset
        self._resumed: Position | None = None

    def __iter__(self) -> Any:
        """Start at the position that was loaded, or else where training stands.

        A generator: Lightning makes iterators that it never uses, and asks for one before it names the epoch.
        """
        self.stream.position = self._resumed or self.position()
        self._resumed = None
        yield from super().__iter__()

    @property
    def epoch_numbers(self) -> dict[str, int]:
        """What must be equal for a position to mean the same samples, by names for a message."""
        return {
            "num_images": len(self.stream.images),
            "batch_size": self.stream.batch_size,
            "num_processes": self.stream.world,
            "num_workers": self.num_workers,
        }

    def start_at(self, position: Position) -> None:
        """Make the next iteration start at a position."""
        self._resumed = position


def _shuffle_in_window(
    items: Sequence[int], window: int, generator: np.random.Generator
) -> list[int]:
    """The items in the order in which a window that slides over them gives them."""
    if window == 1:
        return list(items)
    held, drawn = list(items[:window]), []
    for item in items[window:]:
        position = int(generator.integers(len(held)))
        drawn.append(held[position])
        held[position] = item
    generator.shuffle(held)
    return drawn + held

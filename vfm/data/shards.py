"""Webdataset shards, local or on any file system of fsspec: read from front to back, every image once an epoch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
from fsspec.core import url_to_fs
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from vfm_runtime.errors import DataError, OptionError

from vfm.data.base import ImageData
from vfm.data.dataset import ImageDataset, Record, Sample, Skipped, collate
from vfm.data.loader import Position
from vfm.data.tar import ShardError, TarImage, TarSample, list_shard, read_at
from vfm.data.transforms import Augment
from vfm.types import Batch

_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")


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
        label_file: str = "cls",
        label_names: Sequence[str] = (),
        shuffle: int = 1000,
        batch_size: int = 32,
        num_workers: int | None = None,
        augment: Augment = "standard",
        seed: int = 0,
    ) -> None:
        """Make the data module; the shards' headers are read by `setup`, once, and kept in ~/.cache/vfm ($VFM_CACHE).

        Args:
            train: Shards to train on: a path or URL with `*` or with numbers such as `{000..127}`, or several by `::`.
            val: Shards to validate on.
            test: Shards for the test.
            label_file: Ending of the files that hold labels: a number or a name.
            label_names: Names of the classes by number; by default the numbers or names found.
            shuffle: Images of the window from which the next one is drawn, in each worker.
            batch_size: Images in a batch, on each process.
            num_workers: Processes that open images, as for `ImageData`.
            augment: Augmentation of training images, as for `ImageData`.
            seed: Of order and augmentation.

        Raises:
            ValueError: An argument lies outside its range.
        """
        super().__init__(batch_size=batch_size, num_workers=num_workers, augment=augment, seed=seed)
        if shuffle < 1:
            raise OptionError(f"shuffle is {shuffle}. Give the size of the window, 1 or more.")
        self.patterns = {"train": train, "val": val, "test": test}
        self.label_file = label_file
        self.label_names = tuple(label_names)
        self.shuffle = shuffle

    def read(self) -> dict[str, list[Record]]:
        """List the samples of all shards."""
        members = {
            split: [m for url in expand(pattern) for m in list_shard(url, self.label_file)]
            for split, pattern in self.patterns.items()
            if pattern is not None
        }
        self.labels = self.label_names or _names(members["train"])
        places = {name: i for i, name in enumerate(self.labels)}
        return {
            split: [Record(m.image, self._label(m, places), m.key) for m in found]
            for split, found in members.items()
        }

    def read_predict(self) -> list[Record]:
        """The test shards, or else the validation shards."""
        records = self.read()
        return records.get("test") or records.get("val") or []

    def remedy(self, split: str) -> str:
        """Name the option."""
        return f"Give --data.{split} 'shards-{{000..009}}.tar'."

    def train_dataloader(self) -> Any:
        """Batches in a new order every epoch, augmented, resumable with the same numbers of processes and workers."""
        self._leave_finished_epoch()
        if "train" in self.stored:
            return super().train_dataloader()
        images = self._build_training_dataset()
        return self._stream("train", images, self.shuffle, self._position)

    def _eval_loader(self, dataset: Any, split: str) -> Any:
        if not isinstance(dataset, ImageDataset):
            return super()._eval_loader(dataset, split)
        return self._stream(split, dataset, 1, lambda: Position(0, 0))

    def _stream(
        self, split: str, images: ImageDataset, window: int, position: Callable[[], Position]
    ) -> ShardLoader:
        rank, world = self._place()
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

    def _label(self, member: TarSample, places: dict[str, int]) -> int:
        given = member.label
        if given is None:
            raise ShardError(
                f"'{member.key}' in {member.image.shard} has no file '{member.key}.{self.label_file}' with its label. "
                "Name the ending of the label files with --data.label_file."
            )
        if self.label_names and given.isdigit() and int(given) < len(self.label_names):
            return int(given)
        if given not in places:
            raise ShardError(
                f"'{member.key}' in {member.image.shard} has the label '{given}', which is none of "
                f"{', '.join(list(places)[:8])}. Mend the shard or --data.label_names."
            )
        return places[given]


class ShardStream(IterableDataset[Batch]):
    """The batches of one process, cut out of the epoch's one sequence of shards."""

    def __init__(
        self,
        images: ImageDataset,
        *,
        batch_size: int,
        window: int,
        order: bool,
        rank: int,
        world: int,
    ) -> None:
        """Cut the sequence.

        Args:
            images: Of packed records, those of a shard together.
            batch_size: Of each process.
            window: Images from which the next one is drawn.
            order: Whether shards come in a new order every epoch.
            rank: Of this process.
            world: Number of processes.
        """
        self.images = images
        self.batch_size = batch_size
        self.window = window
        self.order = order
        self.rank = rank
        self.world = world
        self.position = Position(0, 0)

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
        share = self._sequence(epoch)[first : first + len(mine) * self.batch_size]
        generator = np.random.default_rng([self.images.seed, epoch, self.rank, worker])
        plan = _drawn(share, self.window, generator)
        skip = len(range(worker, min(done, len(self)), workers)) * self.batch_size
        samples = self._read(share, plan[skip:], epoch)
        while group := list(islice(samples, self.batch_size)):
            yield collate(group)

    def _sequence(self, epoch: int) -> list[int]:
        """Positions of this process's images, shard after shard; it wraps around, so that all get equally many."""
        shards: dict[str, list[int]] = {}
        for i, record in enumerate(self.images.records):
            assert isinstance(record.source, TarImage)
            shards.setdefault(record.source.shard, []).append(i)
        groups = list(shards.values())
        if self.order:
            np.random.default_rng([self.images.seed, epoch]).shuffle(groups)
        everything = [i for group in groups for i in group]
        start = self.rank * (-(-len(everything) // self.world))
        return [everything[i % len(everything)] for i in range(start, start + self._share)]

    def _read(
        self, share: Sequence[int], plan: Sequence[int], epoch: int
    ) -> Iterator[Sample | Skipped]:
        """Read forwards, and give images in the order of the plan."""
        wanted = set(plan)
        ahead = iter([i for i in share if i in wanted])
        held: dict[int, bytes] = {}
        reader = _Reader()
        for i in plan:
            while i not in held:
                j = next(ahead)
                held[j] = reader.read(self.images.records[j].source)
            yield self.images.sample(i, epoch, held.pop(i))
        reader.close()


class ShardLoader(DataLoader[Any]):
    """A loader whose state is a position, as that of a `ResumableLoader`."""

    def __init__(
        self, stream: ShardStream, *, position: Callable[[], Position], **kwargs: Any
    ) -> None:
        super().__init__(stream, **kwargs)
        self.stream = stream
        self.ask = position
        self._resumed: Position | None = None

    def __iter__(self) -> Any:
        """Start at the position that was loaded, or else where training stands.

        A generator: Lightning makes iterators that it never uses, and asks for one before it names the epoch.
        """
        self.stream.position = self._resumed or self.ask()
        self._resumed = None
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """The position, and what must be equal for it to mean the same samples."""
        epoch, batches = self.ask()
        return {"epoch": epoch, "batches": batches, **self._made_of()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a position; the next iteration starts there.

        Raises:
            ValueError: It lies in the middle of an epoch that was cut otherwise.
        """
        now = self._made_of()
        changed = [name for name, value in now.items() if state.get(name) != value]
        if state["batches"] and changed:
            raise DataError(
                "The checkpoint was saved in the middle of an epoch of shards, and since then have changed: "
                + ", ".join(f"{n.replace('_', ' ')} ({state.get(n)} to {now[n]})" for n in changed)
                + ". Resume with the same, or from a checkpoint of the end of an epoch."
            )
        self._resumed = Position(state["epoch"], state["batches"])

    def _made_of(self) -> dict[str, int]:
        return {
            "num_images": len(self.stream.images),
            "batch_size": self.stream.batch_size,
            "num_processes": self.stream.world,
            "num_workers": self.num_workers,
        }


class _Reader:
    """Keeps the shard open that was read last."""

    def __init__(self) -> None:
        self._url = ""
        self._file: Any = None

    def read(self, image: Any) -> bytes:
        if image.shard != self._url:
            self.close()
            self._url, self._file = image.shard, fsspec.open(image.shard, "rb").open()
        return read_at(self._file, image)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def expand(pattern: str) -> list[str]:
    """The shards that a pattern names, sorted.

    Raises:
        ShardError: There are none.
    """
    found = [url for part in pattern.split("::") for url in _expand_one(part)]
    if not found:
        raise ShardError(
            f"No shard matches '{pattern}'. Give a path or URL with * or with numbers such as "
            "train-{000..127}.tar; several are joined by ::"
        )
    return found


def _expand_one(pattern: str) -> list[str]:
    if numbers := _NUMBERS.search(pattern):
        first, last = numbers[1], numbers[2]
        names = (f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1))
        before, after = pattern[: numbers.start()], pattern[numbers.end() :]
        return [url for name in names for url in _expand_one(before + name + after)]
    if "*" not in pattern:
        return [pattern]
    fs, path = url_to_fs(pattern)
    remote = "://" in pattern
    return [fs.unstrip_protocol(p) if remote else str(Path(p)) for p in sorted(fs.glob(path))]


def _names(members: Sequence[TarSample]) -> tuple[str, ...]:
    found = {m.label for m in members if m.label is not None}
    if all(label.isdigit() for label in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


def _drawn(items: Sequence[int], window: int, generator: np.random.Generator) -> list[int]:
    """The items in the order in which a window that slides over them gives them."""
    if window == 1:
        return list(items)
    held, drawn = list(items[:window]), []
    for item in items[window:]:
        place = int(generator.integers(len(held)))
        drawn.append(held[place])
        held[place] = item
    generator.shuffle(held)
    return drawn + held

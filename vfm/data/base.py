"""Base of the data modules: reads records once, checks them, and gives loaders."""

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.tasks.tiling import Tiling

from vfm.data.balance import compute_balance_weights
from vfm.data.dataset import ImageDataset, Sample, Skipped, collate
from vfm.data.feature_dataset import StoredFeatures
from vfm.data.loader import Position, ResumableLoader, leave_finished_epoch
from vfm.data.options import LOADER_DEFAULTS, LoaderOptions
from vfm.data.packed_records import pack_dataset
from vfm.data.records import (
    Record,
    check_classes,
    describe_content,
    describe_record,
    list_labels,
    read_mtime,
)
from vfm.data.sampler import EpochSampler
from vfm.data.splits import check_folds, complete_splits, draw_folds
from vfm.data.transforms import Augment, TrainTransform, check_augment
from vfm.data.workers import allow_pixels, pause_gc, prepare_worker, warn_of_small_memory
from vfm.preprocess import Preprocess, check_bit_depth
from vfm.spec import Component, Spec
from vfm.types import Batch

_STAGE_SPLIT = {"fit": "train", "validate": "val", "test": "test"}
_MOST_WORKERS = 8
_FEW_IMAGES = 1000


class ImageData(LightningDataModule, Component, ABC):
    """Images with labels, in splits.

    A subclass implements `read`; everything else follows. The task sets `preprocess` before loaders are made.
    """

    option_defaults: ClassVar[LoaderOptions] = LOADER_DEFAULTS
    """Defaults of the constructor's `**options`."""
    default_augment: ClassVar[Augment] = "standard"
    """Augmentation of training images where it is left to `auto`."""
    auto_batch_sizes: ClassVar[tuple[int, int]] = (16, 32)
    """Images in a batch where the user gives no number: for few training images, and for others."""
    labels: tuple[str, ...] = ()
    """Names of the classes, by label; known after `setup`."""
    records: dict[str, list[Record]]
    """The images of each split; known after `setup`."""
    bit_depth: int | None = None
    """Bits that the values of images of more than 8 bits use; None where the data does not say."""
    tiling: Tiling | None = None
    """How large images are cut into tiles; None where the data does not say."""
    _preprocess: Preprocess | None = None
    multilabel: bool = False
    """Whether several labels, or none, may apply to an image; known after `setup`."""
    group_columns: tuple[str, ...] = ()
    """Names of the records' groups."""
    count_tokens: Callable[[Sequence[Record]], NDArray[np.int64]] | None = None
    """Counts the tokens that the longest text of each image takes; a task with a text tower sets it."""
    can_balance: ClassVar[bool] = False
    """Whether `balance` may be asked for."""
    collate: Callable[[Sequence[Any]], Batch] = staticmethod(collate)
    """Joins samples to a batch."""
    stored: dict[str, StoredFeatures]
    """Splits whose images are replaced by the features that a frozen backbone gave for them; the task sets it."""
    val_is_drawn: bool = False
    """Whether the val split was drawn from the training images, to which it may be given back; known after `setup`."""
    num_views: int | None = 0
    """Augmentations of each image, taken in turn by epoch; 0 for ever new ones. None where the data can do no other."""
    leaves_val_out: bool = False
    """Whether a fold stands in the place of a val split that the data states; known after `setup`."""

    def __init__(self, *, augment: Augment = "auto", **options: Unpack[LoaderOptions]) -> None:
        """Make the data module; nothing is read yet.

        Args:
            augment: Augmentation of training images: `none`, `light`, `standard`, `strong`, a list of albumentations'
                transforms as `TrainTransform` takes it, or `auto`: `none` for a head that is solved, else the usual.
            **options: Options of every data module.

        Raises:
            ValueError: An argument lies outside its range.
        """
        super().__init__()
        options = {**self.option_defaults, **options}
        size = options["batch_size"]
        self.chooses_batch_size = size is None
        self.batch_size: int = self.auto_batch_sizes[1] if size is None else size
        self.num_workers = options["num_workers"]
        self.seed = options["seed"]
        self.folds = options.get("folds")
        self.fold = options.get("fold")
        check_folds(self.folds, self.fold)
        self.max_pixels = allow_pixels(options.get("max_pixels"))
        for name, least in (("batch_size", 1), ("num_workers", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise OptionError(f"{name} is {value}. Give {least} or more.")
        self.balance = options.get("balance", "none")
        self.balance_power = options.get("balance_power", 1.0)
        if self.balance != "none" and not self.can_balance:
            raise OptionError(
                f"balance is '{self.balance}', but {type(self).__name__} has no balanced sampling. Leave it out "
                "(--data.balance), or give a table or a folder of labelled images."
            )
        self.has_auto_augment = augment == "auto"
        self.augment = self.default_augment if augment == "auto" else augment
        check_augment(self.augment)
        self.bit_depth = options.get("bit_depth")
        check_bit_depth(self.bit_depth)
        self.records = {}
        self.stored = {}
        self._packed: dict[str, Any] = {}
        self._was_read = False

    @property
    def preprocess(self) -> Preprocess | None:
        """Preprocessing of the model, which the task sets; with bit depth and tiles of the data where it has none."""
        return self._preprocess

    @preprocess.setter
    def preprocess(self, value: Preprocess | None) -> None:
        """Take the preprocessing of the model."""
        if value is not None:
            value = value.add_bit_depth(self.bit_depth).add_tiles(self.tiling)
        self._preprocess = value
        self._cut_records()

    @abstractmethod
    def read(self) -> dict[str, list[Record]]:
        """Find the images, without opening them, and set `labels`.

        Returns:
            The records of `train`, `val`, `test` and `predict`; any may be missing.
        """

    def read_predict(self) -> list[Record]:
        """Find the images that `predict` answers for, without labels; by default those of `predict`, or of `test`."""
        self._read_once()
        return self.records.get("predict") or self.records.get("test", [])

    def remedy(self, split: str) -> str:
        """What to do about a missing split: the end of the error's message."""
        return f"Return '{split}' from {type(self).__name__}.read()."

    @pause_gc()
    def setup(self, stage: str | None = None) -> None:
        """Read the records, once.

        Args:
            stage: `fit`, `validate`, `test` or `predict` as Lightning says; `predict` needs no classes.

        Raises:
            ValueError: What the stage needs is missing, or a class cannot be learned.
        """
        if stage == "predict":
            if "predict" not in self.records:
                self.records["predict"] = self.read_predict()
                self._cut_records()
            return
        if not self._was_read:
            records = self.read()
            check_classes(records, self.labels)
            self.records.update(self._hold_out_fold(records))
            self._cut_records()
            if self.chooses_batch_size and len(self.records.get("train", ())) < _FEW_IMAGES:
                self.batch_size = self.auto_batch_sizes[0]
            self._was_read = True
        if stage in _STAGE_SPLIT:
            self._get_records(_STAGE_SPLIT[stage])
        if stage == "fit":
            self.weigh_records()  # what cannot be balanced is refused before any work

    def weigh_records(self) -> NDArray[np.float64] | None:
        """Return how often each training image comes, or counts, as `balance` says, [N]; None for all alike."""
        records, columns = self._get_records("train"), self.group_columns
        return compute_balance_weights(
            records,
            self.balance,
            columns,
            multilabel=self.multilabel,
            power=self.balance_power,
        )

    @property
    def tiling_in_use(self) -> Tiling | None:
        """How large images are cut into tiles: as the model's preprocessing says, or else the data."""
        return self.tiling if self._preprocess is None else self._preprocess.tiles

    def _cut_records(self) -> None:
        """Cut the images of all splits into tiles, as the preprocessing says, where the data takes them."""

    def count_files(self, split: str) -> int:
        """Count the images of a split as they are on disk."""
        return len(self.records.get(split, ()))

    def keep_split(self, folder: Path) -> Spec:
        """Write to a run's folder what it takes to read the same splits again, and return the spec that does so."""
        return self.spec

    def hold_out(self, fold: int | None) -> Self:
        """Return the same data, not yet read, with another of its folds in the place of val, or none."""
        return type(self)(**self.__dict__["_init_args"] | {"fold": fold})

    def draw_folds(self, folds: int, split: str = "train") -> list[int]:
        """Choose a fold for each image of a split, from 0, by labels, keys and the data's seed.

        Raises:
            DataError: There are fewer images, or groups that stay together, than folds.
        """
        return self._draw_folds(self._get_records(split), folds)

    def give_val_back(self, folds: int) -> None:
        """Train on the val split too where it was drawn, now and from the spec, as `folds` without a `fold` does."""
        if self.val_is_drawn and self.records.get("val"):
            self.folds = self.__dict__["_init_args"]["folds"] = folds
            self.records["train"] = self._hold_out_fold(self.records)["train"]
            del self.records["val"]

    def train_dataloader(self) -> ResumableLoader:
        """Batches in a new order every epoch, augmented, resumable.

        All images take part, but for a last batch of one, another in each epoch: batch norm cannot learn from it.
        """
        leave_finished_epoch(self.trainer)
        rank, world = self._rank_and_world
        dataset = self.stored.get("train") or self._pack(self._build_training_dataset(), "train")
        options: dict[str, Any] = {"seed": self.seed, "rank": rank, "num_replicas": world}
        options["weights"] = self.weigh_records()
        if isinstance(dataset, ImageDataset) and options["weights"] is None:
            options |= {"photos": dataset.photos, "weights": dataset.weights}
        sampler = EpochSampler(len(dataset), shuffle=True, **options)
        # Lightning asks for the first batches of a resumed training before it names the epoch.
        sampler.set_epoch(self._find_position().epoch)
        lonely = len(sampler) > 1 and len(sampler) % self.batch_size == 1 and self.batch_size > 1
        return ResumableLoader(
            dataset,
            position=self._find_position,
            sampler=sampler,
            drop_last=lonely,
            **self._choose_loader_options("train"),
        )

    def val_dataloader(self) -> DataLoader[Sample | Skipped]:
        """Every validation image, in order; over several processes some come twice, by `index`."""
        return self._build_eval_loader(self._choose_dataset("val"), "val")

    def test_dataloader(self) -> DataLoader[Sample | Skipped]:
        """Every test image, in order; over several processes some come twice, by `index`."""
        return self._build_eval_loader(self._choose_dataset("test"), "test")

    def predict_dataloader(self) -> DataLoader[Sample | Skipped]:
        """Every image to answer for, in order."""
        self.setup("predict")
        # Without a sampler: Lightning's own for prediction repeats no image where processes share them.
        return DataLoader(self._choose_dataset("predict"), **self._choose_loader_options("predict"))

    def build_plain_loader(self, split: str) -> DataLoader[Sample | Skipped]:
        """This process's images of a split, in order and without augmentation; some may come twice, by `index`."""
        return self._build_eval_loader(self.build_dataset(split), "images")

    def build_dataset(self, split: str) -> ImageDataset:
        """A split's images, in order and without augmentation, brought to the size of `preprocess`."""
        records = self._get_records(split)
        return ImageDataset(records, self._require_preprocess(), num_labels=self.num_targets)

    @property
    def num_targets(self) -> int:
        """Numbers in a target: one for each label where several may apply to an image, or else 0."""
        return len(self.labels) if self.multilabel else 0

    def fingerprint(self) -> str:
        """A sha256 that changes with images, labels or split; files count by name and size."""
        self._read_once()
        lines: list[str] = []
        # The images of `predict` are known only after a prediction was asked for.
        for split in self.records.keys() - {"predict"}:
            lines += [f"{split}\t{describe_record(record)}" for record in self.records[split]]
        text = repr(self.labels) + "\n".join(sorted(lines))
        return hashlib.sha256(text.encode()).hexdigest()

    def hash_split(self, split: str) -> str:
        """A sha256 of a split's images, their order and, for files, the time of their last change."""
        digest = hashlib.sha256()
        for record in self._get_records(split):
            text = f"{record.name}\t{describe_content(record)}\t{read_mtime(record)}\n"
            digest.update(text.encode())
        return digest.hexdigest()

    def describe(self) -> dict[str, Any]:
        """Class names, and the number of images per split and class, ready for JSON."""
        self._read_once()
        return {
            "data": type(self).__name__,
            "labels": list(self.labels),
            "splits": {split: self._count(records) for split, records in self.records.items()},
            "fingerprint": self.fingerprint(),
        }

    def _count(self, records: Sequence[Record]) -> dict[str, Any]:
        counts = Counter(label for record in records for label in list_labels(record))
        per_class = {label: counts[i] for i, label in enumerate(self.labels)} if counts else {}
        return {"images": len(records), "per_class": per_class}

    def _complete_splits(
        self, splits: dict[str, list[Record]], val_fraction: float, test_fraction: float
    ) -> dict[str, list[Record]]:
        """Draw the splits that the data does not state, class by class."""
        self.val_is_drawn = "val" not in splits
        return complete_splits(
            splits,
            lambda record: (record.key or record.name, list_labels(record)),
            self.labels,
            val_fraction=val_fraction,
            test_fraction=test_fraction,
            seed=self.seed,
        )

    def _pin_split(self, **arguments: Any) -> Spec:
        """Return the spec with the files that a run keeps, which state its splits and so stand for folds too."""
        spec = self.spec
        spec["init_args"] |= {**arguments, "folds": None, "fold": None}
        return spec

    def _hold_out_fold(self, records: dict[str, list[Record]]) -> dict[str, list[Record]]:
        """Put the fold in the place of val; without one, train on the images of all folds."""
        if self.folds is None:
            return records
        images, val = [*records.get("train", [])], records.get("val", [])
        if self.val_is_drawn:
            images, val = [*images, *val], []
            # Tiles stay in the order in which their photo was cut.
            images.sort(key=lambda r: (r.objects is not None and r.key) or r.name)
        elif val and self.fold is not None:
            self._leave_val_out(len(val))
        if self.fold is not None:
            fold_of = self._draw_folds(images, self.folds)
            pairs = list(zip(images, fold_of, strict=True))
            images = [image for image, fold in pairs if fold != self.fold]
            val = [image for image, fold in pairs if fold == self.fold]
            self._warn_of_gaps(images, val)
            self.val_is_drawn = False
        changed = {"train": images, "val": val}
        return {split: images for split, images in (records | changed).items() if images}

    def _leave_val_out(self, num_images: int) -> None:
        """Say that a fold takes the place of a val split that the data states."""
        self.leaves_val_out = True
        warnings.warn(
            f"The val split that the data states, {num_images} images, stays out of the folds: nothing is learned "
            f"from it, and fold {self.fold} is in its place.",
            stacklevel=4,
        )

    def _draw_folds(self, records: Sequence[Record], folds: int) -> list[int]:
        keys = [record.key or record.name for record in records]
        labels = [tuple(sorted(set(list_labels(record)))) for record in records]
        return draw_folds(keys, labels, folds, self.seed)

    def _warn_of_gaps(self, train: Sequence[Record], held_out: Sequence[Record]) -> None:
        """Say which classes are nowhere but in the fold that is held out, and which are not in it."""
        learned = {label for record in train for label in list_labels(record)}
        judged = {label for record in held_out for label in list_labels(record)}
        for labels, text in (
            (judged - learned, "holds out every image of {}. Its model cannot know them."),
            (
                learned - judged,
                "has no image of {}: they have fewer images, or groups, than folds.",
            ),
        ):
            if labels:
                names = ", ".join(f"'{self.labels[label]}'" for label in sorted(labels)[:5])
                classes = f"{len(labels)} of the {len(self.labels)} classes, such as {names}"
                warnings.warn(
                    f"Fold {self.fold} of {self.folds} {text.format(classes)}", stacklevel=4
                )

    def _read_once(self) -> None:
        if not self._was_read:
            self.setup()

    def _build_eval_loader(
        self, dataset: ImageDataset | StoredFeatures, split: str
    ) -> DataLoader[Sample | Skipped]:
        rank, world = self._rank_and_world
        sampler = EpochSampler(len(dataset), shuffle=False, rank=rank, num_replicas=world)
        return DataLoader(dataset, sampler=sampler, **self._choose_loader_options(split))

    def _choose_dataset(self, split: str) -> ImageDataset | StoredFeatures:
        return self.stored.get(split) or self._pack(self.build_dataset(split), split)

    def _pack(self, dataset: ImageDataset, split: str) -> ImageDataset:
        return pack_dataset(dataset, split, self._packed) if self._choose_num_workers() else dataset

    def _build_training_dataset(self) -> ImageDataset:
        preprocess = self._require_preprocess()
        transform = TrainTransform(self.augment, preprocess)
        numbers = self.seed, self.num_targets, self.num_views or 0
        return ImageDataset(self._get_records("train"), preprocess, transform, *numbers)

    def _choose_loader_options(self, split: str) -> dict[str, Any]:
        # What is stored is read in no time; handing it from process to process would take longer.
        workers = 0 if split in self.stored else self._choose_num_workers()
        if workers and self.preprocess is not None:
            height, width = self.preprocess.size
            warn_of_small_memory(workers, self.batch_size * height * width * 3)
        return {
            "batch_size": self.batch_size,
            "num_workers": workers,
            "collate_fn": self.collate,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": workers > 0,
            "worker_init_fn": partial(prepare_worker, max_pixels=self.max_pixels),
        }

    def _choose_num_workers(self) -> int:
        if self.num_workers is not None:
            return self.num_workers
        # A job on a shared machine may be given fewer cores than there are; macOS cannot tell.
        shared = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if shared else os.cpu_count() or 1
        processes = self.trainer.num_devices if self.trainer is not None else 1
        return min(_MOST_WORKERS, max(0, cores // processes - 1))

    def _get_records(self, split: str) -> list[Record]:
        if split != "predict":
            self._read_once()
        records = self.records.get(split)
        if not records:
            sizes = ", ".join(f"{len(r)} {s}" for s, r in self.records.items() if r)
            remedy = self.remedy(split)
            if split == "val" and self.folds is not None:
                remedy = (
                    "The images of all folds are trained on (metrics of a solved head: 'out_of_fold' in results.json): "
                    "name the fold to validate on (--data.fold 0), or set limit_val_batches=0 in the trainer."
                )
            raise DataError(
                f"There are no {split} images; found: {sizes or 'none at all'}. {remedy}"
            )
        return records

    def _require_preprocess(self) -> Preprocess:
        if self.preprocess is None:
            raise DataError(
                f"{type(self).__name__} does not know the size of the model's input. A task sets it in its setup(); "
                "without a task, say data.preprocess = Preprocess(size=(224, 224)) before asking for a loader."
            )
        return self.preprocess

    @property
    def _rank_and_world(self) -> tuple[int, int]:
        """Rank of this process and number of processes."""
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _find_position(self) -> Position:
        """How far the trainer has come; the end of an epoch is the start of the next."""
        if self.trainer is None:
            return Position(0, 0)
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        if epochs.ready == epochs.processed:
            return Position(epochs.processed, 0)
        # Not `completed`: checkpoints are saved in hooks that run before that is counted.
        counter: Any = loop.epoch_loop.batch_progress.current
        batches = int(counter.processed)
        is_whole = batches >= loop.max_batches
        return Position(epochs.processed + is_whole, 0 if is_whole else batches)

"""Base of the data modules of deepfakes: modes of training, pairs, and how the images were cut."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Unpack, get_args

from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.errors import OptionError

from vfm.data.base import ImageData
from vfm.data.options import LOADER_DEFAULTS, LoaderOptions
from vfm.data.records import Record
from vfm.data.splits import SPLITS
from vfm.deepfake.data.dataset import (
    BLENDED,
    Changes,
    DeepfakeDataset,
    DeepfakeRecord,
    PairedDeepfakes,
    collate_deepfakes,
    require_deepfakes,
)
from vfm.deepfake.data.pairs import Pairs, check_training
from vfm.deepfake.data.record import FAKE, LABELS, REAL, Item
from vfm.deepfake.data.splits import GroupBy, assign_folds, assign_splits

Mode = Literal["plain", "paired", "sbi", "mixed"]

GROUPS = ("dataset", "method", "video", "identity")
"""Names of a record's groups; the first three name its video, and videos of one `identity` share persons or sources."""
CROP_FILE = "crop.json"
"""Beside a manifest: how its crops were cut, as `CropSpec.to_dict`."""


class DeepfakeOptions(LoaderOptions, total=False):
    """The `**options` of a data module of deepfakes; a module states its own defaults in `option_defaults`.

    Args:
        mode: What a training batch is made of: `plain` takes images as they come; `paired` takes real images, each with
            a fake made from its own video; `sbi` takes real images alone, each with a fake that is blended from it
            (self-blended images); `mixed` takes either kind of fake. With these two, a val or test split without fakes
            gets one for each real image, the same one every time, with the method `self-blended`.
        sbi_share: Fraction of the pairs of `mixed` whose fake is blended; a real image without fakes of its video
            always gets one that is.
        benign_share: Fraction of the training images, real and fake alike, that get a harmless edit first: a caption, a
            sticker, a frame, a smoothing filter.
        edits: Whether training images are flipped, turned, blurred, recoloured and compressed.
        batch_size: Images in a batch, on each process; two make a pair.
        num_workers: Processes that open images, as for `ImageData`.
        seed: Seed of order, pairs, blends, edits and splits.
        folds: Number of folds for cross-validation, as for `ImageData`; no person and no source is in two folds.
        fold: The fold that takes the place of val, from 0, where one of them is trained by itself.
    """

    mode: Mode
    sbi_share: float
    benign_share: float
    edits: bool


DEEPFAKE_DEFAULTS: DeepfakeOptions = {
    **LOADER_DEFAULTS,
    "batch_size": 32,
    "mode": "mixed",
    "sbi_share": 0.5,
    "benign_share": 0.1,
    "edits": True,
}


class DeepfakeImages(ImageData, ABC):
    """Real and fake images, in splits.

    A subclass implements `find`, and `read_crop`. Label 1 is fake, whatever the order of names.
    """

    option_defaults: ClassVar[DeepfakeOptions] = DEEPFAKE_DEFAULTS
    collate = staticmethod(collate_deepfakes)
    num_views = None

    def __init__(self, **options: Unpack[DeepfakeOptions]) -> None:
        """Make the data module; nothing is read yet."""
        options = {**self.option_defaults, **options}
        _check_options(options)
        self.mode = options["mode"]
        self.sbi_share = options["sbi_share"]
        self.changes = Changes(options["edits"], options["benign_share"])
        # The features of images that change from epoch to epoch cannot be stored.
        is_fixed = self.mode == "plain" and not any(self.changes)
        super().__init__(
            augment="none" if is_fixed else "standard",
            batch_size=options["batch_size"],
            num_workers=options["num_workers"],
            seed=options["seed"],
            folds=options.get("folds"),
            fold=options.get("fold"),
            bit_depth=options.get("bit_depth"),
            max_pixels=options.get("max_pixels"),
        )
        self.group_columns = GROUPS
        self._crop: CropSpec | None = None
        self._has_folds = False

    @abstractmethod
    def find(self) -> dict[str, list[DeepfakeRecord]]:
        """Find the images of each split, without opening them."""

    @abstractmethod
    def read_crop(self) -> CropSpec:
        """How the images were cut, and what a model learns to answer for."""

    @property
    def crop(self) -> CropSpec:
        """How the images were cut; a model answers for crops of this kind alone."""
        if self._crop is None:
            self._crop = self.read_crop()
        return self._crop

    def read(self) -> dict[str, list[Record]]:
        """Find the images, and leave out the fakes to train on where training makes its own."""
        self.labels = LABELS
        if self.crop.source == "native" and self.mode in ("sbi", "mixed"):
            raise OptionError(
                f"mode is {self.mode}, but blends are made of faces, and these are whole images at native "
                "resolution. Choices: plain, paired (--data.mode)."
            )
        splits = self.find()
        if self.folds is not None and not self._has_folds:
            raise OptionError(
                f"{type(self).__name__} draws no folds. Leave folds out (--data.folds null), or let its find() give "
                "splits by self._assign_splits()."
            )
        if self.mode == "sbi" and "train" in splits:
            splits["train"] = [r for r in splits["train"] if r.item.label == REAL]
        if self.mode in ("sbi", "mixed"):
            _add_blends(splits)
        return {split: [*splits[split]] for split in SPLITS if split in splits}

    def list_records(self, split: str) -> list[DeepfakeRecord]:
        """The records of a split with all that is known of them; none where the data has no such split."""
        return require_deepfakes(self.records.get(split, []))

    def setup(self, stage: str | None = None) -> None:
        """Read the records, once; a fake of the tested splits needs no fake to train on.

        Args:
            stage: `fit`, `validate`, `test` or `predict` as Lightning says.
        """
        if stage != "predict" and not self._was_read:
            self.records.update(self.read())
            self._was_read = True
        if stage in (None, "fit") and "train" in self.records:
            check_training([record.item for record in self.list_records("train")], self.mode)
        super().setup(stage)

    def describe(self) -> dict[str, Any]:
        """Images per split and label, fakes per split and method, and the crop; ready for JSON."""
        methods = {}
        description = super().describe()
        for split in SPLITS:
            if split in self.records:
                deepfakes = (r.item for r in self.list_records(split) if r.item.label == FAKE)
                methods[split] = dict(Counter(item.method for item in deepfakes))
        return description | {"methods": methods, "mode": self.mode, "crop": self.crop.to_dict()}

    def build_dataset(self, split: str) -> DeepfakeDataset:
        """A split's images, in order and without augmentation."""
        records, preprocess = self._get_records(split), self._require_preprocess()
        return DeepfakeDataset(records, preprocess, seed=self.seed, crop=self.crop)

    def _assign_splits(
        self, items: Sequence[Item], fractions: Mapping[str, float], group_by: GroupBy = "identity"
    ) -> list[Item]:
        """Give every item a split as `assign_splits` does, and put the fold in the place of val."""
        placed = assign_splits(items, fractions, self.seed, group_by)
        if self.folds is None:
            return placed
        self._has_folds = True
        stated = sum(item.split == "val" for item in items)
        if stated and self.fold is not None:
            self._leave_val_out(stated)
        splits = ("train",) if stated else ("train", "val")
        return assign_folds(placed, self.folds, self.fold, self.seed, group_by, splits=splits)

    def _build_training_dataset(self) -> DeepfakeDataset:
        records = require_deepfakes(self._get_records("train"))
        common: dict[str, Any] = {
            "records": records,
            "preprocess": self._require_preprocess(),
            "seed": self.seed,
            "crop": self.crop,
            "changes": self.changes,
        }
        if self.mode == "plain":
            return DeepfakeDataset(**common)
        return PairedDeepfakes(
            **common,
            pairs=Pairs([record.item for record in records]),
            blends={"paired": 0.0, "sbi": 1.0}.get(self.mode, self.sbi_share),
            blend_rest=self.mode != "paired",
        )

    def _choose_loader_options(self, split: str) -> dict[str, Any]:
        options = super()._choose_loader_options(split)
        if split == "train" and self.mode != "plain":
            options["batch_size"] = self.batch_size // 2
        return options


def write_crop(folder: Path, crop: CropSpec) -> None:
    """Write `crop.json` into the folder of a manifest, in one step."""
    unfinished = folder / f".{CROP_FILE}"
    unfinished.write_text(json.dumps(crop.to_dict(), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(folder / CROP_FILE)


def _check_options(options: DeepfakeOptions) -> None:
    mode, batch_size = options["mode"], options["batch_size"]
    if mode not in get_args(Mode):
        raise OptionError(f"mode is '{mode}'. Choices: {', '.join(get_args(Mode))}.")
    for name in ("sbi_share", "benign_share"):
        if not 0 <= options[name] <= 1:
            raise OptionError(f"{name} is {options[name]}. Give a share, from 0 to 1.")
    if mode != "plain" and batch_size is not None and batch_size % 2:
        raise OptionError(
            f"batch_size is {batch_size}, but two images make a pair. Give an even number, or --data.mode plain."
        )


def _add_blends(splits: dict[str, list[DeepfakeRecord]]) -> None:
    """Where a split to evaluate on has no fakes, blend one for each real image; else nothing could be measured."""
    for split in ("val", "test"):
        reals = splits.get(split, [])
        if not reals or any(record.item.label == FAKE for record in reals):
            continue
        warnings.warn(
            f"The {split} split has no fakes: one is blended from each of its {len(reals)} real images. Its figures "
            "say how well such blends are found, and nothing of other forgeries.",
            stacklevel=4,
        )
        # Both sides, since the real one of a blend may be changed as a whole.
        for number, record in enumerate(reals):
            reals[number] = replace(record, blend=number)
        for record in list(reals):
            item = record.item._replace(label="fake", method=BLENDED, source=record.item.video)
            name = f"{record.name} ({BLENDED})"
            reals.append(replace(record, label=1, name=name, item=item))

"""Real and forged images from a manifest, or from folders laid out as the public data sets are."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.errors import OptionError
from vfm_runtime.media.image import IMAGE_SUFFIXES, find_images

from vfm.data.dataset import Record
from vfm.data.splits import SPLITS, check_fractions
from vfm.deepfake.data.base import CROP_FILE, GROUPS, DeepfakeImages, Mode, write_crop
from vfm.deepfake.data.dataset import BLENDED, DeepfakeRecord
from vfm.deepfake.data.layouts import MANIFEST, Format, import_layout
from vfm.deepfake.data.manifest import read_manifest, write_manifest
from vfm.deepfake.data.record import LABELS, DeepfakeDataError, Item, ordered
from vfm.deepfake.data.splits import GroupBy, assign_splits, components
from vfm.spec import Spec

__all__ = ["CROP_FILE", "GROUPS", "DeepfakeData", "DeepfakeImages", "Mode", "write_crop"]


class DeepfakeData(DeepfakeImages):
    """Images listed in a manifest, or in folders laid out as a public data set has them.

    Videos become images first, by `vfm faces`, which leaves a manifest and `crop.json`.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        format: Format = "auto",
        layout: dict[str, Any] | None = None,
        manifest: str | Path | None = None,
        mode: Mode = "mixed",
        sbi_share: float = 0.5,
        benign_share: float = 0.1,
        edits: bool = True,
        cropped: bool = False,
        native: bool = False,
        crop_size: int = 256,
        tiles: int = 5,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        force_split: Literal["train", "val", "test"] | None = None,
        group_by: GroupBy = "identity",
        batch_size: int = 32,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        """Make the data module; the manifest is read by `setup`.

        Args:
            root: The folder of images, with `manifest.csv` or in the layout of a data set.
            format: The layout, where there is no manifest; `auto` finds out.
            layout: More about the layout, such as `compression`, `media`, `lists`, `grouping` and `labels`, as
                `vfm.deepfake.data.layouts.import_layout` takes it.
            manifest: The list of images, if it lies elsewhere; its relative paths start at `root`.
            mode: What a training batch is made of: `plain`, `paired`, `sbi` or `mixed`, as `DeepfakeImages` says.
            sbi_share: Of `mixed`, the share of the pairs whose forgery is blended on the fly.
            benign_share: Share of the training images that get a harmless edit, which does not change the label.
            edits: Whether training images are flipped, turned, blurred, recoloured and compressed.
            cropped: Says that images without `crop.json` show one face each, cut out already.
            native: Says that images are not about faces: squares are cut out of them without resizing.
            crop_size: Side of a crop in pixels, where no `crop.json` says it.
            tiles: How many squares of a `native` image are judged, 1 to 9.
            val_fraction: Share of the videos for validation, where the data set does not say.
            test_fraction: Share of the videos for the test, where the data set does not say.
            force_split: Split of every image, whatever the data set says: `test` for one that is only tested on.
            group_by: `identity` keeps a person in one split; `video` only a video and what was made from it.
            batch_size: Images in a batch, on each process; two make a pair.
            num_workers: Processes that open images, as for `ImageData`.
            seed: Of order, pairs, blends, edits and splits.

        Raises:
            ValueError: An argument lies outside its range.
        """
        super().__init__(
            mode=mode,
            sbi_share=sbi_share,
            benign_share=benign_share,
            edits=edits,
            batch_size=batch_size,
            num_workers=num_workers,
            seed=seed,
        )
        if cropped and native:
            raise OptionError(
                "cropped and native are both set. Give cropped for faces that were cut out, native for whole images."
            )
        if force_split is not None and force_split not in SPLITS:
            raise OptionError(f"force_split is '{force_split}'. Choices: {', '.join(SPLITS)}.")
        check_fractions(val_fraction, test_fraction)
        self.root = Path(root)
        self.format = format
        self.layout = dict(layout or {})
        self.manifest = Path(manifest) if manifest is not None else None
        self.cropped = cropped
        self.native = native
        self.crop_size = crop_size
        self.tiles = tiles
        self.fractions = {
            "train": 1 - val_fraction - test_fraction,
            "val": val_fraction,
            "test": test_fraction,
        }
        self.force_split = force_split
        self.group_by = group_by

    def find(self) -> dict[str, list[DeepfakeRecord]]:
        """Read the manifest, or the folders, and give every image its split."""
        items = self._listed()
        _refuse_videos(items, self.root)
        if self.force_split is not None:
            items = [item._replace(split=self.force_split) for item in items]
        else:
            items = assign_splits(items, self.fractions, self.seed, self.group_by)
        tiles = self.crop.tiles if self.crop.source == "native" else 1
        splits: dict[str, list[DeepfakeRecord]] = {}
        # An order that does not hang on that of the files.
        for item, component in sorted(zip(items, components(items, self.group_by), strict=True)):
            for tile in range(1 if item.split == "train" else tiles):
                splits.setdefault(item.split, []).append(self._record(item, component, tile))
        return splits

    def read_predict(self) -> list[Record]:
        """Every image below the root, without labels."""
        folder = self._folder(self.root).absolute()
        return [Record(str(p), -1, self._name(p.as_posix())) for p in find_images(folder)]

    def read_crop(self) -> CropSpec:
        """What `crop.json` beside the manifest says, or what was declared.

        Raises:
            DeepfakeDataError: Neither says anything, or they contradict each other.
        """
        path = self._folder(self.manifest or self.root) / CROP_FILE
        declared = self._declared()
        if not path.is_file():
            if declared is None:
                raise DeepfakeDataError(
                    f"Nothing says what part of a picture the images of {self.root} show: there is no {path}. A model "
                    "of faces answers for one kind of crop alone. Cut the faces out with 'vfm faces', or say what the "
                    "images are: --data.cropped true for one face each, cut out already, --data.native true for whole "
                    "images that are not about faces."
                )
            return declared
        try:
            spec = CropSpec.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except ValueError as error:
            raise DeepfakeDataError(
                f"{path} is not the crop specification that 'vfm faces' writes: {error}"
            ) from error
        if declared is not None and declared.source != spec.source:
            raise DeepfakeDataError(
                f"{path} says that the images are '{spec.source}', --data.{declared.source} says '{declared.source}'. "
                "Leave the option out, or give other images."
            )
        return spec

    def remedy(self, split: str) -> str:
        """What to do about a missing split."""
        if split in self.fractions and split != "train":
            return (
                f"Give images of {self.root} the split {split}, or set {split}_fraction above 0; a data set that has a "
                "test list of its own gets no other test."
            )
        return f"Give images of {self.root} the split {split} in the manifest."

    def keep_split(self, folder: Path) -> Spec:
        """Write `manifest.csv` with the splits, and `crop.json`.

        Args:
            folder: Of the training run.
        """
        self._read_once()
        listed = (record.item for split in SPLITS for record in self.list_records(split))
        # Several tiles are of one image, and blends are made anew.
        items = dict.fromkeys(item for item in listed if item.method != BLENDED)
        path = folder.absolute() / MANIFEST
        # The root may lie below the run's folder, and relative paths are read from the root.
        write_manifest(path, list(items), relative=False)
        write_crop(path.parent, self.crop)
        spec = self.spec
        spec["init_args"] |= {"root": str(self.root.absolute()), "manifest": str(path)}
        return spec

    def _listed(self) -> list[Item]:
        if self.manifest is not None:
            return read_manifest(self.manifest, self.root, self.layout.get("labels"))
        reading = import_layout(self.root, self.format, **self.layout)
        for note in reading.notes:
            warnings.warn(note, stacklevel=2)
        return ordered(reading.entries)

    def _folder(self, path: Path) -> Path:
        return path if path.is_dir() else path.parent

    def _declared(self) -> CropSpec | None:
        if self.cropped:
            return CropSpec(source="cropped", size=self.crop_size)
        if self.native:
            return CropSpec(source="native", size=self.crop_size, tiles=self.tiles)
        return None

    def _record(self, item: Item, component: str, tile: int) -> DeepfakeRecord:
        return DeepfakeRecord(
            item.path,
            LABELS.index(item.label),
            self._name(item.path) + (f"@{tile}" if tile else ""),
            item=item,
            component=component,
            mask=item.mask or None,
            landmarks=item.landmarks or None,
            tile=tile,
        )

    def _name(self, path: str) -> str:
        return path.removeprefix(self._folder(self.root).absolute().as_posix() + "/")


def _refuse_videos(items: Sequence[Item], root: Path) -> None:
    videos = [item.path for item in items if not item.path.lower().endswith(IMAGE_SUFFIXES)]
    if videos:
        raise DeepfakeDataError(
            f"{len(videos)} of the {len(items)} files of {root} are not images, such as {videos[0]}. Cut the faces out "
            f"of the videos first: vfm faces {root} -o FOLDER."
        )

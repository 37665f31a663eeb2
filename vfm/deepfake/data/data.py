"""DeepfakeData: real and fake images from a manifest, or from folders laid out as the public data sets are."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Literal, Unpack

from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.errors import OptionError
from vfm_runtime.media.files import find_images
from vfm_runtime.media.image import IMAGE_SUFFIXES

from vfm.data.records import Record
from vfm.data.splits import SPLITS, check_fractions
from vfm.deepfake.data.base import CROP_FILE, DeepfakeImages, DeepfakeOptions, write_crop
from vfm.deepfake.data.dataset import BLENDED, DeepfakeRecord
from vfm.deepfake.data.layouts import MANIFEST, Format, import_layout
from vfm.deepfake.data.manifest import read_manifest, write_manifest
from vfm.deepfake.data.record import LABELS, DeepfakeDataError, sort_items
from vfm.deepfake.data.splits import GroupBy, name_components
from vfm.spec import Spec


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
        cropped: bool = False,
        native: bool = False,
        crop_size: int = 256,
        tiles: int = 5,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        force_split: Literal["train", "val", "test"] | None = None,
        group_by: GroupBy = "identity",
        **options: Unpack[DeepfakeOptions],
    ) -> None:
        """Make the data module; the manifest is read by `setup`.

        Args:
            root: The folder of images, with `manifest.csv` or in the layout of a data set.
            format: The layout, where there is no manifest; `auto` finds out.
            layout: More about the layout, such as `compression`, `media`, `lists`, `grouping` and `labels`, as
                `vfm.deepfake.data.layouts.import_layout` takes it.
            manifest: The list of images, if it lies elsewhere; its relative paths start at `root`.
            cropped: Says that images without `crop.json` show one face each, cut out already.
            native: Says that images are not about faces: squares are cut out of them without resizing.
            crop_size: Side of a crop in pixels, where no `crop.json` says it.
            tiles: How many squares of a `native` image are judged, 1 to 9.
            val_fraction: Fraction of the videos for validation, where the data set does not say.
            test_fraction: Fraction of the videos for the test, where the data set does not say.
            force_split: Split of every image, whatever the data set says: `test` for one that is only tested on.
            group_by: `identity` keeps a person in one split; `video` only a video and what was made from it.
            **options: As for every data module of deepfakes.

        Raises:
            ValueError: An argument lies outside its range.
        """
        super().__init__(**options)
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
        self.declared_crop = None
        if cropped:
            self.declared_crop = CropSpec(source="cropped", size=crop_size)
        elif native:
            self.declared_crop = CropSpec(source="native", size=crop_size, tiles=tiles)
        self.fractions = {
            "train": 1 - val_fraction - test_fraction,
            "val": val_fraction,
            "test": test_fraction,
        }
        self.force_split = force_split
        self.group_by = group_by

    def find(self) -> dict[str, list[DeepfakeRecord]]:
        """Read the manifest, or the folders, and give every image its split."""
        if self.manifest is not None:
            items = read_manifest(self.manifest, self.root, self.layout.get("labels"))
        else:
            reading = import_layout(self.root, self.format, **self.layout)
            items = sort_items(reading.entries)
            for note in reading.notes:
                warnings.warn(note, stacklevel=2)
        videos = [item.path for item in items if not item.path.lower().endswith(IMAGE_SUFFIXES)]
        if videos:
            raise DeepfakeDataError(
                f"{len(videos)} of the {len(items)} files of {self.root} are not images, such as {videos[0]}. Cut the "
                f"faces out of the videos first: vfm faces {self.root} -o FOLDER."
            )
        if self.force_split is not None:
            if self.folds is not None:
                raise OptionError(
                    f"force_split is '{self.force_split}' and folds is {self.folds}, but images of one split alone "
                    "cannot be divided into folds. Leave one of them out."
                )
            items = [item._replace(split=self.force_split) for item in items]
        else:
            items = self._assign_splits(items, self.fractions, self.group_by)
        num_tiles = self.crop.tiles if self.crop.source == "native" else 1
        splits: dict[str, list[DeepfakeRecord]] = {}
        # An order that does not hang on that of the files.
        for item, component in sorted(
            zip(items, name_components(items, self.group_by), strict=True)
        ):
            for tile in range(1 if item.split == "train" else num_tiles):
                record = DeepfakeRecord(
                    item.path,
                    LABELS.index(item.label),
                    self._name(item.path) + (f"@{tile}" if tile else ""),
                    item=item,
                    component=component,
                    mask=item.mask or None,
                    landmarks=item.landmarks or None,
                    tile=tile,
                )
                splits.setdefault(item.split, []).append(record)
        return splits

    def read_predict(self) -> list[Record]:
        """Every image below the root, without labels."""
        images = find_images(self._list_folder(self.root).absolute())
        return [Record(str(path), -1, self._name(path.as_posix())) for path in images]

    def read_crop(self) -> CropSpec:
        """What `crop.json` beside the manifest says, or what was declared.

        Raises:
            DeepfakeDataError: Neither says anything, or they contradict each other.
        """
        path = self._list_folder(self.manifest or self.root) / CROP_FILE
        declared = self.declared_crop
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
        """Write `manifest.csv` with the splits, and `crop.json`."""
        self._read_once()
        records = (record for split in SPLITS for record in self.list_records(split))
        # Several tiles are of one image, and blends are made anew.
        items = dict.fromkeys(r.item for r in records if r.item.method != BLENDED)
        path = folder.absolute() / MANIFEST
        # The root may lie below the run's folder, and relative paths are read from the root.
        write_manifest(path, list(items), relative=False)
        write_crop(path.parent, self.crop)
        return self._pin_split(root=str(self.root.absolute()), manifest=str(path))

    def _list_folder(self, path: Path) -> Path:
        return path if path.is_dir() else path.parent

    def _name(self, path: str) -> str:
        return path.removeprefix(self._list_folder(self.root).absolute().as_posix() + "/")

"""Options of an export, of the command line and of Python alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vfm_runtime.bundle.contract import MANIFEST_FILE

from vfm.bundle.errors import ExportError
from vfm.bundle.onnx_graphs import OPSETS
from vfm.bundle.parity import require_folder
from vfm.bundle.triton import check_repository
from vfm.models.heads.embedding import EmbeddingSource


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an export writes, and what it must hold to.

    Args:
        images: Folder of real images, for a model that answers for videos also of videos, on which the bundle is
            compared with the model; three of them, shrunk to at most 256 pixels, or three crops, go into the bundle.
        out: Folder to write; -o for short.
        data: Labelled validation images for int8, fp16, calibrate and reference: a folder or table as for training; by
            default the val split of the training.
        int8: Also write a graph in 8 bits, for the CPU; layers that do harm stay in 32 bits.
        fp16: Also write a graph in 16 bits, for GPUs.
        max_drop: Points (hundredths) that the headline metric, such as accuracy, may lose in fewer bits.
        calibrate: Fit a temperature, so that scores are probabilities, and thresholds for each label.
        min_precision: With calibrate: fraction of the sure answers that shall be right, such as 0.95; others are
            unsure.
        reference: Also answer how far an image is from those of the training; needed to watch for drift.
        embedding: Also give an embedding of each image, for search: pooled, class_token, patches or layers.
        normalize: With embedding: divide each vector by its L2 norm, so that products are cosines.
        text: Also write the text tower of a pair of open_clip or of a ContrastiveTask, and its tokenizer, so that the
            bundle embeds words.
        one_file: Also write onefile.onnx, both graphs in one for the simplest client.
        triton: Folder to write a model repository for Triton to, in 16 bits with fp16.
        opset: Version of the ONNX operators; from 23 on, attention is one operator.
        num_images: How many images to compare on.
        tolerance: Largest accepted difference of a score; boxes must also overlap by 99 %.
        data_license: Licence of the training images, as its owner names it, such as CC-BY-4.0, for card and lineage.
        commercial: Refuse weights whose licence forbids to sell what is made of them or is not known, and training
            images whose declared licence does.
        overwrite: Replace an existing bundle.
        base: For an adapter, the file of the backbone's weights where it is no longer at its old place; for the name of
            a backbone, a file of its weights in place of timm's.
        trust: Packages besides vfm whose code the checkpoint may name.
    """

    images: Path
    out: Path = Path("bundle")
    data: Path | None = None
    int8: bool = False
    fp16: bool = False
    max_drop: float = 0.5
    calibrate: bool = False
    min_precision: float | None = None
    reference: bool = False
    embedding: EmbeddingSource | None = None
    normalize: bool = True
    text: bool = False
    one_file: bool = False
    triton: Path | None = None
    opset: int = 20
    num_images: int = 64
    tolerance: float = 1e-3
    data_license: str | None = None
    commercial: bool = False
    overwrite: bool = False
    base: Path | None = None
    trust: Sequence[str] = ()

    def __post_init__(self) -> None:
        """Take paths as text too."""
        for name in ("images", "out", "data", "triton", "base"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))

    @property
    def precisions(self) -> list[str]:
        """Precisions besides that of 32 bits."""
        return [name for name in ("fp16", "int8") if getattr(self, name)]

    @property
    def needs_validation(self) -> bool:
        """Whether anything is to be fitted or measured on validation images."""
        return self.int8 or self.fp16 or self.calibrate or self.reference

    def check(self) -> None:
        """Refuse, before any work, what could only fail.

        Raises:
            ParityError: There is no folder of images.
            ExportError: The folder to write exists, or an option makes no sense.
        """
        require_folder(self.images)
        self._check_numbers()
        if self.data is not None and not self.needs_validation:
            raise ExportError(
                f"--data is {self.data}, but nothing is measured or fitted on it. Add --int8, --fp16, --calibrate or "
                "--reference, or leave it out."
            )
        if self.min_precision is not None and not self.calibrate:
            raise ExportError(
                f"--min_precision is {self.min_precision:g}, which calibration holds to. Add --calibrate."
            )
        self._check_out()
        if self.triton is not None:
            check_repository(self.triton, self.out.resolve().name)

    def _check_numbers(self) -> None:
        if self.opset not in OPSETS:
            raise ExportError(
                f"--opset is {self.opset}; choices are {OPSETS[0]} to {OPSETS[-1]}. 20 runs almost everywhere."
            )
        if not self.max_drop >= 0:
            raise ExportError(
                f"--max_drop is {self.max_drop:g}. Give points from 0 up, such as 0.5."
            )
        if not self.tolerance > 0:
            raise ExportError(f"--tolerance is {self.tolerance:g}. Give a number above 0.")
        if self.min_precision is not None and not 0 < self.min_precision < 1:
            raise ExportError(
                f"--min_precision is {self.min_precision:g}. Give a share between 0 and 1, such as 0.95."
            )
        if self.num_images < 1:
            raise ExportError(f"--num_images is {self.num_images}. Give at least 1.")

    def _check_out(self) -> None:
        out = self.out
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
        if not self.overwrite:
            raise ExportError(
                f"{out} exists, and a bundle never changes once written. "
                "Give another folder to --out, or replace it with --overwrite true."
            )
        if not (out / MANIFEST_FILE).is_file():
            raise ExportError(
                f"{out} is no bundle, so it is not replaced: it has no {MANIFEST_FILE}. Give another folder to --out."
            )

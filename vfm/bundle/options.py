"""What an export writes, and what it must hold to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vfm_runtime.bundle.contract import MANIFEST_FILE

from vfm.bundle.errors import ExportError
from vfm.bundle.onnx_graphs import OPSETS


@dataclass(frozen=True, kw_only=True)
class Options:
    """What an export writes, and what it must hold to."""

    one_file: bool = False
    """Also write both graphs in one."""
    opset: int = 20
    """Version of the ONNX operators."""
    tolerance: float = 1e-3
    """Largest accepted difference of a score."""
    overwrite: bool = False
    """Replace an existing bundle."""
    int8: bool = False
    """Also write a graph in 8 bits, for the CPU."""
    fp16: bool = False
    """Also write a graph in 16 bits, for GPUs."""
    max_drop: float = 0.5
    """Points that the headline figure may lose in fewer bits."""
    calibrate: bool = False
    """Fit a temperature and thresholds."""
    min_precision: float | None = None
    """Share of sure answers that shall be right."""
    reference: bool = False
    """Also give the distance from the training images."""
    trust: Sequence[str] = ()
    """Packages besides vfm whose code a checkpoint may name."""

    @property
    def needs_validation(self) -> bool:
        """Whether anything is to be fitted or measured on validation images."""
        return self.int8 or self.fp16 or self.calibrate or self.reference


def check(out: Path, options: Options) -> None:
    """Refuse, before any work, what could only fail.

    Args:
        out: Folder to write.
        options: What to write.

    Raises:
        ExportError: The folder exists, or an option makes no sense.
    """
    if options.opset not in OPSETS:
        raise ExportError(
            f"--opset is {options.opset}; choices are {OPSETS[0]} to {OPSETS[-1]}. 20 runs almost everywhere."
        )
    if not options.max_drop >= 0:
        raise ExportError(
            f"--max_drop is {options.max_drop:g}. Give points from 0 up, such as 0.5."
        )
    if not options.tolerance > 0:
        raise ExportError(f"--tolerance is {options.tolerance:g}. Give a number above 0.")
    if options.min_precision is not None and not 0 < options.min_precision < 1:
        raise ExportError(
            f"--min_precision is {options.min_precision:g}. Give a share between 0 and 1, such as 0.95."
        )
    if options.min_precision is not None and not options.calibrate:
        raise ExportError(
            f"--min_precision is {options.min_precision:g}, which calibration holds to. Add --calibrate."
        )
    _check_place(out, options.overwrite)


def _check_place(out: Path, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise ExportError(
            f"{out} exists, and a bundle never changes once written. "
            "Give another folder to --out, or replace it with --overwrite true."
        )
    if not (out / MANIFEST_FILE).is_file():
        raise ExportError(
            f"{out} is no bundle, so it is not replaced: it has no {MANIFEST_FILE}. Give another folder to --out."
        )

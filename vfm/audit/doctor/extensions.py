"""Extensions of `vfm doctor`: kinds of data with checks of their own, which add sections to the same page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from vfm.data.layouts import Reading
from vfm.data.records import Record
from vfm.report import Page


class DoctorExtension(Protocol):
    """A kind of data, recognized by its files, and its checks."""

    formats: Sequence[str]
    """Names of `--format` that are of this kind."""

    def read(self, data: Path, format: str) -> Reading[Record] | None:
        """Return the images by split, each with its key; None where `format` is auto and the data of another kind."""

    def add_sections(
        self,
        page: Page,
        data: Path,
        *,
        shortcuts: bool,
        model: Path | None,
        format: str,
        out: Path | None,
        max_files: int,
        seed: int,
        trust: Sequence[str],
    ) -> dict[str, Any]:
        """Check what the general doctor does not, print and show it, and return it ready for JSON."""


_extensions: list[DoctorExtension] = []


def register_extension(extension: DoctorExtension) -> None:
    """Have `vfm doctor` ask an extension first whether data are of its kind."""
    if all(type(one) is not type(extension) for one in _extensions):
        _extensions.append(extension)


def list_extensions() -> list[DoctorExtension]:
    """Return the extensions that were registered."""
    return [*_extensions]

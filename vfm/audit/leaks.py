"""Leaks: exact copies of training images among the images of an audit, by the hash of their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vfm_runtime.errors import VfmError

from vfm.data.records import Record
from vfm.report import Page
from vfm.tasks.checkpoint import Checkpoint, find_copies

_MOST_ROWS = 50


def find_leaks(checkpoint: Checkpoint | None, records: Sequence[Record]) -> dict[str, Any]:
    """Look for images of an audit that a checkpoint was trained on, ready for JSON.

    Args:
        checkpoint: Checkpoint whose training data is looked at; None of a bundle, which names none.
        records: Images of the audit.

    Returns:
        `is_checked`; `how`, or why not; `num_training_images`; `copies`, the `image` and the `training_image` of each.
    """
    if checkpoint is None:
        return _describe("a bundle does not name its training data: audit the checkpoint for this")
    try:
        others = checkpoint.split("train").records
    except VfmError as error:
        reason = str(error).splitlines()[0]
        return _describe(f"the training data cannot be read: {reason}")
    copies = find_copies(records, others)
    rows = [{"image": image, "training_image": other} for image, other in copies.items()]
    how = f"{len(rows)} of {len(records)} are exact copies of one of {len(others)} training images"
    return {
        "is_checked": True,
        "how": f"{how}; copies that were saved anew or cut are not looked for (vfm doctor --against)",
        "num_training_images": len(others),
        "copies": rows,
    }


def _describe(reason: str) -> dict[str, Any]:
    return {"is_checked": False, "how": reason, "num_training_images": None, "copies": []}


def add_leaks(page: Page, result: Mapping[str, Any]) -> None:
    """Add the copies to the page of an audit, where there are some."""
    rows = result["copies"]
    if not rows:
        return
    page.add_heading("Leaks: images that were trained on")
    page.add_text(
        f"{len(rows)} images have the same bytes as a training image, so that the figures below are too good by what "
        "the model knows by heart. Take them out, and audit again."
    )
    if len(rows) > _MOST_ROWS:
        page.add_text(f"The first {_MOST_ROWS}; all are in audit.json.")
    page.add_table(
        [
            {"image": row["image"], "training image": row["training_image"]}
            for row in rows[:_MOST_ROWS]
        ]
    )

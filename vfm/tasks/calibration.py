"""Calibration of a task's scores: the temperature and thresholds that were fitted, and on what."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vfm_runtime.tasks.confidence import ConfidenceRules

from vfm.tasks.validation import Validation

MIN_IMAGES = 50
"""Least number of images that anything is fitted on."""

log = logging.getLogger(__name__)


class CalibrationError(ValueError):
    """Nothing can be fitted on these images; the message says why and what to do."""


@dataclass(frozen=True)
class Calibration:
    """What was fitted, and on what."""

    rules: ConfidenceRules
    """Temperature and thresholds; the thresholds are of scores after the temperature."""
    num_images: int
    """Images that it was fitted on."""
    error_before: float | None
    """Expected calibration error of the scores as they were; None of boxes."""
    error_after: float | None
    """The same after the temperature, on the images that it was fitted on."""
    shared: tuple[str, ...] = ()
    """Labels of which too little is known for a threshold of their own."""
    min_precision: float | None = None
    """Fraction of sure answers that shall be right."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"rules": self.rules.to_dict(), "shared": list(self.shared)}


def require_enough_images(images: Validation) -> None:
    """Refuse too few images to calibrate on.

    Raises:
        CalibrationError: With their number.
    """
    if images.num_images < MIN_IMAGES:
        raise CalibrationError(
            f"There are {images.num_images} validation images, too few to calibrate on: it takes at least "
            f"{MIN_IMAGES}, and about 1,000 to do it well. Name more with --data."
        )


def refuse_precision(min_precision: float | None, kind: str) -> None:
    """Refuse a precision that was asked of a model whose thresholds are those of the highest F1.

    Raises:
        CalibrationError: A precision is given.
    """
    if min_precision is not None:
        raise CalibrationError(
            f"A precision of {min_precision:g} was asked for, but a model of the kind '{kind}' has another threshold "
            "for each label, that of the highest F1. Leave the precision out."
        )


def list_absent(images: Validation, seen: Sequence[bool], threshold: float) -> tuple[str, ...]:
    """Labels that the images say nothing of, with a warning that their threshold is a usual one.

    Args:
        images: Images that the thresholds were fitted on.
        seen: For each of the model's labels whether they show it.
        threshold: The usual one.
    """
    names = tuple(name for name, one in zip(images.labels, seen, strict=True) if not one)
    if names:
        log.warning(
            "The %d validation images show none of %d labels, or none that is found; their threshold is %.2f: %s%s.",
            images.num_images,
            len(names),
            threshold,
            ", ".join(names[:5]),
            ", ..." if len(names) > 5 else "",
        )
    return names


def describe_confidence(rules: ConfidenceRules, calibration: Calibration | None) -> list[str]:
    """Lines of a card that say when an answer is sure.

    Args:
        rules: Rules of the contract.
        calibration: What they come from, where something was fitted.
    """
    lines = []
    if calibration is not None:
        lines.append(
            f"- Temperature {rules.temperature:.4g}, fitted on {calibration.num_images} validation images"
        )
        if calibration.error_before is not None and calibration.error_after is not None:
            lines[-1] += (
                f": expected calibration error {calibration.error_before:.4f} before, "
                f"{calibration.error_after:.4f} after"
            )
    if rules.thresholds is not None:
        least, most = min(rules.thresholds), max(rules.thresholds)
        lines.append(f"- Thresholds by label: {least:.3f} to {most:.3f}")
    if calibration is not None and calibration.min_precision is not None:
        shared = (
            f"; {len(calibration.shared)} labels have too few answers for a threshold of their own"
            * bool(calibration.shared)
        )
        lines.append(
            f"- Sure answers: at least {100 * calibration.min_precision:g} % right, each threshold at a "
            f"confidence of 95 %{shared}"
        )
    if rules.max_distance is not None:
        lines.append(
            f"- Unsure beyond a distance of {rules.max_distance:.3f} from the training images"
        )
    return ["## When it is sure", "", *lines, ""]

"""Calibration of a task's scores: the temperature and thresholds that were fitted, and on what."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from vfm_runtime.errors import VfmError
from vfm_runtime.tasks.confidence import ConfidenceRules

from vfm.tasks.group_fit import GroupFit
from vfm.tasks.labeled_images import LabeledImages

MIN_IMAGES = 50
"""Least number of images that anything is fitted on."""
CALIBRATION_FILE = "calibration.json"
"""Beside a checkpoint, from `vfm calibrate`: what was fitted, on what, and for which file."""

CalibrationSplit = Literal["val", "test", "all"]

log = logging.getLogger(__name__)


class CalibrationError(VfmError, ValueError):
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
    groups: GroupFit | None = None
    """Rules by group; None where all images have the same."""
    origin: str | None = None
    """Where it was read from, as a sentence; None where it has just been fitted."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON, but for where it was read from."""
        plain = asdict(replace(self, groups=None))
        values = plain | {"rules": self.rules.to_dict(), "shared": list(self.shared)}
        del values["origin"]
        return values | {"groups": None if self.groups is None else self.groups.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], origin: str | None = None) -> Self:
        """Return what `to_dict` gave; other entries are passed over.

        Raises:
            KeyError: An entry is missing.
            ValueError: The rules make no sense.
        """
        entries = {
            f.name: values[f.name] for f in fields(cls) if f.name not in ("origin", "groups")
        }
        if (groups := values.get("groups")) is not None:
            entries["groups"] = GroupFit.from_dict(groups)
        entries["rules"] = ConfidenceRules.from_dict(entries["rules"])
        entries["shared"] = tuple(entries["shared"])
        return cls(**entries, origin=origin)


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """What `vfm calibrate` holds to; a task takes some of these, and says by name that it does not take another.

    Args:
        min_precision: Fraction of the sure answers that shall be right, such as 0.95; others are unsure. For models
            that give one label an image.
        fpr: For models that call videos real or not, as all up to num_workers: fraction of real ones that may be
            called otherwise, 0.01 by default; it takes at least 1 / fpr - 1 of them.
        miss: Fraction of the others that may be called real; videos between both limits are undecided. Without it
            every video up to the threshold is called real.
        abstain: Fraction of videos like these that each of the rules "unlike the training data", "frames disagree"
            and "too blurred" may leave undecided, 0.01 by default; 0 for no such rules.
        split: val, which is the default, or test, or all of data that has nothing to do with the training. Other models
            take the val split where the data states one, else all.
        cropped: Says that images without crop.json show one face each, cut out already.
        native: Says that images are not about faces.
        num_workers: Processes that open images.
        batch_size: Images in a batch.
        group_column: Column of the table by whose values rules are fitted, such as site: rates of a label are made
            equal (--equal), or with --min-precision the precision of sure answers. Groups of too few images have
            the general rule.
        table: Table with a row for each image (path, and that column), where the data itself is no table.
        equal: What shall be equal in each group: a rate, tpr (by default; of models that call videos real or not it is
            always fpr) or fpr; or calibration, by a temperature each, so that a score means the same in all of them.
        rate: The rate that each group shall have; by default that of all together.
        positive: Label whose rates these are, of models of one label an image; of two labels the second.
    """

    min_precision: float | None = None
    fpr: float | None = None
    miss: float | None = None
    abstain: float | None = None
    split: CalibrationSplit | None = None
    cropped: bool = False
    native: bool = False
    num_workers: int = 0
    batch_size: int = 32
    group_column: str | None = None
    table: Path | None = None
    equal: str | None = None
    rate: float | None = None
    positive: str | None = None

    def refuse_others(self, accepted: Collection[str], who: str) -> None:
        """Refuse with a CalibrationError what was set, but is not among the options that someone accepts."""
        for option in fields(self):
            value = getattr(self, option.name)
            if value != option.default and option.name not in accepted:
                shown = str(value).lower() if isinstance(value, bool) else value
                choices = ", ".join(f"--{name}" for name in accepted)
                raise CalibrationError(
                    f"--{option.name} is {shown}, but a {who} has no such option. Choices: {choices}. Leave it out."
                )

    def refuse_ungrouped(self) -> None:
        """Refuse with a CalibrationError what means nothing without a column of groups."""
        for name in ("table", "equal", "rate", "positive"):
            if (value := getattr(self, name)) is not None:
                raise CalibrationError(
                    f"--{name} is {value}, which is for rules by group. Add --group_column NAME, or leave it out."
                )


@dataclass(frozen=True)
class CalibrationResult:
    """What a task fitted for `vfm calibrate`."""

    source: LabeledImages
    """Images that it was fitted on."""
    details: Mapping[str, Any]
    """What calibration.json says of it, ready for JSON."""
    lines: Sequence[str]
    """What is printed of it."""
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Further files beside the checkpoint by name, with what they hold."""


def require_enough_images(num_images: int) -> None:
    """Refuse with a CalibrationError too few images to calibrate on."""
    if num_images < MIN_IMAGES:
        raise CalibrationError(
            f"There are {num_images} validation images, too few to calibrate on: it takes at least "
            f"{MIN_IMAGES}, and about 1,000 to do it well. Name more with --data."
        )


def refuse_precision(min_precision: float | None, kind: str) -> None:
    """Refuse with a CalibrationError a precision asked of a model whose thresholds are those of the highest F1."""
    if min_precision is not None:
        raise CalibrationError(
            f"A precision of {min_precision:g} was asked for, but a model of the kind '{kind}' has another threshold "
            "for each label, that of the highest F1. Leave the precision out."
        )


def list_some(names: Sequence[str]) -> str:
    """Return the first five names, separated by commas, for a message."""
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def list_absent(
    labels: Sequence[str], seen: Sequence[bool], num_images: int, threshold: float
) -> tuple[str, ...]:
    """Return the labels that the images say nothing of, with a warning that their threshold is a default."""
    names = tuple(name for name, is_seen in zip(labels, seen, strict=True) if not is_seen)
    if names:
        log.warning(
            "The %d validation images show none of %d labels, or none that is found; their threshold is %.2f: %s.",
            *(num_images, len(names), threshold, list_some(names)),
        )
    return names


def list_confidence(rules: ConfidenceRules, calibration: Calibration | None) -> list[str]:
    """Return lines that say when a prediction is sure, and what that was fitted on, where something was."""
    lines = []
    if calibration is not None:
        lines.append(
            f"Temperature {rules.temperature:.4g}, fitted on {calibration.num_images} validation images"
        )
        if calibration.error_before is not None and calibration.error_after is not None:
            lines[-1] += (
                f": expected calibration error {calibration.error_before:.4f} before, "
                f"{calibration.error_after:.4f} after"
            )
    if rules.thresholds is not None:
        least, most = min(rules.thresholds), max(rules.thresholds)
        lines.append(f"Thresholds by label: {least:.3f} to {most:.3f}")
    if calibration is not None and calibration.min_precision is not None:
        shared = (
            f"; {len(calibration.shared)} labels have too few answers for a threshold of their own"
            * bool(calibration.shared)
        )
        lines.append(
            f"Sure answers: at least {100 * calibration.min_precision:g} % right, each threshold at a "
            f"confidence of 95 %{shared}"
        )
    if rules.max_distance is not None:
        lines.append(
            f"Unsure beyond a distance of {rules.max_distance:.3f} from the training images"
        )
    if calibration is not None and calibration.groups is not None:
        lines += calibration.groups.list_lines()
    if calibration is not None and calibration.origin is not None:
        lines.append(calibration.origin)
    return lines

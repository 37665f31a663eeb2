"""Rules by group of detectors: thresholds for equal false alarms on real videos of each site, and temperatures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.deepfake.evidence import FAKE, sigmoid
from vfm_runtime.errors import DataError
from vfm_runtime.tasks.groups import GroupRules

from vfm.data.group_columns import check_groups, read_columns
from vfm.deepfake.data.base import DeepfakeImages
from vfm.deepfake.data.dataset import DeepfakeRecord
from vfm.deepfake.data.layouts import MANIFEST
from vfm.deepfake.metrics import Key, Videos
from vfm.metrics.calibration import (
    fit_conformal_threshold,
    fit_temperature,
    measure_reliability,
)
from vfm.metrics.group_thresholds import bound_share, count_needed
from vfm.tasks.calibration import MIN_IMAGES, CalibrationError
from vfm.tasks.group_fit import GroupFit


def find_table(images: DeepfakeImages) -> Path | None:
    """Return the manifest of images, which may have columns of groups; None where there is none."""
    root = getattr(images, "root", None)
    path = getattr(images, "manifest", None) or (None if root is None else Path(root) / MANIFEST)
    return path if path is not None and path.is_file() else None


def read_video_groups(
    records: Sequence[DeepfakeRecord],
    column: str,
    table: Path | None,
    option: str,
    *,
    source: str,
) -> dict[Key, str]:
    """Return the group of each video, empty where its cells are.

    Args:
        records: Images of the videos.
        column: Column of the table with the groups.
        table: Table with a row for each image; None where there is none.
        option: Option that names the column, for errors.
        source: What the images are of, for errors.

    Raises:
        DataError: There is no table, no such column, or an image is not in it.
        CalibrationError: The images of one video have different values.
    """
    values = read_columns(records, [column], table, option, source=source)[column]
    groups: dict[Key, str] = {}
    for record, value in zip(records, values, strict=True):
        other = groups.setdefault(record.item.key, value)
        if other != value:
            raise CalibrationError(
                f"{record.name} has '{value}' in the column '{column}', but another image of the same video has "
                f"'{other}'. A video is in one group: give all its images one value, or name another column ({option})."
            )
    return groups


def require_groups(groups: Iterable[str], column: str, option: str) -> None:
    """Refuse with a DataError groups of videos by which nothing can be compared."""
    check_groups({column: list(groups)}, option)


def fit_video_groups(
    videos: Videos, groups: Sequence[str], rules: Decision, fpr: float, column: str
) -> GroupFit:
    """Fit for each group the threshold that at most a fraction of its real videos passes; the general one stays.

    Args:
        videos: V videos that the model has not seen.
        groups: Group of each video, [V]; empty of one whose group is not known.
        rules: General rules, which were fitted on all videos.
        fpr: Fraction of the real videos of each group that may be called fake.
        column: What the groups are values of.

    Raises:
        CalibrationError: No group has enough real videos.
    """
    names = np.asarray(groups, dtype=object)
    values = videos.logits / rules.temperature
    least = count_needed(fpr, at_most=True)
    limits = np.full(len(values), rules.limit)
    by_group: dict[str, dict[str, Any] | None] = {}
    rows: list[dict[str, Any]] = []
    for group in sorted(set(groups) - {""}):
        mine = names == group
        reals = values[mine & ~videos.fake]
        has_own = len(reals) >= least
        by_group[group] = None
        row = {"group": group, "label": FAKE, "num": len(reals), "own": has_own}
        if has_own:
            limit = fit_conformal_threshold(reals, fpr, "real videos")
            by_group[group] = {"threshold": limit, "num_reals": len(reals)}
            limits[mine] = limit
            num_above = int((reals > limit).sum())
            low, high = bound_share(num_above, len(reals))
            row |= {
                "cutoff": sigmoid(limit),
                "before": float((reals > rules.limit).mean()),
                "after": num_above / len(reals),
                "low": low,
                "high": high,
            }
        rows.append(row)
    if not any(row["own"] for row in rows):
        counts = ", ".join(f"{row['group']} {row['num']}" for row in rows[:5])
        raise CalibrationError(
            f"No group of '{column}' has enough real videos for a false alarm rate of {fpr:.1%}: it takes {least} "
            f"(there are: {counts}). Add some, allow more with --fpr, or leave out --group_column."
        )
    criterion = (
        f"Of the real videos of each group {fpr:.1%} at most are called fake (predictive equality: Corbett-Davies et "
        "al., Algorithmic decision making and the cost of fairness, 2017), on average over such fits."
    )
    fitted = GroupRules(column=column, criterion=criterion, general={}, groups=by_group)
    fakes, with_group = videos.fake, names != ""
    counted = fakes & with_group
    before, after = (
        float((values[counted] > some).mean()) if counted.any() else 0.0
        for some in (rules.limit, limits[counted])
    )
    return GroupFit(fitted, rows, "Fakes found", before, after)


def fit_video_temperatures(
    videos: Videos, groups: Sequence[str], rules: Decision, column: str
) -> GroupFit:
    """Fit for each group the temperature at which its scores are probabilities; verdicts stay.

    Both labels weigh the same, as in the general temperature. Arguments are those of `fit_video_groups`.

    Raises:
        CalibrationError: No group has enough videos.
    """
    names = np.asarray(groups, dtype=object)
    values, least = videos.logits / rules.temperature, MIN_IMAGES // 2
    by_group: dict[str, dict[str, Any] | None] = dict.fromkeys(sorted(set(groups) - {""}))
    rows: list[dict[str, Any]] = []
    for group in by_group:
        mine = names == group
        logits, fake = values[mine], videos.fake[mine]
        num_fakes, num_reals = int(fake.sum()), int((~fake).sum())
        row = {"group": group, "label": "temperature", "num": len(fake), "own": False}
        row["before"] = row["after"] = measure_reliability(logits, fake)["ece"]
        rows.append(row)
        if min(num_fakes, num_reals) < least:
            row["reason"] = (
                f"its {num_reals} real and {num_fakes} fake ones are too few: it takes {least} each"
            )
            continue
        try:
            further = fit_temperature(logits, fake)
        except (
            DataError
        ):  # it refuses one label alone, which was counted above, and reals that score no lower
            row["reason"] = "its real ones have no lower scores than its fake ones"
            continue
        row |= {
            "own": True,
            "temperature": further * rules.temperature,
            "after": measure_reliability(logits / further, fake)["ece"],
        }
        # Limits go with the scores, so that verdicts are the same.
        limits = {"threshold": rules.limit, "real_below": rules.real_below}
        moved = {name: limit / further for name, limit in limits.items() if limit is not None}
        by_group[group] = {"temperature": row["temperature"], **moved}
    if not any(row["own"] for row in rows):
        reasons = "; ".join(f"{row['group']}: {row['reason']}" for row in rows[:5])
        raise CalibrationError(
            f"No group of '{column}' has videos that a temperature can be fitted on ({reasons}). Add some, or leave "
            "out --group_column."
        )
    criterion = (
        "In each group scores are the probabilities of being fake where half of the videos are, by a temperature of "
        "its own (Guo et al., On calibration of modern neural networks, 2017); verdicts stay."
    )
    fitted = GroupRules(column=column, criterion=criterion, general={}, groups=by_group)
    return GroupFit.average_errors(fitted, rows)

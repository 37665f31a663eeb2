"""Balanced sampling: how often each training image comes, or counts, so that labels or groups weigh alike."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import OptionError

from vfm.data.group_columns import check_groups
from vfm.data.records import Record

Balance = Literal["none", "label", "group"]
"""What comes equally often: nothing, the labels, or each label of each group."""


def compute_balance_weights(
    records: Sequence[Record],
    balance: Balance,
    group_columns: Sequence[str],
    *,
    multilabel: bool,
    power: float = 1.0,
) -> NDArray[np.float64] | None:
    """Return how often each image comes in proportion to others, [N], 1 on average; None for all alike.

    Args:
        records: Training images, with the values of their group columns.
        balance: What comes equally often; with `group` each label of each combination of values, or where several
            labels may apply each combination.
        group_columns: Names of the records' groups.
        multilabel: Whether several labels, or none, may apply to an image.
        power: Exponent of the weights, above 0 up to 1: at 1 all come equally often, at 0.5 rare ones half way.

    Raises:
        OptionError: There is nothing to balance by, or the power lies outside its range.
        DataError: A column has one value, or nearly one for each image.
    """
    if not 0 < power <= 1:
        raise OptionError(
            f"--data.balance_power is {power:g}. Give a number above 0 up to 1: at 1 all come equally often."
        )
    if balance == "none":
        return None
    if balance == "label":
        if multilabel:
            raise OptionError(
                "--data.balance label is for one label an image; here several may apply. Give --model.class_weights "
                "balanced."
            )
        keys: list[object] = [record.label for record in records]
    else:
        if not group_columns:
            raise OptionError(
                "--data.balance group needs to know the groups. Name columns of the table: --data.group_columns [site]."
            )
        columns = {
            name: [record.groups[index] for record in records]
            for index, name in enumerate(group_columns)
        }
        check_groups(columns, "--data.group_columns")
        keys = [(r.groups, None if multilabel else r.label) for r in records]
    counts = Counter(keys)
    weights = np.array([1 / counts[key] for key in keys]) ** power
    return np.asarray(weights / weights.mean())

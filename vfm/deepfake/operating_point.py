"""Operating point of a detector: the rules that `vfm calibrate` fitted, as they lie beside a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, Self

from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.errors import DataError

from vfm.tasks.group_fit import GroupFit

OPERATING_POINT = "operating_point.json"
"""Beside the checkpoint, from `vfm calibrate`: `OperatingPoint.to_dict`, and nothing else."""


class OperatingPoint(NamedTuple):
    """Temperature, thresholds and limits of a detector, and thresholds by group."""

    decision: Decision
    groups: GroupFit | None = None
    """Thresholds by group; None where all videos have the same."""

    def to_dict(self) -> dict[str, Any]:
        """Return the decision's rules as plain values, with `groups` where there are some."""
        values = self.decision.to_dict()
        return values if self.groups is None else {**values, "groups": self.groups.to_dict()}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file that holds what `to_dict` gave.

        Raises:
            ValueError: It is damaged.
        """
        return cls.from_dict(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_dict(cls, values: Any) -> Self:
        """Return what `to_dict` gave.

        Raises:
            ValueError: The rules do not hold.
        """
        if not isinstance(values, dict) or values.get("groups") is None:
            return cls(Decision.from_dict(values))
        try:
            groups = GroupFit.from_dict(values["groups"])
        except (KeyError, TypeError) as error:
            raise DataError(f"'groups' lack {error}") from error
        return cls(Decision.from_dict({k: v for k, v in values.items() if k != "groups"}), groups)

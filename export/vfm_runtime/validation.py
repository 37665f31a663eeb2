"""Validation of plain values as JSON files hold them: depth, numbers, keys, rules."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self

from vfm_runtime.errors import DataError, format_value

_DEEPEST = 50


def is_deep(value: object) -> bool:
    """Tell whether lists and objects are nested so deeply that what was read might not be written again.

    Python's limit depends on where it is asked; this one does not.
    """
    level = [value]
    for _ in range(_DEEPEST):
        inner = [one for one in level if isinstance(one, dict | list | tuple)]
        level = [part for one in inner for part in (one.values() if isinstance(one, dict) else one)]
    return bool(level)


def is_whole(value: object) -> bool:
    """Tell whether a value is a whole number; in Python True is one too, in a rule it is a mistake."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Tell whether a value is a number, finite and within the range of a float."""
    number = is_whole(value) or isinstance(value, float)
    # Not isfinite: a whole number that is beyond every float breaks it.
    return number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


@dataclass(frozen=True)
class StoredRules:
    """Rules that a bundle holds; a subclass is a frozen dataclass that checks its values when made."""

    title: ClassVar[str] = "rules"
    """Name of the rules in errors, in the plural."""

    def to_dict(self) -> dict[str, Any]:
        """Return the rules as plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the rules from what `to_dict` returned, and check every value.

        Raises:
            DataError: A key is missing, unknown or holds a value it cannot hold. A rule that is missing must not become
                a default that nobody has chosen.
        """
        if not isinstance(values, Mapping):
            raise DataError(f"The {cls.title} are {format_value(values)}; expected an object.")
        names = [field.name for field in fields(cls)]
        for name in names:
            if name not in values:
                raise DataError(f"The {cls.title} have no key '{name}'. Write them anew.")
        for name in values:
            if name not in names:
                listed = ", ".join(names)
                raise DataError(f"The {cls.title} have an unknown key {name!r}. Known: {listed}.")
        return cls(**values)

"""Validation of plain values as JSON files hold them: depth, numbers, keys."""

import sys
from collections.abc import Collection, Mapping

from vfm_runtime.errors import DataError, format_value

_DEEPEST = 50


def is_deep(value: object) -> bool:
    """Tell whether lists and objects are nested so deeply that what was read might not be written again.

    Python's limit depends on where it is asked; this one does not.

    Args:
        value: As JSON gave it.
    """
    level = [value]
    for _ in range(_DEEPEST):
        inner = [one for one in level if isinstance(one, dict | list | tuple)]
        level = [part for one in inner for part in (one.values() if isinstance(one, dict) else one)]
    return bool(level)


def is_number(value: object) -> bool:
    """Tell whether a value is a number, finite and within the range of a float.

    Args:
        value: As JSON gave it.
    """
    # In Python True is an int; in a rule it is a mistake.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # Not isfinite: a whole number that is beyond every float breaks it.
    return number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def require_keys(values: object, names: Collection[str], what: str) -> None:
    """Refuse what is not an object with exactly these keys.

    A rule that is missing must not become a default that nobody has chosen.

    Args:
        values: As JSON gave it.
        names: The keys.
        what: The values are, in the plural.

    Raises:
        ValueError: A key is missing or unknown.
    """
    if not isinstance(values, Mapping):
        raise DataError(f"The {what} are {format_value(values)}; expected an object.")
    for name in names:
        if name not in values:
            raise DataError(f"The {what} have no key '{name}'. Write them anew.")
    for name in values:
        if name not in names:
            raise DataError(f"The {what} have an unknown key {name!r}. Known: {', '.join(names)}.")

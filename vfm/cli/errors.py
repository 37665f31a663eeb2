"""Errors as a user should meet them: cause, value given, near choices, remedy, on a few lines."""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable

from vfm_runtime.errors import VfmError

_MAX_LINES = 10


class UsageError(VfmError, ValueError):
    """The command line or a recipe is wrong; the message says how to mend it."""


def suggest(given: str, choices: Iterable[str]) -> str:
    """A sentence that names the choices near to what was given, or nothing."""
    names = list(choices)
    begun = [name for name in names if given and name.startswith(given)]
    found = (begun or difflib.get_close_matches(given, names, cutoff=0.6))[:3]
    return f" Did you mean {' or '.join(repr(name) for name in found)}?" if found else ""


def explain(error: BaseException) -> str:
    """The text for an error that ends a command.

    Errors of vfm say themselves what to do; of others the place in the code is added.
    """
    own = isinstance(error, VfmError)
    text = str(error).strip() or type(error).__name__
    notes = "\n".join(getattr(error, "__notes__", []))
    lines = [line for line in text.splitlines() if line.strip()]
    if not own:
        lines[0] = f"{type(error).__name__}: {lines[0]}"
        lines.append(f"({_place(error)}--debug shows the traceback)")
    if len(lines) > _MAX_LINES:
        left_out = len(lines) - _MAX_LINES + 1
        lines = [*lines[: _MAX_LINES - 2], f"... ({left_out} more lines)", lines[-1]]
    return "vfm: " + "\n".join([*lines, notes] if notes else lines)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return ""
    return f"raised at {frames[-1].filename}:{frames[-1].lineno}; "

"""Errors as a user should meet them: cause, value given, near choices, remedy, on a few lines."""

from __future__ import annotations

import traceback

from vfm_runtime.errors import VfmError

_MAX_LINES = 10


class UsageError(VfmError, ValueError):
    """The command line or a recipe is wrong; the message says how to mend it."""


def explain(error: BaseException) -> str:
    """Return the text for an error that ends a command.

    Errors of vfm say themselves what to do; of others the place in the code is added.
    """
    text = str(error).strip() or type(error).__name__
    notes = "\n".join(getattr(error, "__notes__", []))
    lines = [line for line in text.splitlines() if line.strip()]
    if not isinstance(error, VfmError):
        frames = traceback.extract_tb(error.__traceback__)
        origin = f"raised at {frames[-1].filename}:{frames[-1].lineno}; " if frames else ""
        lines[0] = f"{type(error).__name__}: {lines[0]}"
        lines.append(f"({origin}--debug shows the traceback)")
    if len(lines) > _MAX_LINES:
        left_out = len(lines) - _MAX_LINES + 1
        lines = [*lines[: _MAX_LINES - 2], f"... ({left_out} more lines)", lines[-1]]
    return "vfm: " + "\n".join([*lines, notes] if notes else lines)

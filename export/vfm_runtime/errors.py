"""Exceptions: VfmError, the base of all that vfm and vfm_runtime raise, and those that any module may raise."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Self

_REMEDY = "Export the bundle anew with this version of vfm."
_LONGEST = 80


class VfmError(Exception):
    """An error of vfm or vfm_runtime, which says what is wrong and what to do about it.

    Each has a built-in base too, such as `ValueError`, by which it can be caught as well.
    """


class OptionError(VfmError, ValueError):
    """An argument, an option or a setting has a value that it cannot have."""


class DataError(VfmError, ValueError):
    """A file, an array or a table holds what cannot be used."""


class MismatchError(VfmError, TypeError):
    """Two parts do not go together, such as a task and the data of another."""


class StateError(VfmError, RuntimeError):
    """Something was done too early, or gave nothing."""


class MissingPackageError(VfmError, ImportError):
    """A package is needed that is not installed."""


class AddressError(VfmError, OSError):
    """The server cannot listen where it was asked to."""


class BundleError(VfmError, ValueError):
    """The folder is not a bundle, or its files are not those that were exported."""


class ContractError(VfmError, ValueError):
    """The contract of a bundle is incomplete, malformed or newer than this version."""

    @classmethod
    def of(cls, key: str, value: object, expected: str, remedy: str = _REMEDY) -> Self:
        """Return the error of one key of a contract, whose value is not as expected; the remedy is a sentence."""
        return cls(
            f"The contract's '{key}' is {format_value(value)}; expected {expected}. {remedy}"
        )


class ProviderError(VfmError, RuntimeError):
    """ONNX Runtime is not installed properly, or cannot run where it was asked to."""


def suggest(word: str, choices: Iterable[str]) -> str:
    """Return a sentence that names up to three choices near to a word, after a space; empty where none is near."""
    names = list(choices)
    begun = [name for name in names if word and name.startswith(word)]
    near = (begun or difflib.get_close_matches(word, names, cutoff=0.6))[:3]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def format_value(value: object) -> str:
    """Return a value of any kind and size as errors show it."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply; a number of too many digits
        text = reprlib.repr(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."

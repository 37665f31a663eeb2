"""Errors of bundles and of ONNX Runtime, in one place so that any module can raise them."""

from typing import Self

from vfm_runtime.validation import shown

_REMEDY = "Export the bundle anew with this version of vfm."


class BundleError(ValueError):
    """The folder is not a bundle, or its files are not those that were exported."""


class ContractError(ValueError):
    """The contract of a bundle is incomplete, malformed or newer than this version."""

    @classmethod
    def of(cls, key: str, value: object, expected: str, remedy: str = _REMEDY) -> Self:
        """Return the error of one key of a contract.

        Args:
            key: Name of the key.
            value: What the contract holds.
            expected: What it may hold.
            remedy: A sentence on what to do.
        """
        return cls(f"The contract's '{key}' is {shown(value)}; expected {expected}. {remedy}")


class ProviderError(RuntimeError):
    """ONNX Runtime is not installed properly, or cannot run where it was asked to."""

"""Malicious releases of dependencies: refused by name before any of their code is imported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

from vfm_runtime.errors import VfmError

# Of April 2026: they stole credentials when they were imported. Gone from the index, not from caches and mirrors.
_MALICIOUS = {"lightning": ("2.6.2", "2.6.3"), "pytorch-lightning": ("2.6.2", "2.6.3")}
_MODULES = ("lightning", "pytorch_lightning")


class MaliciousPackageError(VfmError, RuntimeError):
    """A release that is known to be malicious is installed."""


class _ImportGuard:
    """Checks what is installed when lightning is first imported, whichever module of vfm or of the user does so."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> None:
        if fullname in _MODULES:
            refuse_malicious()
            sys.meta_path.remove(self)


def guard_imports() -> None:
    """Have malicious releases refused before lightning is imported, which may already have happened."""
    if any(name in sys.modules for name in _MODULES):
        refuse_malicious()
    else:
        sys.meta_path.insert(0, _ImportGuard())


def refuse_malicious() -> None:
    """Refuse malicious releases by what is installed, importing none of it.

    Raises:
        MaliciousPackageError: One is installed.
    """
    from importlib import metadata  # takes longer to import than `vfm --help` to run

    for name, versions in _MALICIOUS.items():
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        if version in versions:
            raise MaliciousPackageError(
                f"{name} {version} is installed, a malicious release that stole credentials (April 2026). vfm does not "
                "import it. Take this machine off the network, change every password, key and token that it held, and "
                "install anew in a fresh environment: "
                f"pip install --no-cache-dir 'vfm' '{name}!={',!='.join(versions)}'."
            )

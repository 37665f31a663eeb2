"""Option checks: settings that have no effect together, and what compiling needs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping

from vfm_runtime.errors import VfmError

from vfm.models.adapt import AdaptOptions
from vfm.models.adaptation import Adaptation


class CompileError(VfmError, ValueError):
    """The machine cannot compile a model."""


def list_idle_options(
    adapt: Adaptation | str, options: AdaptOptions, is_frozen: bool, set_options: Mapping[str, bool]
) -> list[str]:
    """Return a sentence for each setting that the adaptation leaves without effect."""
    idle = [f"adapt_options.{name}" for name in options.list_unused(adapt)]
    if is_frozen:
        idle += [name for name, is_set in set_options.items() if is_set]
    reason = ": the backbone stays frozen" if is_frozen else ""
    return [
        f"--model.{name} has no effect with --model.adapt {adapt}{reason}. Leave it out, or take another adaptation."
        for name in idle
    ]


def require_compiler() -> None:
    """Refuse `--model.compile true` where there is no C++ compiler, which torch needs for the code around kernels too.

    Raises:
        CompileError: There is none.
    """
    compiler = os.environ.get("CXX", "g++")
    if os.name == "posix" and shutil.which(compiler) is None:
        raise CompileError(
            f"--model.compile true needs a C++ compiler, but '{compiler}' is not found. "
            "Install g++, name another in the environment variable CXX, or leave compile out."
        )

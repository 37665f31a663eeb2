"""Compile a backbone with torch.compile (`--model.compile true`), asked for what it needs before the first batch."""

from __future__ import annotations

import os
import shutil

from torch import nn
from vfm_runtime.errors import VfmError


class CompileError(VfmError, ValueError):
    """The machine cannot compile a model."""


def compile_module(module: nn.Module) -> None:
    """Compile a module in place; its weights keep their names.

    Raises:
        CompileError: There is no C++ compiler, which torch needs for the code around kernels too.
    """
    compiler = os.environ.get("CXX", "g++")
    if os.name == "posix" and shutil.which(compiler) is None:
        raise CompileError(
            f"--model.compile true needs a C++ compiler, but '{compiler}' is not found. "
            "Install g++, name another in the environment variable CXX, or leave compile out."
        )
    module.compile()

"""ONNX Runtime as it is installed: its module, and what it raises."""

import contextlib
import importlib
import importlib.metadata
from typing import Any

from vfm_runtime.errors import ProviderError


def import_onnxruntime() -> Any:
    """Return the module `onnxruntime`, refusing an installation that is known to break.

    Raises:
        ProviderError: None of its distributions is installed, or both are.
    """
    installed = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed.append(importlib.metadata.distribution(name))
    if len(installed) == 2:
        raise ProviderError(
            "Both onnxruntime and onnxruntime-gpu are installed; they overwrite each other's "
            "files, so neither can be trusted. Uninstall both and install one:\n"
            "  pip uninstall -y onnxruntime onnxruntime-gpu\n"
            "  pip install 'vfm-runtime[cpu]'   or   pip install 'vfm-runtime[gpu]'"
        )
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        cause = f"cannot be imported ({error})" if installed else "is not installed"
        raise ProviderError(
            f"ONNX Runtime {cause}. Install one of:\n"
            "  pip install 'vfm-runtime[cpu]'\n"
            "  pip install 'vfm-runtime[gpu]'   for NVIDIA GPUs"
        ) from error


def list_errors() -> tuple[type[Exception], ...]:
    """List what ONNX Runtime raises; its errors have no common base of their own."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    values = vars(state).values()
    errors = (v for v in values if isinstance(v, type) and issubclass(v, Exception))
    # RuntimeError and ValueError: its Python layer raises those.
    return (RuntimeError, ValueError, *errors)


def summarize_error(error: Exception) -> str:
    """Return the first line of an error's text, of at most 300 characters; ONNX Runtime's can run over pages."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= 300 else f"{line[:297]}..."

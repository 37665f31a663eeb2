"""Choosing where a model runs, and never ending up elsewhere without saying so."""

import contextlib
import ctypes
import difflib
import importlib
import importlib.metadata
import io
import logging
import sys
from pathlib import Path
from typing import Any

from vfm_runtime.bundle import BundleError

DEVICES = ("auto", "cpu", "cuda")
"""What `device` may be."""

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu")

# ONNX Runtime reports by itself, in red, on stderr; what it could not do is raised here instead.
_ONLY_FATAL = 4

_log = logging.getLogger(__name__)


class ProviderError(RuntimeError):
    """ONNX Runtime is not installed properly, or cannot run where it was asked to."""


def import_onnxruntime() -> Any:
    """Return the module `onnxruntime`, refusing an installation that is known to break.

    Raises:
        ProviderError: None of its distributions is installed, or both are.
    """
    installed = [name for name in _DISTRIBUTIONS if _is_installed(name)]
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


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def has_cuda_device() -> bool:
    """Tell whether the NVIDIA driver is installed and sees a GPU."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return False
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return False
    return count.value > 0


def choose(device: str = "auto") -> str:
    """Return the device worth trying, `cuda` or `cpu`, before any model is loaded.

    Args:
        device: `cpu`, `cuda`, or `auto` for CUDA where there is a GPU and a build for it.

    Raises:
        ProviderError: CUDA was asked for and cannot be had.
        ValueError: `device` is none of these.
    """
    if device not in DEVICES:
        near = difflib.get_close_matches(device, DEVICES, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise ValueError(f"There is no device '{device}'.{hint} Devices: {', '.join(DEVICES)}.")
    runtime = import_onnxruntime()
    if device == "cpu":
        return "cpu"
    obstacle = _obstacle(runtime)
    if obstacle is None:
        return "cuda"
    if device == "cuda":
        raise ProviderError(f"CUDA was asked for, but {obstacle} Or use device='cpu'.")
    _log.info("Running on the CPU: %s", obstacle)
    return "cpu"


def _obstacle(runtime: Any) -> str | None:
    # The driver first: without one ONNX Runtime fills stderr with red lines when CUDA is tried.
    if not has_cuda_device():
        return (
            "there is no NVIDIA driver with a GPU on this machine. "
            "Check `nvidia-smi`; in a container, start it with --gpus all."
        )
    if _CUDA not in runtime.get_available_providers():
        return (
            f"the ONNX Runtime installed ({runtime.__version__}) is built without CUDA. Run: "
            "pip uninstall -y onnxruntime && pip install 'vfm-runtime[gpu]'."
        )
    return None


def open_session(path: Path, device: str = "auto", *, num_threads: int | None = None) -> Any:
    """Load an ONNX file and make sure that it runs where it should.

    Args:
        path: The ONNX file.
        device: `auto`, `cpu` or `cuda`.
        num_threads: Threads of one run on the CPU; None for one a core.

    Raises:
        ProviderError: CUDA was asked for and did not load.
        BundleError: ONNX Runtime cannot load the file.
    """
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}. Give at least 1, or None for one a core.")
    runtime = import_onnxruntime()
    if choose(device) == "cpu":
        return _create(runtime, path, [_CPU], num_threads)
    session, cause = _try_cuda(runtime, path, num_threads)
    if session is not None:
        _log.info("%s runs on CUDA.", path.name)
        return session
    message = (
        f"this machine has a GPU, but CUDA did not load: {cause} ONNX Runtime "
        f"{runtime.__version__} needs its CUDA and cuDNN libraries: "
        "pip install 'onnxruntime-gpu[cuda,cudnn]'."
    )
    if device == "cuda":
        raise ProviderError(f"CUDA was asked for; {message} Or use device='cpu'.")
    _log.warning("Running on the CPU: %s", message)
    return _create(runtime, path, [_CPU], num_threads)


def device_of(session: Any) -> str:
    """Return the device that a session really runs on, `cuda` or `cpu`.

    Args:
        session: A session of ONNX Runtime.
    """
    return "cuda" if _CUDA in session.get_providers() else "cpu"


def run_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises; its errors have no common base of their own."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    names = (
        "EPFail",
        "EngineError",
        "Fail",
        "InvalidArgument",
        "InvalidGraph",
        "InvalidProtobuf",
        "NoModel",
        "NoSuchFile",
        "NotImplemented",
        "RuntimeException",
    )
    # RuntimeError and ValueError: its Python layer raises those.
    return (RuntimeError, ValueError, *(getattr(state, name) for name in names))


def first_line(error: Exception) -> str:
    """Return the start of an error's text; ONNX Runtime's can run over pages.

    Args:
        error: The error.
    """
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= 300 else f"{line[:297]}..."


def _try_cuda(runtime: Any, path: Path, num_threads: int | None) -> tuple[Any, str]:
    # Both print to stdout what they could not load, which would spoil the output of a program.
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if hasattr(runtime, "preload_dlls"):
            runtime.preload_dlls()
        try:
            session = _new_session(runtime, path, [_CUDA, _CPU], num_threads)
        except run_errors() as error:
            return None, f"{first_line(error)}."
    # ONNX Runtime falls back without raising, so the session is asked what it got.
    if device_of(session) == "cuda":
        return session, ""
    return None, next(iter(printed.getvalue().splitlines()), "its libraries were not found.")


def _create(runtime: Any, path: Path, providers: list[str], num_threads: int | None) -> Any:
    try:
        return _new_session(runtime, path, providers, num_threads)
    except run_errors() as error:
        raise BundleError(
            f"{path} cannot be loaded by ONNX Runtime {runtime.__version__}: {first_line(error)} "
            "Upgrade ONNX Runtime, or export the bundle anew."
        ) from error


def _new_session(runtime: Any, path: Path, providers: list[str], num_threads: int | None) -> Any:
    options = runtime.SessionOptions()
    options.log_severity_level = _ONLY_FATAL
    if num_threads is not None:
        options.intra_op_num_threads = num_threads
    # TF32 rounds to 10 bits: an answer would depend on the GPU's generation.
    settings: list[dict[str, str]] = [
        {"use_tf32": "0"} if name == _CUDA else {} for name in providers
    ]
    session = runtime.InferenceSession(
        str(path), options, providers=providers, provider_options=settings, enable_fallback=0
    )
    # Else a failed run prints to stdout and is tried again on the CPU.
    session.disable_fallback()
    return session

"""Execution providers of ONNX Runtime: choosing the device of a session, and never falling back without a word."""

import contextlib
import ctypes
import hashlib
import io
import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple

from vfm_runtime.bundle import openvino
from vfm_runtime.cpu_quota import choose_num_threads
from vfm_runtime.errors import BundleError, OptionError, ProviderError, suggest
from vfm_runtime.ort import import_onnxruntime, list_errors, summarize_error

DEVICES = ("auto", "cpu", "cuda", "openvino", "tensorrt")
"""What `device` may be."""

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"
_TENSORRT = "TensorrtExecutionProvider"
_NAMES = {_TENSORRT: "tensorrt", _CUDA: "cuda", openvino.NAME: "openvino"}
_TITLES = {"cuda": "CUDA", "tensorrt": "TensorRT", "openvino": "OpenVINO"}
_PROVIDERS = {"cpu": [_CPU], "cuda": [_CUDA, _CPU], "tensorrt": [_TENSORRT, _CUDA, _CPU]}
_LIBRARIES = {"cuda": "CUDA and cuDNN", "tensorrt": "CUDA, cuDNN and TensorRT"}

# ONNX Runtime reports by itself, in red, on stderr; what it could not do is raised here instead.
_ONLY_FATAL = 4

_log = logging.getLogger(__name__)


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


def choose_device(device: str = "auto") -> str:
    """Return the device worth trying, before any model is loaded.

    Args:
        device: `cpu`, `cuda`, `tensorrt`, `openvino`, or `auto` for CUDA where there is a GPU and a build for it, else
            OpenVINO where its plugin is installed and drives this processor, else the CPU.

    Raises:
        ProviderError: The device was asked for and cannot be had.
        OptionError: `device` is none of these.
    """
    if device not in DEVICES:
        hint = suggest(device, DEVICES)
        raise OptionError(f"There is no device '{device}'.{hint} Devices: {', '.join(DEVICES)}.")
    runtime = import_onnxruntime()
    if device == "cpu":
        return "cpu"
    obstacle = _find_obstacle(runtime, "cuda" if device == "auto" else device)
    if device != "auto":
        if obstacle is not None:
            raise ProviderError(
                f"{_TITLES[device]} was asked for, but {obstacle} Or use device='cpu'."
            )
        return device
    if obstacle is None:
        return "cuda"
    where = "cpu" if openvino.find_obstacle() is not None else "openvino"
    _log.info("Running on %s: %s", _TITLES.get(where, "the CPU"), obstacle)
    return where


def _find_obstacle(runtime: Any, device: str) -> str | None:
    if device == "openvino":
        return openvino.find_obstacle()
    # The driver first: without one ONNX Runtime fills stderr with red lines when CUDA is tried.
    if not has_cuda_device():
        return (
            "there is no NVIDIA driver with a GPU on this machine. "
            "Check `nvidia-smi`; in a container, start it with --gpus all."
        )
    if not any(_NAMES.get(name) == device for name in runtime.get_available_providers()):
        return (
            f"the ONNX Runtime installed ({runtime.__version__}) is built without {_TITLES[device]}. Run: "
            "pip uninstall -y onnxruntime && pip install 'vfm-runtime[gpu]'."
        )
    return None


def open_session(
    path: Path,
    device: str = "auto",
    *,
    num_threads: int | None = None,
    precision: str = "fp32",
    keep_memory: bool = True,
    spin: bool = True,
) -> Any:
    """Load an ONNX file and make sure that it runs where it should.

    Args:
        path: Path of the ONNX file.
        device: Device where it runs, of `DEVICES`.
        num_threads: Number of threads of one run on the CPU; None for one for each core that may be used.
        precision: Precision of the graph; `bf16` where the device computes that of fp32 in it.
        keep_memory: Whether memory that a large input took is kept for the next one, which is then a little faster.
        spin: Whether idle threads wait for work without giving up their core. It makes the next run a little faster,
            and takes the core from everything else, such as decoding images.

    Raises:
        ProviderError: The device was asked for and did not load.
        BundleError: ONNX Runtime cannot load the file.
    """
    if num_threads is not None and num_threads < 1:
        raise OptionError(f"num_threads is {num_threads}. Give at least 1, or None for one a core.")
    num_threads = choose_num_threads(num_threads)
    runtime = import_onnxruntime()
    where = choose_device(device)
    setup = _Setup(runtime, path, num_threads, precision, keep_memory, spin)
    if where == "cpu":
        return _open_on_cpu(setup)
    session, cause = _try_device(setup, where)
    if session is not None:
        _log.info("%s runs on %s.", path.name, where)
        return session
    if where == "openvino":
        message = f"OpenVINO did not load the model: {cause}"
    else:
        message = (
            f"this machine has a GPU, but {_TITLES[where]} did not load: {cause} ONNX Runtime "
            f"{runtime.__version__} needs its {_LIBRARIES[where]} libraries: "
            "pip install 'onnxruntime-gpu[cuda,cudnn]'."
        )
    if device != "auto":
        raise ProviderError(f"{_TITLES[where]} was asked for; {message} Or use device='cpu'.")
    _log.warning("Running on the CPU: %s", message)
    return _open_on_cpu(setup)


def get_device(session: Any) -> str:
    """Return the device that a session of ONNX Runtime really runs on, such as `cuda` or `cpu`."""
    providers = session.get_providers()
    return next((name for provider, name in _NAMES.items() if provider in providers), "cpu")


class _Setup(NamedTuple):
    """Arguments of a session."""

    runtime: Any
    path: Path
    num_threads: int | None
    precision: str
    keep_memory: bool
    spin: bool

    def open(self, device: str) -> Any:
        options = self.runtime.SessionOptions()
        options.log_severity_level = _ONLY_FATAL
        options.enable_cpu_mem_arena = self.keep_memory
        if self.num_threads is not None:
            options.intra_op_num_threads = self.num_threads
        if not self.spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path, threads = str(self.path), self.num_threads
        if device == "openvino":
            return openvino.open_session(self.runtime, path, options, self.precision, threads)
        settings = {
            name: _get_settings(name, self.precision, self.path) for name in _PROVIDERS[device]
        }
        session = self.runtime.InferenceSession(
            path,
            options,
            providers=list(settings),
            provider_options=list(settings.values()),
            enable_fallback=0,
        )
        # With the fallback on, a failed run prints to stdout and is tried again on the CPU.
        session.disable_fallback()
        return session


def _try_device(setup: _Setup, device: str) -> tuple[Any, str]:
    """Return a session on the device, or None with the cause."""
    # What CUDA and TensorRT could not load is printed to stdout, which would spoil the output of a program.
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if device != "openvino" and hasattr(setup.runtime, "preload_dlls"):
            setup.runtime.preload_dlls()
        try:
            session = setup.open(device)
        except list_errors() as error:
            return None, f"{summarize_error(error).removesuffix('.')}."
    # ONNX Runtime falls back without raising, so the session is asked what it got.
    if get_device(session) == device:
        return session, ""
    return None, next(iter(printed.getvalue().splitlines()), "its libraries were not found.")


def _open_on_cpu(setup: _Setup) -> Any:
    try:
        return setup.open("cpu")
    except list_errors() as error:
        raise BundleError(
            f"{setup.path} cannot be loaded by ONNX Runtime {setup.runtime.__version__}: {summarize_error(error)} "
            "Upgrade ONNX Runtime, or export the bundle anew."
        ) from error


def _get_settings(provider: str, precision: str, path: Path) -> dict[str, str]:
    if provider == _CUDA:
        # TF32 rounds to 10 bits: an answer would depend on the GPU's generation.
        return {"use_tf32": "0"}
    if provider == _TENSORRT:
        # An engine takes minutes to build, so it is kept. TensorRT finds it by the structure of the graph, not by its
        # weights: a model that was trained anew would answer by the engine of the one before.
        cache = Path.home() / ".cache" / "vfm-runtime" / "tensorrt" / _hash_graph(path)
        return {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "1",
            "trt_fp16_enable": str(int(precision == "fp16")),
            "trt_bf16_enable": str(int(precision == "bf16")),
        }
    return {}


def _hash_graph(path: Path) -> str:
    """Return the sha256 of an ONNX file and of the file beside it that holds the weights of a large one."""
    digest = hashlib.sha256()
    for file in (path, path.with_name(f"{path.name}.data")):
        if file.exists():
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()

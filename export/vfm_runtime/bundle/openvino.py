"""OpenVINO: sessions on Intel's processors, through the plugin that ONNX Runtime loads."""

import functools
import importlib
import json
from typing import Any

from vfm_runtime.errors import ProviderError
from vfm_runtime.ort import list_errors

NAME = "OpenVINOExecutionProvider"
"""Name of the provider, as sessions list it."""

_PACKAGE = "onnxruntime_ep_openvino"
_REGISTERED = "vfm_runtime_openvino"
_HINTS = {"fp32": "f32", "bf16": "bf16"}


@functools.cache
def find_obstacle() -> str | None:
    """Find why OpenVINO cannot be used, a sentence with its remedy; None where it can."""
    try:
        plugin = importlib.import_module(_PACKAGE)
    except ImportError:
        return "the plugin is not installed: pip install onnxruntime-ep-openvino."
    runtime = importlib.import_module("onnxruntime")
    if not hasattr(runtime, "register_execution_provider_library"):
        return f"ONNX Runtime {runtime.__version__} loads no plugins; upgrade it to 1.23 or later."
    errors: tuple[type[Exception], ...] = (*list_errors(), OSError)
    try:
        _register(runtime, plugin.get_library_path())
    except errors as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        return f"its plugin does not load ({line}); install one made for ONNX Runtime {runtime.__version__}."
    if not _list_devices(runtime):
        return "its plugin finds no processor that it drives (it asks for Intel's)."
    return None


@functools.cache
def _register(runtime: Any, path: str) -> None:
    # ONNX Runtime refuses a second time in one process.
    runtime.register_execution_provider_library(_REGISTERED, path)


def open_session(
    runtime: Any, path: str, options: Any, precision: str, num_threads: int | None
) -> Any:
    """Open a session on OpenVINO's CPU device, with a ProviderError where it ends up elsewhere.

    It is for where `find_obstacle` has found none.
    """
    # Without a hint OpenVINO would compute in bfloat16 by itself, and answer otherwise than the same bundle elsewhere.
    properties = {"INFERENCE_PRECISION_HINT": _HINTS[precision]}
    if num_threads is not None:
        properties["INFERENCE_NUM_THREADS"] = str(num_threads)
    settings = {"load_config": json.dumps({"CPU": properties})}
    options.add_provider_for_devices(_list_devices(runtime)[:1], settings)
    session = runtime.InferenceSession(path, options)
    if NAME not in session.get_providers():
        raise ProviderError(f"the session runs on {', '.join(session.get_providers())}.")
    return session


def _list_devices(runtime: Any) -> list[Any]:
    kind = runtime.OrtHardwareDeviceType.CPU
    return [d for d in runtime.get_ep_devices() if d.ep_name == NAME and d.device.type == kind]

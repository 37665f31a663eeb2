"""Precision of a bundle: which of its graphs runs, and on which device."""

from collections.abc import Sequence

from vfm_runtime.bundle import providers
from vfm_runtime.errors import OptionError

PRECISIONS = ("auto", "fp32", "fp16", "int8", "bf16")
"""What `precision` may be. `bf16` is no graph of its own: OpenVINO and TensorRT compute that of fp32 in it."""

# Devices of the precisions that some cannot run; the first is that of device "auto" for int8 and bf16.
_RUNS_ON = {
    "int8": ("cpu",),
    "bf16": ("openvino", "tensorrt"),
    "fp16": ("cpu", "cuda", "tensorrt"),
}


def choose_precision(device: str, precision: str, available: Sequence[str]) -> tuple[str, str]:
    """Choose the device worth trying and the precision that runs there.

    Left to itself it takes CUDA, with fp16 where the bundle has it; else int8 on the CPU where the bundle has it, which
    then was measured to answer as well as it was asked to; else fp32, on OpenVINO where its plugin is installed.

    Raises:
        OptionError: One of them is unknown, the bundle has no such graph, or it does not run on that device.
        ProviderError: The device was asked for and cannot be had.
    """
    if precision not in PRECISIONS:
        raise OptionError(
            f"There is no precision '{precision}'. Precisions: {', '.join(PRECISIONS)}."
        )
    if precision not in ("auto", "bf16", *available):
        raise OptionError(
            f"This bundle has no {precision} graph; it has {', '.join(available)}. Export it with --{precision}, "
            "or ask for another precision."
        )
    if precision in _RUNS_ON and device not in ("auto", *_RUNS_ON[precision]):
        raise OptionError(
            f"{precision} does not run on '{device}'; it runs on {' and '.join(_RUNS_ON[precision])}. Leave the device "
            "out, or ask for another precision."
        )
    if device == "auto" and precision in ("int8", "bf16"):
        device = _RUNS_ON[precision][0]
    where = providers.choose_device(device)
    if precision == "fp16" and where == "openvino":
        # Device "auto" chooses OpenVINO, which does not run fp16 graphs; ONNX Runtime's CPU provider does.
        return "cpu", precision
    if precision != "auto":
        return where, precision
    if where in ("cuda", "tensorrt"):
        return where, "fp16" if "fp16" in available else "fp32"
    if "int8" in available and device in ("auto", "cpu"):
        return "cpu", "int8"
    return where, "fp32"

"""Which graph of a bundle runs, and where: every choice is said, none is made twice."""

from collections.abc import Sequence

from vfm_runtime.bundle import providers
from vfm_runtime.errors import OptionError

PRECISIONS = ("auto", "fp32", "fp16", "int8", "bf16")
"""What `precision` may be. `bf16` is no graph of its own: OpenVINO and TensorRT compute that of fp32 in it."""

_ON_GPU = ("cuda", "tensorrt")
_RUN_FP16 = ("cpu", "cuda", "tensorrt")
_COMPUTES_BF16 = ("openvino", "tensorrt")


def choose_precision(device: str, precision: str, available: Sequence[str]) -> tuple[str, str]:
    """The device worth trying and the precision that runs there.

    Left to itself it takes CUDA, with fp16 where the bundle has it; else int8 on the CPU where the bundle has it, which
    then was measured to answer as well as it was asked to; else fp32, on OpenVINO where its plugin is installed.

    Args:
        device: One of `vfm_runtime.bundle.providers.DEVICES`.
        precision: One of `PRECISIONS`.
        available: Precisions of the graphs in the bundle.

    Raises:
        ValueError: One of them is unknown, the bundle has no such graph, or it does not run on that device.
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
    if precision == "int8":
        _require(device, precision, ("cpu",))
        return providers.choose_device("cpu"), precision
    if precision == "bf16":
        _require(device, precision, _COMPUTES_BF16)
        return providers.choose_device("openvino" if device == "auto" else device), precision
    if precision == "fp16":
        _require(device, precision, _RUN_FP16)
        # Where OpenVINO would be taken, the CPU has the operators.
        where = providers.choose_device(device)
        return ("cpu" if where == "openvino" else where), precision
    where = providers.choose_device(device)
    if precision != "auto":
        return where, precision
    if where in _ON_GPU:
        return where, "fp16" if "fp16" in available else "fp32"
    if "int8" in available and device in ("auto", "cpu"):
        return "cpu", "int8"
    return where, "fp32"


def _require(device: str, precision: str, devices: Sequence[str]) -> None:
    if device not in ("auto", *devices):
        raise OptionError(
            f"{precision} does not run on '{device}'; it runs on {' and '.join(devices)}. Leave the device out, or ask "
            "for another precision."
        )

"""Precision of training that the hardware is fast in: bf16-mixed where a GPU has it natively, or else 32-true."""

from __future__ import annotations

from typing import Literal

import torch


def choose_precision(accelerator: str = "auto") -> Literal["bf16-mixed", "32-true"]:
    """Return the precision that suits the hardware, as Lightning's Trainer takes it.

    A GPU without bfloat16 of its own emulates it, slowly. CPUs stay at 32 bits: of EfficientNet-Lite0 at 128 pixels a
    step of 16 images took 0.41 s in float32 and 0.68 s in bf16-mixed on a Xeon with avx512_bf16 (one core).

    Args:
        accelerator: Name of Lightning's accelerator, such as `auto`, `gpu` or `cpu`.
    """
    on_cuda = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    is_native = on_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if is_native else "32-true"

"""Cost of a training: operations, memory by adaptation and by way of sharing it, time on this machine or another."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vfm_runtime.errors import VfmError

from vfm.cost.quote import Span
from vfm.cost.steps import PROCESS_BYTES, StepTimes, measure_allocator, trace_memory
from vfm.data import ImageData
from vfm.spec import build
from vfm.tasks import BaseTask

CHECKED = 0.25
"""Relative error of the predicted time of a step that the interval covers (tests/benchmarks/cost.py)."""
NUM_SHARDS = 8
"""Devices that the memory with DDP and FSDP is computed for."""

_ADAPTATIONS = ("full", "linear", "ln", "lora")


@dataclass(frozen=True)
class MemoryRow:
    """Memory of one way to train, in bytes."""

    adapt: str
    precision: str
    grad_checkpointing: bool
    num_trainable: int
    """Weights that learn."""
    weights: int
    step: int
    """Peak of a step beside the weights."""
    ddp: int
    """Whole device with DDP: buckets hold the gradients once more. Computed, not checked."""
    fsdp: int
    """Whole device of `NUM_SHARDS` with FSDP2. Computed, not checked."""

    @property
    def device(self) -> int:
        """Bytes on a single device."""
        return self.weights + self.step


def measure_memory(
    task: BaseTask, data: ImageData, batch_size: int, precision: str
) -> list[MemoryRow]:
    """Return the memory of the task's own way to train, of other adaptations, checkpointing and precision.

    Args:
        task: Task of a recipe; others are built by its spec, from a random start.
        data: Data whose train split has images for a batch of 4.
        batch_size: Number of images of a step.
        precision: Precision of the recipe as Lightning names it.
    """
    arguments = task.spec["init_args"]
    other = "bf16-mixed" if precision == "32-true" else "32-true"
    asked: list[tuple[dict[str, Any], str]] = [({}, precision)]
    asked += [({"adapt": name}, precision) for name in _ADAPTATIONS if name != arguments["adapt"]]
    asked += [({"grad_checkpointing": not arguments["grad_checkpointing"]}, precision), ({}, other)]
    builders = [(make_builder(task, **changes), kind) for changes, kind in asked]
    traces = [trace_memory(builder, data, kind) for builder, kind in builders]
    factor = measure_allocator(builders[0][0], data, batch_size, traces[0], precision)
    return [
        _describe_row(builder(), data, kind, int(factor * predict(batch_size)) + PROCESS_BYTES)
        for (builder, kind), predict in zip(builders, traces, strict=True)
    ]


def _describe_row(built: BaseTask, data: ImageData, precision: str, step: int) -> MemoryRow:
    built.take_labels(data)
    arguments = built.spec["init_args"]
    weights = sum(p.nbytes for p in built.parameters())
    learning = [p for p in built.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in learning)
    states = 2 * gradients  # AdamW's two averages
    activations = max(0, step - gradients - states)
    largest = max((sum(p.nbytes for p in m.parameters()) for m in _list_blocks(built)), default=0)
    adapt = arguments["adapt"]
    return MemoryRow(
        adapt=adapt if isinstance(adapt, str) else adapt["class_path"].rpartition(".")[2],
        precision=precision,
        grad_checkpointing=arguments["grad_checkpointing"],
        num_trainable=sum(p.numel() for p in learning),
        weights=weights,
        step=step,
        ddp=weights + step + gradients,
        # Two blocks are whole at a time: the one that computes, and the next one on its way.
        fsdp=(weights + gradients + states) // NUM_SHARDS + activations + 2 * largest,
    )


def _list_blocks(task: BaseTask) -> list[Any]:
    blocks = getattr(task.backbone.model, "blocks", None) or task.backbone.model.children()
    return list(blocks)


def make_builder(task: BaseTask, **changes: Any) -> Callable[[], BaseTask]:
    """Return a function that builds a task like another anew, with other arguments, from a random start."""
    spec = task.spec
    fixed = {"pretrained": False, "weights": None, "min_steps": 0}
    arguments = {**spec["init_args"], **fixed, **changes}
    if "cache_features" in arguments:
        # A frozen backbone is followed in every step, as where images are augmented.
        arguments["cache_features"] = False
    trust = [type(task).__module__.partition(".")[0]]

    def build_task() -> BaseTask:
        built: BaseTask = build({**spec, "init_args": arguments}, base=BaseTask, trust=trust)
        return built

    return build_task


class DeviceError(VfmError, ValueError):
    """The time on a device cannot be computed from what is known of it."""


def compute_seconds(
    times: StepTimes, batch_size: int, num_steps: int, *, num_devices: int = 1
) -> Span:
    """Return the seconds of a training on this machine, with the interval that was checked and what the steps show.

    Args:
        times: Times of steps that were measured here.
        batch_size: Number of images of a step on all devices together.
        num_steps: Number of steps of the whole training.
        num_devices: Devices that share each batch; that they lose nothing by it is an assumption.
    """
    step = times.predict(math.ceil(batch_size / num_devices))
    spread = times.large[1]
    low, high = min(spread) / statistics.median(spread), max(spread) / statistics.median(spread)
    value = num_steps * step
    return Span(value, value * min(low, 1 - CHECKED), value * max(high, 1 + CHECKED))


def compute_device_seconds(
    flops: float, row: Mapping[str, Any], device: str, efficiency: float, num_devices: int
) -> Span:
    """Return the seconds that operations take at a fraction of a device's peak.

    The interval is half to twice the efficiency: input pipelines, kernels and libraries decide it.

    Raises:
        DeviceError: The table does not say the device's peak.
    """
    if "tflops" not in row:
        raise DeviceError(
            f"The price table does not say the peak speed (tflops) of '{device}'. Add it in a file of your own, with "
            "source and date: --prices mine.yaml; or leave --device out for this machine."
        )
    seconds = flops / (row["tflops"] * 1e12 * num_devices)
    return Span(seconds / efficiency, seconds / min(1.0, 2 * efficiency), 2 * seconds / efficiency)


def format_memory(rows: list[MemoryRow], memory_gb: float | None) -> str:
    """Return a table of the memory; a star marks what is more than a device has."""
    header = ["adapt", "precision", "checkpointing", "M learn", "weights", "step", "device"]
    cells = [[*header, "DDP", f"FSDP, {NUM_SHARDS}"]]
    limit = math.inf if memory_gb is None else memory_gb * 1e9
    for row in rows:
        checkpointing = "yes" if row.grad_checkpointing else "no"
        sizes = [row.weights, row.step]
        totals = [row.device, row.ddp, row.fsdp]
        cells.append(
            [
                *(row.adapt, row.precision, checkpointing, f"{row.num_trainable / 1e6:.2f}"),
                *(f"{size / 1e6:.0f}" for size in sizes),
                *(f"{size / 1e6:.0f}{'*' if size > limit else ''}" for size in totals),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(text.ljust(w) if i < 3 else text.rjust(w) for i, (text, w) in columns).rstrip()
        for columns in (enumerate(zip(texts, widths, strict=True)) for texts in cells)
    ]
    return "\n".join(lines)


def describe_rows(rows: list[MemoryRow]) -> list[dict[str, Any]]:
    """Return the rows as JSON."""
    return [asdict(row) | {"device": row.device} for row in rows]

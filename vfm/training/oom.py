"""Out of memory (OOM): what to change, the largest batch that fits, and the peak of memory."""

from __future__ import annotations

import ctypes
import gc
import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.memory import is_oom_error

_STATUS = Path("/proc/self/status")


class MemoryAdvice(Callback):
    """Adds to an out-of-memory error the settings that need less."""

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Say what to change, those that cost least first."""
        if isinstance(exception, torch.OutOfMemoryError | RuntimeError) and is_oom_error(exception):
            exception.add_note(suggest_savings(trainer))


def suggest_savings(trainer: Trainer) -> str:
    """Return the settings of a run that would need less memory, with their values."""
    size = getattr(trainer.datamodule, "batch_size", None)  # type: ignore[attr-defined]
    lines = ["Out of memory. What needs less, the cheapest first:"]
    if trainer.precision == "32-true":
        lines.append("  --trainer.precision bf16-mixed (now 32-true)")
    if size and size > 1:
        twice = 2 * trainer.accumulate_grad_batches
        lines.append(
            f"  --data.batch_size {size // 2} --trainer.accumulate_grad_batches {twice} (now {size}): the same step"
        )
    lines += [
        "  --model.grad_checkpointing true: about a third more time",
        "  --model.adapt lora, ln or linear: fewer gradients and less optimiser state",
        "  --model.image_size: memory grows with its square or more",
    ]
    if trainer.world_size > 1:
        lines.append(
            "  FSDP2 (recipes/cluster/fsdp2.yaml): weights and optimiser state are shared out"
        )
    return "\n".join(lines)


class LargestBatch(BatchSizeFinder):
    """Finds the largest batch that fits before training, by doubling and halving, and scales the learning rate with it.

    AdamW's learning rate grows with the square root of the batch (Malladi et al., 2022).

    On the command line: `--trainer.callbacks+ vfm.training.oom.LargestBatch`.
    """

    def __init__(self, max_trials: int = 12, steps_per_trial: int = 3, margin: float = 0.1) -> None:
        """Set how to search.

        Args:
            max_trials: Largest number of sizes that are tried.
            steps_per_trial: Training steps at each size.
            margin: Fraction of the largest size that is left free, for fragmentation in a long run.
        """
        super().__init__(
            mode="binsearch",
            steps_per_trial=steps_per_trial,
            max_trials=max_trials,
            batch_arg_name="batch_size",
            margin=margin,
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Search, then set the batch size and the learning rate."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        start = data.batch_size
        super().on_fit_start(trainer, pl_module)
        # A batch larger than a rank's part of the epoch would never be full.
        most = len(data.records["train"]) // trainer.world_size
        data.batch_size = max(1, min(data.batch_size, most))
        factor = math.sqrt(data.batch_size / start)
        for optimizer in trainer.optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= factor
                group["initial_lr"] = group.get("initial_lr", group["lr"] / factor) * factor
        for config in trainer.lr_scheduler_configs:
            config.scheduler.base_lrs = [lr * factor for lr in config.scheduler.base_lrs]
        rank_zero_info(
            f"Largest batch that fits: {data.batch_size} images a process (was {start}). Learning rate times "
            f"{factor:.3g}, the square root of the ratio. To keep both: --data.batch_size {data.batch_size} "
            f"--model.optim.lr {pl_module.optim.lr * factor:.3g}"  # type: ignore[union-attr, operator]
        )


def reset_peak_memory() -> int:
    """Forget the peak so far, and return the bytes that are held now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if _STATUS.is_file():
        # What the C library holds back for later would hide the next peak.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _read_resident("VmRSS")
    return 0


def read_peak_memory() -> int:
    """Return the most bytes since `reset_peak_memory`: the GPU's allocations, or else what the process had resident.

    0 where the system does not tell, as on macOS and Windows.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return _read_resident("VmHWM") if _STATUS.is_file() else 0


def read_free_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the bytes that this machine has free, or its control group if those are fewer; None where unknown.

    Args:
        meminfo: File in which Linux tells its memory.
        cgroup: Folder of the control group that a container sees.
    """
    if not meminfo.is_file():
        return None
    lines = meminfo.read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    # Without a limit it is the word max; the root group has neither file.
    if limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdecimal():
        free = min(free, int(text) - int(used.read_text()))
    return free


def _read_resident(name: str) -> int:
    lines = _STATUS.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))

"""Budget of a training in hours, money or energy: a warning at 80 %, a clean stop with a checkpoint at the end."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.distributed import ReduceOp
from vfm_runtime.errors import OptionError

from vfm.training.meter import RunMeter
from vfm.training.ranks import reduce_ranks
from vfm.training.saving import find_last_checkpoint

COST_FILE = "cost.json"
"""Quote and meter of a run, beside its checkpoints."""

_WARN = 0.8


class CostMeter(Callback):
    """Measures hours and energy of a training over resumes, and writes them to `cost.json` beside its checkpoints.

    Attributes:
        quote: What was quoted for the training before it began, as JSON.
        usd_per_hour: Price of an hour of this machine; None where none was given.
    """

    quote: dict[str, Any] | None = None
    usd_per_hour: float | None = None

    def __init__(self) -> None:
        self.meter = RunMeter()
        self._earlier: dict[str, Any] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start to measure, after what the checkpoint has measured that is gone on from."""
        self.meter = RunMeter()
        if self._earlier is not None:
            self.meter.go_on(self._earlier)

    def measure(self) -> dict[str, Any]:
        """Return what was used so far; None for what is not measurable, or has no price."""
        measured = self.meter.to_dict()
        usd = None if self.usd_per_hour is None else measured["hours"] * self.usd_per_hour
        return {**measured, "usd": usd}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was used so far."""
        self.write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was used."""
        self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        """Write `cost.json`; a run without checkpoints leaves none."""
        path = find_last_checkpoint(trainer)
        if path is None or not trainer.is_global_zero or not path.parent.is_dir():
            return
        content = {"quote": self.quote, "meter": self.measure()}
        text = json.dumps(content, indent=2) + "\n"
        (path.parent / COST_FILE).write_text(text, encoding="utf-8")

    def state_dict(self) -> dict[str, Any]:
        """Return what a run that goes on adds to."""
        measured = {"meter": self.meter.to_dict(), "quote": self.quote}
        return {**measured, "usd_per_hour": self.usd_per_hour}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what was used before."""
        self._earlier = state_dict["meter"]
        self.quote = self.quote or state_dict["quote"]
        self.usd_per_hour = self.usd_per_hour or state_dict["usd_per_hour"]


class Budget(Callback):
    """Warns when 80 % of a budget is used, and ends the training with a checkpoint when all of it is.

    What was used is counted over resumes, by the run's CostMeter. On the command line:
    `--trainer.callbacks+ vfm.training.budget.Budget --trainer.callbacks.hours 2`.
    """

    def __init__(
        self,
        hours: float | None = None,
        usd: float | None = None,
        kwh: float | None = None,
        usd_per_hour: float | None = None,
    ) -> None:
        """Set the limits; the one that is reached first ends the training.

        Args:
            hours: Most hours, over resumes.
            usd: Most money, in dollars, at `usd_per_hour`.
            kwh: Most kilowatt-hours, where this machine counts them.
            usd_per_hour: Price of an hour of this machine.

        Raises:
            OptionError: There is no limit, one is not above 0, or money has no price.
        """
        limits = {"hours": hours, "usd": usd, "kwh": kwh}
        self.limits = {name: value for name, value in limits.items() if value is not None}
        if not self.limits:
            raise OptionError("A Budget has no limit. Give hours, usd or kwh.")
        for name, value in self.limits.items():
            if not 0 < value < math.inf:
                raise OptionError(f"{name} of the Budget is {value}. Give a number above 0.")
        if usd is not None and usd_per_hour is None:
            raise OptionError(
                f"The Budget is {usd:g} $, but an hour of this machine has no price. Give usd_per_hour too, or hours."
            )
        self.usd_per_hour = usd_per_hour
        self._warned: set[str] = set()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the meter of the run.

        Raises:
            OptionError: Energy is limited where it is not measurable.
        """
        meter = find_meter(trainer)
        if self.usd_per_hour is not None:
            meter.usd_per_hour = self.usd_per_hour
        if "kwh" in self.limits and meter.measure()["kwh"] is None:
            raise OptionError(
                f"The Budget is {self.limits['kwh']:g} kWh, but energy is {meter.meter.source}. Give hours or usd."
            )

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Warn, or save and end the training."""
        measured = find_meter(trainer).measure()
        fractions = {name: measured[name] / limit for name, limit in self.limits.items()}
        name = max(fractions, key=lambda key: fractions[key])
        # All ranks stop after the same step: the one that measures most decides.
        used = reduce_ranks(fractions[name], trainer.strategy.root_device, ReduceOp.MAX)
        said = f"{measured[name]:.3g} of {self.limits[name]:g} {'$' if name == 'usd' else name}"
        if used >= 1:
            path = find_last_checkpoint(trainer)
            if path is not None:
                trainer.save_checkpoint(path)
            trainer.should_stop = True
            goes_on = f"; go on with --ckpt_path {path} and a larger one" if path else ""
            rank_zero_info(f"The budget is used up ({said}): training stops, and is saved{goes_on}")
        elif used >= _WARN and name not in self._warned:
            self._warned.add(name)
            rank_zero_warn(f"{used:.0%} of the budget is used ({said}).")


def find_meter(trainer: Trainer) -> CostMeter:
    """Return the meter of a run, which every task has."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    meter: CostMeter = next(c for c in callbacks if isinstance(c, CostMeter))
    return meter


def read_costs(folder: Path) -> dict[str, Any] | None:
    """Read the quote and the meter of a run from the folder of its checkpoints; None where there are none."""
    path = folder / COST_FILE
    if not path.is_file():
        return None
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content

"""`vfm fit --estimate`: hours, money and energy of a training on its own data, quoted before it starts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from vfm.cli.errors import UsageError
from vfm.cli.minutes import list_trainer_words
from vfm.cli.recipes import Recipe
from vfm.cli.words import pop_option
from vfm.cost.prices import HERE, PriceTable
from vfm.cost.quote import Quote, Span
from vfm.training.fine_tuning import FEW_IMAGES, MIN_STEPS
from vfm.training.meter import EnergyMeter
from vfm.training.planning import TRIAL, TimedTrial

_OPTION, _PRICES = "--estimate", "--prices"
_SPREAD = 0.15
"""Least half-width of the interval of the time, as a fraction: a trial of some steps does not see a whole training."""


@dataclass
class MeteredTrial(TimedTrial):
    """A trial that also reads the energy of its steps, and what the number of steps follows."""

    meter: EnergyMeter = field(default_factory=EnergyMeter)
    joules: float | None = None
    min_steps: int = 0
    """Least number of steps that `auto` gives the data."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches, and start to read the energy."""
        super().on_fit_start(trainer, pl_module)
        task: Any = pl_module
        few = len(trainer.datamodule.records["train"]) < FEW_IMAGES  # type: ignore[attr-defined]
        is_pretrained = task.backbone.report is not None
        self.min_steps = MIN_STEPS * (task.follows_data_size and few and is_pretrained)
        self.meter = EnergyMeter()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the energy of the trial."""
        self.joules = self.meter.read()


def pop_estimate(words: list[str]) -> tuple[list[str], Path | None, bool]:
    """Take `--estimate` and `--prices` out of the words of a fit.

    Returns:
        The other words, the user's table of prices, and whether an estimate is asked for.

    Raises:
        UsageError: There are prices, but no estimate that needs them; or the training is one that goes on.
    """
    asked = _OPTION in words or bool(pop_option([w for w in words if w != _OPTION], _OPTION)[1])
    if asked and _OPTION not in words:
        raise UsageError("--estimate takes no value. Give it alone: vfm fit ... --estimate")
    rest, prices = pop_option([word for word in words if word != _OPTION], _PRICES)
    if prices and not asked:
        raise UsageError("--prices is for a quote. Add --estimate, or leave it out.")
    if asked and pop_option(rest, "--ckpt_path")[1]:
        raise UsageError(
            "--estimate quotes a training from its beginning, and --ckpt_path goes on with one. Leave one of them out."
        )
    return rest, Path(prices[-1]) if prices else None, asked


def quote_training(
    prices: Path | None,
    recipe: Recipe,
    run_trial: Callable[[TimedTrial, list[str]], None],
) -> Quote:
    """Run a trial on the training's own data, and return and print the quote.

    Args:
        prices: The user's table of prices; None for that of vfm alone.
        recipe: Recipe of the training, with every default.
        run_trial: Trains with a callback and options.

    Raises:
        UsageError: The training has no end, or its time does not depend on steps.
    """
    table = PriceTable.read(prices)
    trial = MeteredTrial()
    run_trial(trial, list_trainer_words(TRIAL))
    if not trial.steps and not trial.changes:
        raise UsageError(
            "--estimate finds no steps to measure: the head is solved at once, or there is a single step. Leave it out."
        )
    seconds, steps = estimate_seconds(trial, recipe)
    watts = None
    if trial.joules is not None:
        watts = trial.joules / (trial.startup + sum(trial.steps) + sum(trial.changes))
    quote = Quote.compute(
        seconds.scale(1 / 3600), table, device=HERE, measured=(watts, trial.meter.source)
    )
    print(f"Quote, from {len(trial.steps) or len(trial.changes)} steps of {steps}:")
    print("\n".join(f"  {line}" for line in quote.format_lines()), flush=True)
    return quote


def estimate_seconds(trial: MeteredTrial, recipe: Recipe) -> tuple[Span, int]:
    """Return the seconds of a training with its validations, from the steps of a trial, and its number of steps.

    Raises:
        UsageError: The training has no end.
    """
    trainer, floor = recipe["trainer"], recipe["model"]["init_args"].get("min_steps", 0)
    floor = trial.min_steps if floor == "auto" else floor
    epochs = trainer["max_epochs"]
    if trainer["max_steps"] not in (None, -1):
        epochs = trainer["max_steps"] / trial.epoch_steps
    elif epochs in (None, -1):
        raise UsageError("--estimate needs a training with an end. Give --trainer.max_epochs.")
    else:
        epochs = max(epochs, math.ceil(floor / trial.epoch_steps))
    validations = epochs / (trainer["check_val_every_n_epoch"] or 1)
    if epochs > trainer["max_epochs"] >= 1 and trainer["check_val_every_n_epoch"] == 1:
        validations = min(validations, 20)  # as extend_training spreads them
    times: Sequence[float] = trial.steps or trial.changes
    step = statistics.median(times)
    change = max(0.0, statistics.median(trial.changes) - step) if trial.changes else 0.0
    validation = trial.epoch_validated * statistics.median(trial.validated or [step])
    # The mean, not the median: slow steps are part of a training.
    mean = statistics.fmean(times)
    steps = epochs * trial.epoch_steps
    rest = trial.startup + epochs * change + validations * validation
    deviation = statistics.stdev(times) / mean if len(times) > 1 else 0.0
    width = max(_SPREAD, deviation)
    value = rest + steps * mean
    return Span(value, value * max(0.0, 1 - width), value * (1 + width)), round(steps)

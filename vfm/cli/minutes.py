"""`vfm fit --trainer.minutes 20`: a training that ends in time, counted over resumes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vfm_runtime.errors import OptionError

from vfm.cli.errors import UsageError
from vfm.cli.recipes import Recipe
from vfm.cli.words import pop_option
from vfm.training.planning import MINUTES_OPTION, TRIAL, TimedTrial, plan_training


def find_minutes(
    recipes: Sequence[Recipe], words: list[str]
) -> tuple[list[Recipe], list[str], float | None]:
    """Take `trainer.minutes` out of recipes and words; the last one counts.

    Raises:
        UsageError: It is no number above 0, or stands beside another length of the training.
    """
    rest, typed = pop_option(words, MINUTES_OPTION)
    sections = [recipe.get("trainer") or {} for recipe in recipes]
    values: list[Any] = [part["minutes"] for part in sections if "minutes" in part] + typed
    if not values:
        return list(recipes), words, None
    others = [
        name
        for name in ("max_epochs", "max_steps", "max_time")
        if pop_option(rest, f"--trainer.{name}")[1]
    ]
    try:
        minutes = float(values[-1])
    except (TypeError, ValueError):
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise UsageError(f"{MINUTES_OPTION} is {values[-1]}. Give a number above 0.")
    if others:
        raise UsageError(
            f"{MINUTES_OPTION} and --trainer.{others[0]} both say how long. Give one of them."
        )
    changed = [
        {**recipe, "trainer": {k: v for k, v in part.items() if k != "minutes"}}
        if "minutes" in part
        else recipe
        for recipe, part in zip(recipes, sections, strict=True)
    ]
    return changed, rest, minutes


def list_optim_words(batch_size: int, optim: Mapping[str, Any]) -> list[str]:
    """Return the options of a batch size and of learning rates without `auto`."""
    names = ("lr", "backbone_factor", "layer_decay")
    rates = [f"--model.optim.{name}={optim[name]}" for name in names if optim[name] is not None]
    return [f"--data.batch_size={batch_size}", *rates]


def list_trainer_words(options: Mapping[str, Any]) -> list[str]:
    """Return options of the Trainer as words, after the one by which a task trains no longer than they say."""
    values = {k: str(v).lower() if isinstance(v, bool) else v for k, v in options.items()}
    return ["--model.min_steps=0", *(f"--trainer.{name}={value}" for name, value in values.items())]


def plan_minutes(minutes: float, run_trial: Callable[[TimedTrial, list[str]], None]) -> list[str]:
    """Run a trial, and return the options of a training that ends in time; none where there is nothing to plan.

    Args:
        minutes: Time of the trial and the training together.
        run_trial: Trains with a callback and options.

    Raises:
        UsageError: Not even a few steps fit.
    """
    trial = TimedTrial()
    run_trial(trial, list_trainer_words(TRIAL))
    if not trial.steps and not trial.changes:
        print(f"{MINUTES_OPTION}: the head is solved at once; there are no steps to plan.")
        return []
    try:
        plan = plan_training(trial, 60 * minutes - (time.perf_counter() - trial.start))
    except OptionError as error:
        raise UsageError(str(error)) from error
    print(
        f"{minutes:g} minute{'s' * (minutes != 1)}: {plan.epochs} epochs, {plan.steps} steps, a validation after each "
        f"{plan.validate_every}."
    )
    for note in plan.notes:
        print(note)
    words = list_trainer_words(plan.list_trainer_options())
    if plan.batch_size is None:
        return words
    return list_optim_words(plan.batch_size, vars(trial.optim) | {"lr": plan.learning_rate}) + words

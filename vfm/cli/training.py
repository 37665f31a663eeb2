"""`vfm fit|validate|test|predict`: one LightningCLI call."""

from __future__ import annotations

import argparse
import signal
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

import vfm
from vfm.cli import TRAINING
from vfm.cli.compare import compare_call, select_sections
from vfm.cli.errors import UsageError
from vfm.cli.estimate import pop_estimate, quote_training
from vfm.cli.folds import cross_validate, describe_next, find_job
from vfm.cli.group_column import GroupColumn, GroupRulesReader
from vfm.cli.minutes import find_minutes, list_optim_words, list_trainer_words, plan_minutes
from vfm.cli.parsing import OPTIONS, find_root_cause, list_options, refuse_nulls, rewrite
from vfm.cli.prelabels import PreLabels
from vfm.cli.recipes import Recipe, read_recipe, update
from vfm.cli.resume import claim_run, count_runs, resolve
from vfm.cli.words import join_values, pop_option
from vfm.data import ImageData
from vfm.spec import check_trust, import_class, list_arguments
from vfm.tasks import BaseTask
from vfm.tasks.options import EARLIER_OPTIONS
from vfm.tasks.prelabels import check_pre_labels, write_pre_labels
from vfm.training.budget import CostMeter
from vfm.training.callbacks import get_output_dir
from vfm.training.checkpoint import KEY, read_checkpoint
from vfm.training.log_filters import filter_logs
from vfm.training.planning import MINUTES_OPTION, TimedTrial
from vfm.training.precision import choose_precision

# Options of the data that do not change what it is.
_LOADING = {"--data.batch_size", "--data.num_workers", "--data.augment"}
# Options that name other data than that of the checkpoint, whose list of images then says nothing.
_ELSEWHERE = {"--data", "--data.root", "--data.format", "--data.layout"}
_DEFAULTS = {"max_epochs": 10, "default_root_dir": "runs", "log_every_n_steps": 10}


class TrainingCLI(LightningCLI):
    """LightningCLI with CSV and TensorBoard logs, and the resolved recipe in the checkpoint."""

    def __init__(
        self,
        version: str | None = None,
        sections: Recipe | None = None,
        meter: CostMeter | None = None,
        pre_labels: PreLabels | None = None,
        group_column: GroupColumn | None = None,
        **kwargs: Any,
    ) -> None:
        """Run a command.

        Args:
            version: Folder of a fit below the root, by default that of the next number.
            sections: Sections of the recipe as the call states them, where it goes on with values that were chosen.
            meter: Meter that holds what was quoted for a fit.
            pre_labels: Pre-labels to write of a prediction.
            group_column: Column with the group of each image, by whose rules a prediction is made.
            **kwargs: Options of LightningCLI's own constructor.
        """
        self.version = version
        self._pre_labels = pre_labels
        self._group_column = group_column
        self._sections = sections or {}
        self._meter = meter
        super().__init__(**kwargs)

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parse, and explain what does not fit."""
        self._types_epochs = any(word.startswith("--trainer.max_epochs=") for word in args)
        try:
            super().parse_arguments(parser, args)
        except argparse.ArgumentError as error:
            options = list_options(self._subcommand_parsers[args[0]])
            raise UsageError(rewrite(str(error), options)) from error
        for section in ("model", "data"):
            refuse_nulls(section, self.config[args[0]].get(section))

    def instantiate_classes(self) -> None:
        """Make the task, the data and the Trainer; what a constructor refuses reads as it said it."""
        try:
            super().instantiate_classes()
        except ValueError as error:
            raise UsageError(find_root_cause(str(error))) from error
        if self._types_epochs:
            self.model.keep_epochs()

    def after_instantiate_classes(self) -> None:
        """Hand the resolved recipe to the task, which puts it into its checkpoints."""
        recipe = self.dump_recipe()
        changed = {"trainer": recipe["trainer"] | self._sections.get("trainer", {})}
        self.model.recipe = recipe | self._sections | changed
        if (asked := self._pre_labels) is not None:
            columns, folder = self.model.prediction_columns, asked.name_folder(self.trainer)
            multilabel = self.model.multilabel
            check_pre_labels(asked.to, columns, multilabel=multilabel, folder=folder)

    def dump_recipe(self) -> Recipe:
        """Return the resolved recipe."""
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        recipe: Recipe = dumped[self.subcommand]
        return recipe

    def after_fit(self) -> None:
        """Say where the best checkpoint lies, and what comes next."""
        saved = self.trainer.checkpoint_callback
        if not isinstance(saved, ModelCheckpoint) or not self.trainer.is_global_zero:
            return
        if saved.best_model_path and self.version is None:
            score = saved.best_model_score
            value = f" ({saved.monitor} {float(score):.4f})" if score is not None else ""
            print(describe_next(saved.best_model_path, value))

    def after_predict(self) -> None:
        """Write pre-labels, where they were asked for."""
        file = get_output_dir(self.trainer) / "predictions.csv"
        if (asked := self._pre_labels) is None or not self.trainer.is_global_zero:
            return
        folder, records = asked.name_folder(self.trainer), self.datamodule.records["predict"]
        number = write_pre_labels(
            folder, asked.to, file, records, self.model.labels, asked.threshold
        )
        print(f"Pre-labels of {number} images for {asked.to}: {folder}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the Trainer, with a fresh folder `runs/N` for the logs of a fit."""
        config = self.config_init[self.subcommand]["trainer"]
        _check_devices(config["accelerator"], config["devices"])
        if config["logger"] is None:
            kwargs["logger"] = False
            if self.subcommand == "fit":
                root = config["default_root_dir"]
                # The first process makes the folder, and Lightning tells the others where it is.
                is_first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
                claims = is_first and not config["fast_dev_run"] and "://" not in root
                claim = claim_run if claims else count_runs
                version = self.version or claim(Path(root))
                loggers = (CSVLogger, TensorBoardLogger)
                kwargs["logger"] = [logger(root, name="", version=version) for logger in loggers]
        if self.subcommand != "fit":
            self.save_config_callback = None  # it would lie beside the runs, and belong to none
        trainer = super().instantiate_trainer(**kwargs)
        if self.subcommand == "predict" and (path := self.config_init["predict"]["ckpt_path"]):
            reader = GroupRulesReader(Path(path), self._group_column)
            trainer.callbacks.append(reader)  # type: ignore[attr-defined]
        if self._meter is not None:
            trainer.callbacks.append(self._meter)  # type: ignore[attr-defined]
        return trainer


class TrialCLI(TrainingCLI):
    """Trains for a few steps, and leaves nothing."""

    def __init__(self, trial: TimedTrial, **kwargs: Any) -> None:
        """Train with a callback that times the steps, and ends them."""
        self._trial = trial
        super().__init__(**kwargs)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a Trainer with the callback, which saves nothing."""
        self.save_config_callback = None
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.append(self._trial)  # type: ignore[attr-defined]
        return trainer

    def after_fit(self) -> None:
        """Say nothing."""


class PartsCLI(TrainingCLI):
    """Makes the task and the data of a recipe, and runs nothing."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make a Trainer that saves nothing."""
        self.save_config_callback = None
        return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class RecipeCLI(TrainingCLI):
    """Resolves a recipe, and makes nothing of it."""

    def instantiate_classes(self) -> None:
        """Make nothing."""

    def after_instantiate_classes(self) -> None:
        """Hand nothing over."""

    def _set_seed(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def run(command: str, words: list[str]) -> None:
    """Run one of Lightning's commands.

    Raises:
        UsageError: An option, value, path or class does not fit.
    """
    try:
        _run(command, words)
    except SIGTERMException as stop:
        # What Lightning stops by itself has no status, which would be that of success.
        raise SystemExit(stop.code or 128 + signal.SIGTERM) from stop


def _run(command: str, words: list[str]) -> None:
    for name in vfm.__all__:
        getattr(vfm, name)  # a class is found by its short name once its module is imported
    words = join_values(words, short={"-c": "--config"})
    words, trust = pop_option(words, "--trust")
    words, pre_labels = PreLabels.pop(words, command)
    words, group_column = GroupColumn.pop(words, command)
    words, paths = pop_option(words, "--config")
    recipes = [read_recipe(path) for path in paths]
    recipes, words, minutes = find_minutes(recipes, words)
    words, prices, asks_quote = pop_estimate(words) if command == "fit" else (words, None, False)
    root = str(_DEFAULTS["default_root_dir"])
    if command == "fit" and (job := find_job(recipes, words, root, parse)) is not None:

        def start(options: list[str], version: str | None = None) -> TrainingCLI:
            make = partial(TrainingCLI, version)
            return _call(command, [""] * len(job.recipes), job.recipes, options, make)

        cross_validate(job, start)
        return
    compare = partial(_compare_checkpoint, recipes, words, trust)
    words = resolve(command, words, recipes, root, lambda path: compare(path)[1])
    sections = None
    if stored := _read_stored_recipe(command, words, recipes, trust):
        if command == "fit":
            path = pop_option(words, "--ckpt_path")[1][-1]
            sections, differences = compare(path, extends=True)
            if differences:
                print(f"Other than the run that goes on: {'; '.join(differences)}")
        paths, recipes = ["", *paths], [stored, *recipes]
    if command == "fit" and minutes is not None:
        # The checkpoints say what was asked for, so that the same call goes on with what was planned.
        sections = sections or select_sections(parse(recipes, words))
        words += _plan_length(minutes, paths, recipes, words, stored)
    meter = CostMeter() if asks_quote else None
    if meter is not None:
        trial = partial(_run_trial, paths, recipes, words)
        quote = quote_training(prices, parse(recipes, words), trial)
        meter.quote, meter.usd_per_hour = quote.to_dict(), quote.usd_per_hour
    make = partial(TrainingCLI, None, sections, meter, pre_labels, group_column)
    _call(command, paths, recipes, words, make)


def _plan_length(
    minutes: float,
    paths: Sequence[str],
    recipes: Sequence[Recipe],
    words: list[str],
    stored: Recipe | None,
) -> list[str]:
    """Return the options that end a training in time: those of a trial, or of the run that goes on."""
    if stored is not None:
        trainer = stored.get("trainer") or {}
        if trainer.get("max_time") is None:
            raise UsageError(
                f"{MINUTES_OPTION} is {minutes:g}, but the run that goes on was not planned by minutes. Give "
                "--trainer.max_epochs."
            )
        names = ("max_epochs", "check_val_every_n_epoch", "max_time")
        words = list_trainer_words({name: trainer[name] for name in names})
        optim = stored["model"]["init_args"].get("optim")
        size = ((stored.get("data") or {}).get("init_args") or {}).get("batch_size")
        return words + (list_optim_words(size, optim) if optim and size else [])

    return plan_minutes(minutes, partial(_run_trial, paths, recipes, words))


def _run_trial(
    paths: Sequence[str],
    recipes: Sequence[Recipe],
    words: Sequence[str],
    trial: TimedTrial,
    options: list[str],
) -> None:
    """Train with a trial's callback and options, which go before the words."""
    replaced = {option.partition("=")[0] for option in options}
    rest = [word for word in words if word.partition("=")[0] not in replaced]
    # The training says all of it again.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _call("fit", paths, recipes, [*rest, *options], partial(TrialCLI, trial))


def _compare_checkpoint(
    recipes: Sequence[Recipe],
    words: list[str],
    trust: list[str],
    path: str | Path,
    *,
    extends: bool = False,
) -> tuple[Recipe, list[str]]:
    """Compare a call with the run of a checkpoint; one of Python says what was resolved, not what was asked for."""
    entry = read_checkpoint(path, lazy=True)[KEY]
    stored = {"model": entry["model"], "data": (entry["data"] or {}).get("spec")}
    stored |= entry["recipe"] or {}
    for name in ("model", "data"):
        check_trust(stored[name] or {}, trust)
    return compare_call(parse, recipes, words, stored, extends=extends)


def parse(recipes: Sequence[Recipe], words: list[str]) -> Recipe:
    """Return the whole recipe of a fit, with the defaults of what it does not state.

    Raises:
        UsageError: An option, value, path or class does not fit.
    """
    words, _ = pop_option(words, "--ckpt_path")
    return _call("fit", [""] * len(recipes), recipes, words, RecipeCLI).dump_recipe()


def build_parts(recipes: Sequence[Recipe], words: list[str]) -> tuple[BaseTask, ImageData, Recipe]:
    """Return the task of a recipe, from a random start, its data and the whole recipe.

    Raises:
        UsageError: An option, value, path or class does not fit.
    """
    for name in vfm.__all__:
        getattr(vfm, name)  # a class is found by its short name once its module is imported
    fixed = ["--model.pretrained=false", "--model.weights=null", "--trainer.logger=false"]
    cli = _call("fit", [""] * len(recipes), recipes, [*words, *fixed], PartsCLI)
    return cli.model, cli.datamodule, cli.dump_recipe()


def _call(
    command: str,
    paths: Sequence[str],
    recipes: Sequence[Recipe],
    words: list[str],
    make: Callable[..., TrainingCLI],
) -> TrainingCLI:
    """Hand recipes and words to LightningCLI as files and arguments."""
    paths = list(paths)
    updated, words = update(*_resolve_precision(recipes, words))
    with tempfile.TemporaryDirectory() as folder:
        for number, (path, recipe, current) in enumerate(zip(paths, recipes, updated, strict=True)):
            if not path or current != recipe:
                file = Path(folder, f"{number}.yaml")
                file.write_text(yaml.safe_dump(current, sort_keys=False), encoding="utf-8")
                paths[number] = str(file)
        filter_logs()
        parser_kwargs: dict[str, Any] = OPTIONS | {name: dict(OPTIONS) for name in TRAINING}
        return make(
            model_class=BaseTask,
            datamodule_class=ImageData,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            seed_everything_default=0,
            trainer_defaults=_DEFAULTS,
            save_config_kwargs={"overwrite": True},
            parser_kwargs=parser_kwargs,
            args=[command, *(f"--config={path}" for path in paths), *words],
        )


def _resolve_precision(
    recipes: Sequence[Recipe], words: list[str]
) -> tuple[list[Recipe], list[str]]:
    """Return recipes and words with what suits the hardware in the place of `precision: auto`."""
    sections = [recipe.get("trainer") or {} for recipe in recipes]
    rest, typed = pop_option(words, "--trainer.precision")
    asked = [section["precision"] for section in sections if section.get("precision")] + typed
    if "auto" not in asked:
        return list(recipes), words
    accelerators = [section.get("accelerator") for section in sections]
    accelerators += pop_option(words, "--trainer.accelerator")[1]
    chosen = choose_precision(next(filter(None, reversed(accelerators)), "auto"))
    if asked[-1] == "auto":
        print(f"Precision {chosen}, which suits the hardware (--trainer.precision).")
    changed = [
        {**recipe, "trainer": {**section, "precision": chosen}}
        if section.get("precision") == "auto"
        else recipe
        for recipe, section in zip(recipes, sections, strict=True)
    ]
    return changed, [*rest, *(f"--trainer.precision={chosen if p == 'auto' else p}" for p in typed)]


def _check_devices(accelerator: Any, devices: Any) -> None:
    present = torch.cuda.device_count()
    asked = max(devices, default=-1) + 1 if isinstance(devices, list) else devices
    if not str(asked).lstrip("-").isdigit():
        asked = 1
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and present > 0)
    if on_gpu and int(asked) > present and not torch.backends.mps.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(present)) or "none"
        remedy = f"--trainer.devices {present}" if present else "--trainer.accelerator cpu"
        raise UsageError(
            f"--trainer.devices {devices} on {accelerator} needs {asked} GPUs; this machine has {present} ({names}), "
            f"as torch {torch.__version__} and CUDA_VISIBLE_DEVICES show them. Give {remedy}, or "
            "--trainer.num_nodes for several machines."
        )


def _read_stored_recipe(
    command: str, words: list[str], recipes: Sequence[Recipe], trust: list[str]
) -> Recipe | None:
    """Read what `--ckpt_path` already says, so that it need not be typed again."""
    paths = pop_option(words, "--ckpt_path")[1]
    if not paths:
        return None
    path = paths[-1]
    entry = read_checkpoint(path)[KEY]
    model, data = entry["model"], (entry["data"] or {}).get("spec")
    for spec in filter(None, (model, data)):
        check_trust(spec, trust)
    recipe: Recipe = {}
    if command == "fit" and entry["recipe"]:
        recipe = {k: entry["recipe"][k] for k in ("seed_everything", "trainer")}
    if command == "fit":
        options = list_arguments(import_class(model["class_path"], trust))
        stated = {k: v for k, v in EARLIER_OPTIONS.items() if k in options} | model["init_args"]
        model = {**model, "init_args": stated}
    else:
        # The weights come from the checkpoint; nothing is fetched.
        fixed = model["init_args"] | {"pretrained": False, "weights": None}
        model = {**model, "init_args": fixed}
    recipe["model"] = model
    if data is not None:
        recipe["data"] = _update_data(data, words, recipes, Path(path))
    return recipe


def _update_data(
    data: Mapping[str, Any], words: list[str], recipes: Sequence[Recipe], checkpoint: Path
) -> Recipe:
    """Return the data of the checkpoint, with its list of splits unless other data is named."""
    arguments = dict(data["init_args"])
    typed = {word.partition("=")[0] for word in words if word.startswith("--data")}
    for recipe in recipes:
        section = recipe.get("data")
        if isinstance(section, dict):
            typed |= {f"--data.{name}" for name in section.get("init_args") or {}}
    if typed - _LOADING:
        arguments.pop("split_file", None)
    if typed & _ELSEWHERE:
        arguments.pop("manifest", None)
    for name in ("split_file", "table", "manifest"):
        path = Path(arguments.get(name) or "")
        # Where the run's folder was moved or copied, the list lies beside its checkpoints' folder.
        moved = checkpoint.parent.parent / path.name
        if not path.is_file() and moved.is_file():
            arguments[name] = str(moved)
    return {**data, "init_args": arguments}

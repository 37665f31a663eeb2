"""Cross-validation by `vfm fit --data.folds 5`: a training for each fold, its results, and a model of all images."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.cli import LightningCLI
from vfm_runtime.errors import DataError

from vfm.cli.compare import Parse, compare_call
from vfm.cli.errors import UsageError
from vfm.cli.recipes import Recipe
from vfm.cli.resume import claim_run, count_runs, find_option, list_jobs
from vfm.cli.words import pop_option
from vfm.data import ImageData
from vfm.models.tensors import read_plain
from vfm.tasks.out_of_fold import FoldPredictions, write_out_of_fold
from vfm.tasks.results import OUT_OF_FOLD, SplitPredictions, describe_metric
from vfm.training.checkpoint import read_checkpoint

JOB_FILE = "folds.json"
"""In the folder of a cross-validation: what was asked for."""

_HELD_OUT = "held_out.pt"
_LAST, _BEST = "checkpoints/last.ckpt", "checkpoints/best.ckpt"


class FoldJob(NamedTuple):
    """A cross-validation, begun or not."""

    folder: Path
    """Folder of the job, which holds those of the folds."""
    folds: int
    recipes: Sequence[Recipe]
    words: list[str]


Start = Callable[..., LightningCLI]
"""Runs a training by `words` in the folder `version` below the root."""


def describe_next(path: str | Path, value: str = "") -> str:
    """Return where the best checkpoint lies, and what comes next."""
    return (
        f"Best checkpoint: {path}{value}\n"
        f"Next: vfm test --ckpt_path {path}\n"
        f"      vfm export {path} --images FOLDER -o bundle"
    )


def find_job(
    recipes: Sequence[Recipe], words: list[str], default_root: str, parse: Parse
) -> FoldJob | None:
    """Return the cross-validation that a fit asks for, or goes on with by `--ckpt_path last`; None where it is neither.

    Raises:
        UsageError: It asks for what does not go with folds.
    """
    folds = find_option(recipes, words, "data", "folds")
    if find_option(recipes, words, "data", "fold") is not None:
        return None
    words, checkpoints = pop_option(words, "--ckpt_path")
    root = Path(find_option(recipes, words, "trainer", "default_root_dir") or default_root)
    goes_on = checkpoints[-1:] == ["last"]
    jobs = list_jobs(root, JOB_FILE, strict=folds is None) if goes_on else []
    begun = next((job for job in jobs if _is_same_job(job, recipes, words, parse)), None)
    if folds is None and begun is None:
        return None
    if jobs and begun is None:
        print(f"No folds in {root} are of a run like this one: training starts from the beginning.")
    if checkpoints and checkpoints[-1] != "last":
        raise UsageError(
            f"--ckpt_path {checkpoints[-1]} is of one training, and --data.folds {folds} makes several. Give "
            "--ckpt_path last to go on where they were cut, or name one fold, as in --data.fold 0."
        )
    if begun is not None:
        print(f"Going on with the folds in {begun}")
        stored = json.loads((begun / JOB_FILE).read_text(encoding="utf-8"))
        recipes = [*stored["recipes"], *(r for r in recipes if r not in stored["recipes"])]
        words = [*stored["words"], *(word for word in words if word not in stored["words"])]
        count = stored["folds"]
        if folds not in (None, count):
            raise UsageError(
                f"{begun} has {count} folds, not {folds}. Give --data.folds {count}, or start anew without --ckpt_path "
                "last."
            )
        return FoldJob(begun, count, recipes, words)
    _check_words(recipes, words)
    tries = find_option(recipes, words, "trainer", "fast_dev_run")
    folder = root / (count_runs if tries else claim_run)(root)
    return FoldJob(folder, folds, recipes, words)


def _is_same_job(folder: Path, recipes: Sequence[Recipe], words: list[str], parse: Parse) -> bool:
    """Return whether a call is that of a cross-validation, whatever the number of folds it names."""
    stored = json.loads((folder / JOB_FILE).read_text(encoding="utf-8"))
    recipe = parse(stored["recipes"], stored["words"])
    differences = compare_call(parse, recipes, words, recipe, extends=False)[1]
    return all(text.startswith("data.folds ") for text in differences)


def cross_validate(job: FoldJob, start: Start) -> None:
    """Train every fold that is not through yet, then a model of all images, and write what the folds said.

    Raises:
        UsageError: The data has changed since a fold was trained.
    """
    if find_option(job.recipes, job.words, "trainer", "fast_dev_run"):
        start([*job.words, "--data.fold=0"])
        return
    job.folder.mkdir(parents=True, exist_ok=True)
    asked = {"folds": job.folds, "recipes": list(job.recipes), "words": job.words}
    (job.folder / JOB_FILE).write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
    contents = [_run_fold(job, number, start) for number in range(job.folds)]
    print(f"All images ({job.folder})", flush=True)
    cli = _fit(job, "", choose_options(job, contents), start)
    folds = [_open_fold(cli.datamodule, *pair) for pair in enumerate(contents)]
    facts = [content["facts"] for content in contents]
    results = write_out_of_fold(cli.model, cli.datamodule, job.folder, folds, facts)
    best = job.folder / _BEST
    if not contents[0]["states_val"]:  # nothing chose, and the end is the best that is known
        shutil.copyfile(job.folder / _LAST, best)
    metric = cli.model.monitor.rpartition("/")[2]
    values, sizes = zip(
        *((row[metric], row["num_samples"]) for row in results["folds"]), strict=True
    )
    value, interval = describe_metric(results.get(metric, float(np.average(values, weights=sizes))))
    print(
        f"Out of fold: {metric} {value}{f' ({interval})' * bool(interval)} on {results['num_samples']} images, each "
        f"judged by the model that did not see it. Page: {job.folder / f'report_{OUT_OF_FOLD}.html'}\n"
        f"{describe_next(best)}"
    )


def choose_options(job: FoldJob, contents: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the options of the training on all images: its length where patience ended those of the folds."""
    options = ["--data.fold=null"]
    if contents[0]["states_val"]:
        return options
    options.append("--trainer.limit_val_batches=0")
    if contents[0]["chosen"]:
        steps = (find_option(job.recipes, job.words, "trainer", "max_steps") or -1) != -1
        unit, option = ("steps", "max_steps") if steps else ("epochs", "max_epochs")
        lengths = [content["facts"][unit] for content in contents]
        length = statistics.median_high(lengths)
        print(
            f"The folds were best after {', '.join(map(str, lengths))} {unit}: the median, {length}, it is. Their ends "
            "were chosen by the images that judge them, so what they say is a little too good."
        )
        options.append(f"--trainer.{option}={length}")
    return options


def _check_words(recipes: Sequence[Recipe], words: Sequence[str]) -> None:
    """Refuse options of the trainer that do not go with several trainings in one folder."""
    if find_option(recipes, words, "trainer", "logger") is not None:
        raise UsageError(
            "--data.folds keeps the logs of each fold in a folder of its own. Leave out --trainer.logger, or train the "
            "folds one by one, as in --data.fold 0."
        )
    devices = find_option(recipes, words, "trainer", "devices")
    several = isinstance(devices, list) and len(devices) > 1
    several |= str(devices) not in ("None", "auto", "1") and not isinstance(devices, list)
    nodes = find_option(recipes, words, "trainer", "num_nodes") or 1
    if several or nodes > 1 or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(
            f"--data.folds trains the folds one after another on one device, not on {devices} of {nodes} nodes. Give "
            "--trainer.devices 1, or train the folds one by one, as in --data.fold 0."
        )


def _run_fold(job: FoldJob, number: int, start: Start) -> dict[str, Any]:
    """Train a fold, unless it was before, and return what its model says of the images that were held out."""
    name = f"fold_{number}"
    file = job.folder / name / _HELD_OUT
    if file.is_file():
        content: dict[str, Any] = read_plain(file)
        return content
    print(f"Fold {number} of {job.folds} ({job.folder / name})", flush=True)
    cli = _fit(job, name, [f"--data.fold={number}"], start)
    # Without patience nothing was chosen by the held-out images, and they judge as images never seen.
    path = job.folder / name / (_LAST if cli.model.patience is None else _BEST)
    if not path.is_file():
        raise UsageError(
            f"Fold {number} left no {path}. Leave a ModelCheckpoint of your own out of --trainer.callbacks, or train "
            "the folds one by one, as in --data.fold 0."
        )
    cli.trainer.limit_val_batches = 1.0
    cli.trainer.validate(cli.model, cli.datamodule, ckpt_path=path, verbose=False)
    predictions = cli.model.evaluated
    if predictions is None:
        raise DataError(f"No image of fold {number} could be read, so nothing judges its model.")
    saved = read_checkpoint(path)
    content = {
        "facts": {
            "fold": number,
            "checkpoint": str(path),
            "epochs": saved["epoch"] + 1,
            "steps": saved["global_step"],
        },
        "chosen": cli.model.patience is not None,
        "states_val": cli.datamodule.leaves_val_out,
        "names": [record.name for record in cli.datamodule.records["val"]],
        "skipped": dict(cli.model.skipped.files["val"]),
        "position": torch.from_numpy(predictions.position),
        "rows": {name: torch.from_numpy(predictions.stack(name)) for name in predictions.rows},
        "sums": dict(predictions.sums),
    }
    partial = file.with_suffix(".partial")
    torch.save(content, partial)
    partial.replace(file)
    return content


def _fit(job: FoldJob, name: str, options: Sequence[str], start: Start) -> Any:
    """Train in a folder of the job, from where it was cut."""
    folder, words = job.folder / name, [*job.words, *options]
    defaults = {"devices": 1} | ({"enable_model_summary": False} if name != "fold_0" else {})
    for option, value in defaults.items():
        if find_option(job.recipes, job.words, "trainer", option) is None:
            words.append(f"--trainer.{option}={value}")
    if (folder / _LAST).is_file():
        words.append(f"--ckpt_path={folder / _LAST}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*directory .* exists and is not empty")
        return start(words, version=f"{job.folder.name}/{name}".rstrip("/"))


def _open_fold(data: ImageData, number: int, content: Mapping[str, Any]) -> FoldPredictions:
    """Find the images of a fold again."""
    held_out = data.hold_out(number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they were said when the fold was trained
        held_out.setup("validate")
    records = held_out.records["val"]
    if [record.name for record in records] != content["names"]:
        raise UsageError(
            f"The images of fold {number} are not those of when it was trained: files were added, removed or renamed. "
            "Start anew, without --ckpt_path."
        )
    rows = {name: [row.numpy() for row in rows] for name, rows in content["rows"].items()}
    predictions = SplitPredictions(content["position"].numpy(), rows, content["sums"])
    return FoldPredictions(records, predictions, content["skipped"])

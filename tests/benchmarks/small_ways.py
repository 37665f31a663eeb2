"""vfm's ways to learn from few images, by its command line as a user types it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from small_baselines import BACKBONE, LOOP_SIDE, locate_weights
from small_sets import Sample

RECIPES = Path(__file__).parents[2] / "recipes"
# `vfm`, from the checkout that this script lies in.
VFM = [sys.executable, "-c", "import sys; from vfm.cli import main; sys.exit(main())"]
QUIET = ("--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false")


def run_vfm(*words: str | Path | int | float, threads: int = 1) -> str:
    """Run a command of vfm, and return what it printed.

    Args:
        *words: Of the command.
        threads: For torch and its kin.
    """
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    command = [*VFM, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"vfm {' '.join(command[3:])}\nfailed:\n{done.stderr[-3000:]}")
    return done.stdout + done.stderr


def write_table(path: Path, **splits: list[Sample]) -> Path:
    """Write a table of images for `vfm`.

    Args:
        path: The table.
        **splits: The images of `train` and `test`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "label", "split"))
        for split, samples in splits.items():
            rows.writerows((image, label, split) for image, label in samples)
    return path


def fit_recipe(
    recipe: str, train: list[Sample], test: list[Sample], seed: int, folder: Path, *more: str
) -> dict[str, Any]:
    """Train by a recipe as it is, at the plain loop's size, and return the test accuracy of what it leaves.

    Args:
        recipe: Name of a file of recipes/classification.
        train: Images to learn from; the recipe holds out what it needs to choose by.
        test: Images to judge on.
        seed: Of the training and of what is held out.
        folder: For the table and the run.
        *more: Further words of the command.
    """
    table = write_table(folder / "images.csv", train=train, test=test)
    run_vfm(
        "fit",
        *("--config", RECIPES / "classification" / recipe),
        *("--config", RECIPES / "data" / "table.yaml", "--data.table", table),
        *("--data.num_workers", 0, "--data.seed", seed, "--seed_everything", seed),
        *("--model.backbone", BACKBONE, "--model.weights", locate_weights()),
        *("--model.image_size", LOOP_SIDE),
        *("--trainer.default_root_dir", folder / "runs", *QUIET, *more),
    )
    return judge_checkpoint(folder / "runs/0/checkpoints/best.ckpt", table)


def tune_images(
    train: list[Sample], test: list[Sample], seed: int, folder: Path, minutes: float
) -> dict[str, Any]:
    """Let `vfm tune` find the best way on two cores, and return what its finished model does on the test images.

    Args:
        train: Images to learn from.
        test: Images to judge on.
        seed: Of tune.
        folder: For its table and what it leaves.
        minutes: That it may take.
    """
    table = write_table(folder / "images.csv", train=train)
    run_vfm(
        *("tune", table, "--backbone", BACKBONE, "--weights", locate_weights()),
        *("--minutes", minutes, "--seed", seed, "--out", folder / "tune"),
        threads=2,
    )
    text = (folder / "tune" / "results.json").read_text(encoding="utf-8")
    left = json.loads(text)["cross-validation"]
    judged = judge_checkpoint(
        folder / "tune" / "model.ckpt", write_table(folder / "test.csv", test=test)
    )
    names = ("name", "value", "low", "high", "folds", "steps", "image_size")
    return judged | {
        "chosen": left["chosen"],
        "printed": left["accuracy"],
        "ways": [{name: way.get(name) for name in names} for way in left["ways"]],
        "not_tried": [way["name"] for way in left["not_tried"]],
        "minutes": left["minutes"],
    }


def fit_way(
    way: dict[str, Any], train: list[Sample], test: list[Sample], seed: int, folder: Path
) -> dict[str, Any]:
    """Fit a way that `vfm tune` tried and did not choose, on all images, as it would have done at the end.

    Args:
        way: Its name, steps and size of the images, as `tune_images` returns them.
        train: Images to learn from.
        test: Images to judge on.
        seed: Of the training.
        folder: For the table and the run.
    """
    table = write_table(folder / "images.csv", train=train, test=test)
    run_vfm(
        *("fit", "--config", RECIPES / "classification" / "lp_ft.yaml"),
        *("--data", "TableData", "--data.table", table, "--data.val_fraction", 0),
        *("--data.augment", "standard", "--data.batch_size", 16),
        *("--data.seed", seed, "--seed_everything", seed),
        *("--model.backbone", BACKBONE, "--model.weights", locate_weights()),
        *("--model.image_size", way["image_size"], "--model.adapt", way["name"]),
        *("--trainer.max_steps", way["steps"], "--trainer.max_epochs", -1),
        *("--trainer.limit_val_batches", 0, "--trainer.default_root_dir", folder / "runs", *QUIET),
        threads=2,
    )
    return judge_checkpoint(folder / "runs/0/checkpoints/last.ckpt", table)


def judge_checkpoint(checkpoint: Path, table: Path) -> dict[str, Any]:
    """The test accuracy of a checkpoint.

    Args:
        checkpoint: As `vfm fit` or `vfm tune` left it.
        table: Of the test images.
    """
    data = ("--data", "TableData", "--data.table", table, "--data.num_workers", 0)
    run_vfm("test", "--ckpt_path", checkpoint, *data, *QUIET)
    results = json.loads(checkpoint.with_name("results.json").read_text(encoding="utf-8"))
    return {"accuracy": results["test"]["accuracy"]["value"]}

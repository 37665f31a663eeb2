"""Folders of runs, and `--ckpt_path last`: the checkpoint to go on from when one command is called again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vfm.cli.errors import UsageError
from vfm.cli.recipes import Recipe
from vfm.cli.words import pop_option
from vfm.training.checkpoint import ADAPTER_SUFFIX, CheckpointError

_OPTION = "--ckpt_path"
_NUM_SHOWN = 3


def find_option(recipes: Sequence[Recipe], words: Sequence[str], section: str, name: str) -> Any:
    """Return the value of an option of a section, by the last that names it; None where none does."""
    sections = [recipe.get(section) or {} for recipe in recipes]
    values = [
        part[name]
        for content in sections
        if isinstance(content, dict)
        for part in (content, content.get("init_args") or {})
        if name in part
    ]
    options = (f"--{section}.{name}", f"--{section}.init_args.{name}")
    typed = (word.partition("=") for word in words)
    values += [yaml.safe_load(value) for option, _, value in typed if option in options]
    return values[-1] if values else None


def count_runs(root: Path) -> str:
    """Return the number of the next run of a folder."""
    return str(max((int(p.name) for p in root.glob("*") if p.name.isdigit()), default=-1) + 1)


def claim_run(root: Path) -> str:
    """Make the folder of the next run, and return its number; of jobs that start at once, each gets its own."""
    while True:
        number = count_runs(root)
        with contextlib.suppress(FileExistsError):
            (root / number).mkdir(parents=True)
            return number


def list_newest(root: Path, pattern: str) -> list[Path]:
    """Return the files that match, those written last first: an older run may have been gone on with."""
    return sorted(root.glob(pattern), key=lambda path: path.stat().st_mtime, reverse=True)


def list_jobs(root: Path, marker: str, *, strict: bool) -> list[Path]:
    """Return the runs with a file of this name, those written to last first.

    Args:
        root: Folder of the runs.
        marker: Name of the file.
        strict: Whether there are none where a run without the file was written to later.
    """
    paths = list_newest(root, "*/checkpoints/last.ckpt") + list_newest(
        root, "*/*/checkpoints/last.ckpt"
    )
    paths.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    runs = [root / path.relative_to(root).parts[0] for path in paths]
    marked = [run for run in dict.fromkeys(runs) if (run / marker).is_file()]
    return [] if strict and runs and runs[0] not in marked else marked


def resolve(
    command: str,
    words: list[str],
    recipes: Sequence[Recipe],
    default_root: str,
    compare: Callable[[Path], list[str]],
) -> list[str]:
    """Replace `--ckpt_path last` by the newest `last.ckpt` of the run's folder; drop it where there is none yet.

    Args:
        command: One of Lightning's commands; `fit` goes on with a run like the call alone.
        words: Options of the call, in one form.
        recipes: Recipes that the call names.
        default_root: Folder of the runs where none is named.
        compare: Lists how the call differs from the run of a checkpoint.

    Raises:
        UsageError: Nothing was trained that could be scored, or an adapter is given.
    """
    rest, paths = pop_option(words, _OPTION)
    if paths and paths[-1].endswith(ADAPTER_SUFFIX):
        raise UsageError(
            f"{_OPTION} {paths[-1]} is an adapter, without the backbone's weights. Give the .ckpt beside it; from "
            "Python, vfm.load and vfm.export take the adapter."
        )
    if not paths or paths[-1] != "last":
        return words
    root = Path(find_option(recipes, words, "trainer", "default_root_dir") or default_root)
    checkpoints = list_newest(root, "*/checkpoints/last.ckpt")
    others = []
    for checkpoint in checkpoints:
        try:
            differences = compare(checkpoint) if command == "fit" else []
        except CheckpointError as error:
            differences = [str(error).partition("\n")[0]]
        if not differences:
            print(f"Going on from {checkpoint}")
            return [*rest, f"{_OPTION}={checkpoint}"]
        others.append(f"\n  {checkpoint}: {'; '.join(differences[:_NUM_SHOWN])}")
    if command != "fit":
        raise UsageError(
            f"{_OPTION} last: there is no */checkpoints/last.ckpt in {root}. Train first, or name a checkpoint."
        )
    if others:
        print(
            f"No checkpoint in {root} is of a run like this one: training starts from the beginning. "
            f"{_OPTION} FILE goes on from another.{''.join(others[:_NUM_SHOWN])}"
        )
    else:
        print(f"No checkpoint in {root} yet: training starts from the beginning.")
    return rest

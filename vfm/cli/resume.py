"""Folders of runs, and `--ckpt_path last`: the checkpoint to go on from when one command is called again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from vfm.cli.errors import UsageError
from vfm.cli.recipes import Recipe
from vfm.cli.words import pop_option
from vfm.training.checkpoint import ADAPTER_SUFFIX

_OPTION = "--ckpt_path"


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


def claim_run(root: Path) -> Path:
    """Make the folder of the next run; of jobs that start at once, each gets a folder to itself."""
    while True:
        folder = root / count_runs(root)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder


def find_newest(paths: Iterable[Path]) -> Path | None:
    """Return the file that was written last; the folders' numbers would pass over an older run that was resumed."""
    return max(paths, key=lambda path: path.stat().st_mtime, default=None)


def find_newest_run(root: Path, marker: str, *, strict: bool) -> Path | None:
    """Return the run with a file of this name that was written to last.

    Args:
        root: Folder of the runs.
        marker: Name of the file.
        strict: Whether there is none where a run without the file was written to later.
    """
    patterns = ("*/checkpoints/last.ckpt", "*/*/checkpoints/last.ckpt")
    paths = [path for pattern in patterns for path in root.glob(pattern)]
    runs = {path: root / path.relative_to(root).parts[0] for path in paths}
    marked = {path for path, run in runs.items() if (run / marker).is_file()}
    newest = find_newest(paths if strict else marked)
    return runs[newest] if newest in marked else None


def resolve(
    command: str, words: list[str], recipes: Sequence[Recipe], default_root: str
) -> list[str]:
    """Replace `--ckpt_path last` by the newest `last.ckpt` of the run's folder; drop it where there is none yet.

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
    if checkpoint := find_newest(root.glob("*/checkpoints/last.ckpt")):
        print(f"Going on from {checkpoint}")
        return [*rest, f"{_OPTION}={checkpoint}"]
    if command != "fit":
        raise UsageError(
            f"{_OPTION} last: there is no */checkpoints/last.ckpt in {root}. Train first, or name a checkpoint."
        )
    print(f"No checkpoint in {root} yet: training starts from the beginning.")
    return rest

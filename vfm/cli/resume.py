"""`--ckpt_path last`: the newest checkpoint to go on from, so that one command starts a job and restarts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vfm.cli.errors import UsageError
from vfm.cli.recipes import Recipe
from vfm.cli.words import pop_option
from vfm.training.checkpoint import ADAPTER_SUFFIX

_OPTION = "--ckpt_path"


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
    folders = [(recipe.get("trainer") or {}).get("default_root_dir") for recipe in recipes]
    folders += pop_option(words, "--trainer.default_root_dir")[1]
    root = Path(next(filter(None, reversed(folders)), default_root))
    # A file's time: the folders' numbers would pass over an older run that was resumed.
    checkpoints = sorted(root.glob("*/checkpoints/last.ckpt"), key=lambda p: p.stat().st_mtime)
    if checkpoints:
        print(f"Going on from {checkpoints[-1]}")
        return [*rest, f"{_OPTION}={checkpoints[-1]}"]
    if command != "fit":
        raise UsageError(
            f"{_OPTION} last: there is no */checkpoints/last.ckpt in {root}. Train first, or name a checkpoint."
        )
    print(f"No checkpoint in {root} yet: training starts from the beginning.")
    return rest

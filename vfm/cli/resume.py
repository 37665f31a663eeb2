"""`--ckpt_path last`: the newest checkpoint to go on from, so that one command starts a job and restarts it."""

from __future__ import annotations

from pathlib import Path

import yaml

from vfm.cli.errors import UsageError
from vfm.cli.parsing import take
from vfm.training.checkpoint_file import ADAPTER_SUFFIX

LAST = "last"

_OPTION = "--ckpt_path"


def resolve(command: str, words: list[str], default_root: str) -> list[str]:
    """Replace `--ckpt_path last` by the newest `last.ckpt` of the run's folder; drop it where there is none yet.

    Args:
        command: fit, validate, test or predict.
        words: As typed.
        default_root: Folder of runs where none is named.

    Raises:
        UsageError: Nothing was trained that could be scored, or an adapter is given.
    """
    rest, paths = take(words, _OPTION)
    if paths and paths[-1].endswith(ADAPTER_SUFFIX):
        raise UsageError(
            f"{_OPTION} {paths[-1]} is an adapter, without the backbone's weights. Give the .ckpt beside it; from "
            "Python, vfm.load and vfm.export take the adapter."
        )
    if not paths or paths[-1] != LAST:
        return words
    root = Path(_root(words) or default_root)
    # A file's time: the folders' numbers would pass over an older run that was resumed.
    found = sorted(root.glob("*/checkpoints/last.ckpt"), key=lambda path: path.stat().st_mtime)
    if found:
        print(f"Going on from {found[-1]}")
        return [*rest, _OPTION, str(found[-1])]
    if command != "fit":
        raise UsageError(
            f"{_OPTION} last: there is no */checkpoints/last.ckpt in {root}. Train first, or name a checkpoint."
        )
    print(f"No checkpoint in {root} yet: training starts from the beginning.")
    return rest


def _root(words: list[str]) -> str | None:
    """The folder of runs that the words or their recipes name; the last one counts."""
    root: str | None = None
    pending = ""
    for word in words:
        option, _, value = word.partition("=")
        if pending:
            option, value, pending = pending, word, ""
        elif not value:
            pending = option if option in ("--config", "-c", "--trainer.default_root_dir") else ""
            continue
        if option == "--trainer.default_root_dir":
            root = value
        elif option in ("--config", "-c") and Path(value).is_file():
            recipe = yaml.safe_load(Path(value).read_text(encoding="utf-8")) or {}
            root = (recipe.get("trainer") or {}).get("default_root_dir") or root
    return root

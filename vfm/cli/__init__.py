"""The command `vfm`: a table of commands, each imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any

from vfm_runtime.errors import suggest

from vfm.cli.errors import UsageError, explain

TRAINING = {
    "fit": "train a task on your data",
    "validate": "score a checkpoint on the validation images",
    "test": "score a checkpoint on the test images",
    "predict": "label images with a checkpoint; --to writes pre-labels for an annotation tool",
}
COMMANDS = {
    "models": (
        "vfm.cli.models:list_models",
        "backbones: size, cost, licence, what each is good for",
    ),
    "tune": (
        "vfm.tune.command:tune",
        "the best model for a few labelled images, found and fitted in some minutes",
    ),
    "pretrain": (
        "vfm.pretrain.command:pretrain",
        "a backbone from images without labels, for as long as a probe says that it pays",
    ),
    "faces": (
        "vfm.deepfake.data.extract:faces",
        "cut faces out of videos and photos, for training",
    ),
    "doctor": (
        "vfm.audit.doctor.command:doctor",
        "what is wrong with data: leaks, copies, label errors, odd files, shortcuts",
    ),
    "calibrate": (
        "vfm.tasks.calibrate:calibrate",
        "make a checkpoint's scores probabilities and set its thresholds, for its export",
    ),
    "audit": (
        "vfm.audit.command:audit",
        "what may be trusted of a model: groups, calibration, robustness, and what cannot be seen",
    ),
    "embed": (
        "vfm.embed.command:embed",
        "vectors of the images of a folder or table, in a store to search",
    ),
    "classify": (
        "vfm.incontext.command:classify",
        "labels for images by a few examples of each class, or by words, without training",
    ),
    "search": ("vfm.search.command:search", "the images of a store that are most like another"),
    "index": (
        "vfm.search.index_command:index",
        "an index of a large store, for quick search with a measured recall",
    ),
    "duplicates": (
        "vfm.search.duplicates_command:duplicates",
        "images of a store that are nearly the same, and leaks between its splits",
    ),
    "cluster": (
        "vfm.search.cluster_command:cluster",
        "what kinds of images a store holds, and which are like no other",
    ),
    "select": (
        "vfm.search.cluster_command:select",
        "the images of a store to label next",
    ),
    "map": (
        "vfm.search.map_command:draw_map",
        "a page on which the images of a store lie beside those that are like them",
    ),
    "cost train": (
        "vfm.cli.cost:estimate_training",
        "what a training will take: memory, time, money, energy",
    ),
    "cost serve": (
        "vfm.cli.serving_cost:estimate_serving",
        "what a bundle's answers cost: latency here, replicas, money beside an API",
    ),
    "cost compare": (
        "vfm.cli.serving_cost:compare_costs",
        "accuracy against cost of models measured on one machine",
    ),
    "demo": ("vfm.demo:run_demo", "the whole job on a small real data set, in minutes"),
    "export": (
        "vfm.bundle.export:export_files",
        "make an ONNX bundle from a checkpoint, and prove that it agrees",
    ),
}
# Kinds of data with checks of their own, which `vfm doctor` asks first whether data are theirs.
DOCTORS = ("vfm.deepfake.shortcuts.command:DeepfakeDoctor",)
# Tasks whose images `vfm audit` opens by a function of theirs.
AUDITED_UNITS = {"deepfake": "vfm.deepfake.scoring:open_videos"}
# Commands of vfm-runtime, which need no torch.
RUNTIME = {
    "serve": "answer over HTTP with bundles, with a page to try it",
    "teach": "classes that a bundle learns from a few images, or a detector from a few boxes",
    "forget": "delete a taught class for good",
}

_HELP = """usage: vfm COMMAND [options]

Adapt a vision foundation model to your task, and ship it as an ONNX bundle.

{commands}

vfm COMMAND --help lists a command's options; --debug adds the traceback to an error; --version prints the version.
First steps: vfm demo
"""


def main(args: Sequence[str] | None = None) -> int:
    """Run a command with the words after `vfm`, those of the process by default.

    Returns:
        Exit status: 0 done, 1 the work failed, 2 it was called wrongly.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        table = TRAINING | {name: text for name, (_, text) in COMMANDS.items()} | RUNTIME
        rows = [f"  {name:<{max(map(len, table))}}  {text}" for name, text in table.items()]
        print(_HELP.format(commands="\n".join(rows)).rstrip())
        return 0
    if words[0] == "--version":
        from vfm import __version__

        print(f"vfm {__version__}")
        return 0
    try:
        _run(words[0], words[1:], debug=debug)
    except SystemExit as leaving:
        return int(leaving.code or 0)
    except Exception as error:  # the one place where every error becomes a message
        if debug:
            raise
        print(explain(error), file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _run(command: str, words: list[str], *, debug: bool) -> None:
    # The user's own heads are found in the folder that vfm is called from, after all installed packages.
    if os.getcwd() not in sys.path:  # noqa: PTH109 - a string, as sys.path holds
        sys.path.append(os.getcwd())  # noqa: PTH109
    if (name := " ".join([command, *words[:1]])) in COMMANDS:
        command, words = name, words[1:]
    if command in TRAINING:
        _import_function("vfm.cli.training:run")(command, words)
    elif command in COMMANDS:
        for path in DOCTORS if command == "doctor" else ():
            register = _import_function("vfm.audit.doctor.extensions:register_extension")
            register(_import_function(path)())
        for task, path in AUDITED_UNITS.items() if command == "audit" else ():
            register = _import_function("vfm.tasks.scored_units:register_units")
            register(task, _import_function(path))
        _import_function("vfm.cli.command:run")(
            command, _import_function(COMMANDS[command][0]), words
        )
    elif command in RUNTIME:
        more = ["--debug"] if debug else []
        raise SystemExit(_import_function("vfm_runtime.cli:main")([command, *words, *more]))
    else:
        names = [*TRAINING, *COMMANDS, *RUNTIME]
        raise UsageError(
            f"There is no command '{command}'.{suggest(command, names)}\n"
            f"Commands: {', '.join(names)}. See vfm --help."
        )


def _import_function(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)

"""Several heads on one backbone: which tasks can share it, and what their heads are called."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from vfm.bundle.errors import ExportError
from vfm.models.tensors import compute_checksum
from vfm.tasks import BaseTask

_SHOWN = 3
_NAME = r"[a-z0-9_]+"
# What every run calls its files and folders, and so says nothing of what was learned.
_USUAL = re.compile(r"(best|last|adapter|checkpoints|epoch.*|step.*|version_\d+|\d+)(-v\d+)?")
_RUN = re.compile(r"(?:version_)?(\d+)")


class MultiHeadError(ExportError):
    """Tasks cannot share a backbone, or their heads have no names of their own."""


def require_one_backbone(tasks: Mapping[str, BaseTask]) -> None:
    """Refuse tasks of which one pass through a backbone could not serve all.

    Raises:
        MultiHeadError: A task needs a backbone of its own, or two have other backbones, weights or preprocessing; with
            the difference.
    """
    if not tasks:
        raise MultiHeadError("There is no head. Give at least one checkpoint.")
    for name, task in tasks.items():
        if not re.fullmatch(_NAME, name):
            _refuse_name(name)
        if task.unshared_reason is not None:
            raise MultiHeadError(
                f"The head '{name}' {task.unshared_reason}. Export it to a bundle of its own."
            )
    (first, other), *rest = tasks.items()
    for name, task in rest:
        _require_same(f"The heads '{first}' and '{name}'", other, task)


def name_checkpoints(words: Sequence[str | Path]) -> dict[str, Path]:
    """Return checkpoints by the names of their heads.

    A name is given, or taken from the file or the nearest folder that says something: `colors/0/checkpoints/best.ckpt`
    is `colors`; beside `colors/1/checkpoints/best.ckpt` it is `colors_0`.

    Args:
        words: Checkpoints, each a file, or NAME=FILE.

    Raises:
        MultiHeadError: A name is no name, or stands twice.
    """
    named = [_split(str(word)) for word in words]
    choices = [_choose_name(path) for name, path in named if name is None]
    counts = Counter(choices)
    names, paths = [], []
    for name, path in named:
        if name is None:
            name = _choose_name(path)
            if counts[name] > 1:
                name += f"_{_find_run(path)}"
        names.append(name)
        paths.append(path)
    for name, count in Counter(names).items():
        if count > 1:
            same = ", ".join(str(p) for n, p in zip(names, paths, strict=True) if n == name)
            raise MultiHeadError(
                f"{count} heads are called '{name}': {same}. Give each a name of its own: NAME=FILE."
            )
    return dict(zip(names, paths, strict=True))


def choose_ood_head(tasks: Mapping[str, BaseTask]) -> str:
    """Return the name of the head whose images say where the training images of all lie."""
    # A backbone built for a head that reads no pooled vector does not give any.
    return max(tasks, key=lambda name: "pooled" in tasks[name].head.uses)


def _require_same(who: str, one: BaseTask, other: BaseTask) -> None:
    # The tag says which weights training began from; what became of them is compared itself.
    _require_same_option(
        who, "backbone", *(task.backbone.name.partition(".")[0] for task in (one, other))
    )
    _require_same_argument(who, "backbone_args", one, other)
    for field in dataclasses.fields(one.preprocess):
        values = [getattr(task.preprocess, field.name) for task in (one, other)]
        if values[0] != values[1]:
            raise MultiHeadError(
                f"{who} see their images differently: the preprocessing's {field.name} is {values[0]} and {values[1]}. "
                "Train both with the same --model.image_size and --model.fit, or export each to a bundle of its own."
            )
    _require_same_weights(who, one, other)
    if one.adaptation.adds_layers and one.adaptation.spec != other.adaptation.spec:
        # Adapters with equal tensors merge to other weights where their options differ, such as the alpha of LoRA.
        for name in ("adapt", "adapt_options"):
            _require_same_argument(who, name, one, other)


def _require_same_argument(who: str, name: str, *tasks: BaseTask) -> None:
    _require_same_option(who, name, *(task.spec["init_args"].get(name) or {} for task in tasks))


def _require_same_option(who: str, name: str, one: object, other: object) -> None:
    if one != other:
        raise MultiHeadError(
            f"{who} do not share one backbone: --model.{name} is {one!r} and {other!r}. Train all heads with the same "
            "one, and with --model.adapt linear from the same weights; or export each to a bundle of its own."
        )


def _require_same_weights(who: str, one: BaseTask, other: BaseTask) -> None:
    states = one.backbone.state_dict(), other.backbone.state_dict()
    sums = compute_checksum(states[0]), compute_checksum(states[1])
    if sums[0] == sums[1]:
        return
    different = list(_list_differences(states, (one, other)))
    if not different:
        return
    names = ", ".join(different[:_SHOWN])
    how = one.adaptation, other.adaptation
    more = f" and {len(different) - _SHOWN} more" if len(different) > _SHOWN else ""
    raise MultiHeadError(
        f"{who} have other weights in their backbones ({sums[0]} and {sums[1]}): {len(different)} of "
        f"{len(states[0].keys() | states[1].keys())} tensors differ, {names}{more}. Their --model.adapt is "
        f"{how[0]} and {how[1]}. Train all heads with --model.adapt linear from the same weights, or "
        "export each to a bundle of its own."
    )


def _list_differences(
    states: tuple[dict[str, Tensor], dict[str, Tensor]], tasks: tuple[BaseTask, BaseTask]
) -> Iterator[str]:
    """Names of tensors that are not the same in both."""
    # A backbone of which no head reads the pooled vector lacks the layers that make it.
    lacking = ["pooled" not in task.head.uses for task in tasks]
    for name in dict.fromkeys([*states[0], *states[1]]):
        one, other = (state.get(name) for state in states)
        if one is None or other is None:
            excused = (one is None and lacking[0]) or (other is None and lacking[1])
            same = excused
        else:
            same = one.dtype == other.dtype and torch.equal(one.cpu(), other.cpu())
        if not same:
            yield name


def _split(word: str) -> tuple[str | None, Path]:
    """The name in front of a file's, if there is one; a file's own name may hold a `=`."""
    name, equals, rest = word.partition("=")
    if not equals or Path(word).exists() or "/" in name or "\\" in name:
        return None, Path(word)
    if not re.fullmatch(_NAME, name):
        _refuse_name(name)
    return name, Path(rest)


def _choose_name(path: Path) -> str:
    """The nearest part of a path that says something."""
    for part in (path.stem, *reversed(path.absolute().parent.parts)):
        if not _USUAL.fullmatch(part.lower()) and (word := _clean(part)):
            return word
    return "head"


def _find_run(path: Path) -> str:
    """The number of the run that a path lies in; where there is none, the name of the file."""
    for part in reversed(path.absolute().parent.parts):
        if run := _RUN.fullmatch(part):
            return run.group(1)
    return _clean(path.stem)


def _clean(part: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", part.lower()).strip("_")


def _refuse_name(name: str) -> NoReturn:
    raise MultiHeadError(
        f"A head cannot be called '{name}'. Give NAME=FILE with a name of small letters, digits and underscores."
    )

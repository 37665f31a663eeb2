"""Comparison of a call with an earlier run: whether model, loss, optimizer, data, splits and seed are the same."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from vfm.cli.recipes import Recipe

Parse = Callable[[Sequence[Recipe], list[str]], Recipe]
"""Returns the whole recipe of a call, with the defaults of what it does not state."""

_SECTIONS = ("seed_everything", "model", "data", "trainer")
_OF_TRAINER = (
    *("gradient_clip_val", "gradient_clip_algorithm"),
    *("limit_train_batches", "overfit_batches"),
)
"""Options of the trainer that say what is learned from, and how; the others say where and for how long."""
_FREE = {
    *("model.patience", "model.min_steps", "model.compile", "model.grad_checkpointing"),
    *("model.channels_last", "data.num_workers"),
}
"""Options of the model and the data that change where and for how long is trained."""
_GROWING = ("init_args", "optim", *_SECTIONS)
"""Sections to which a later version may add options, which an earlier recipe does not state."""
_ABSENT = object()


def compare_call(
    parse: Parse, recipes: Sequence[Recipe], words: list[str], stored: Recipe, *, extends: bool
) -> tuple[Recipe, list[str]]:
    """Compare a call with the recipe of an earlier run, which stands for the classes that the call does not name.

    Args:
        parse: Function that fills a recipe up with defaults.
        recipes: Recipes of the call.
        words: Options of the call.
        stored: Resolved recipe of the run.
        extends: Whether the run also stands for options that the call does not name.

    Returns:
        The sections of the call's recipe that count, and each difference, such as `model.optim.lr is 0.1, not 0.2`.
    """
    if not extends and _names_class("model", recipes, words):
        base = {} if _names_class("data", recipes, words) else {"data": stored["data"]}
    else:
        base = select_sections(stored)
    sections = select_sections(parse([base, *recipes], words))
    return sections, list_differences(sections, select_sections(stored))


def select_sections(recipe: Recipe) -> Recipe:
    """Return the sections of a recipe that say what is learned from what, and how."""
    sections = {name: recipe[name] for name in _SECTIONS if recipe.get(name) is not None}
    trainer = sections.get("trainer", {})
    return sections | {"trainer": {k: trainer[k] for k in _OF_TRAINER if k in trainer}}


def list_differences(current: Recipe, stored: Recipe) -> list[str]:
    """Return each option that counts and differs, with both values."""
    pairs = _walk("", current, stored)
    return [
        f"{name} is {_show(new)}, not {_show(old)}" for name, new, old in pairs if name not in _FREE
    ]


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)  # as a recipe says it


def _walk(
    name: str, current: Any, stored: Any, *, growing: bool = True
) -> Iterator[tuple[str, Any, Any]]:
    if not (isinstance(current, Mapping) and isinstance(stored, Mapping)):
        same = current == stored or (current is True and isinstance(stored, int))  # a drawn seed
        if isinstance(current, str) and isinstance(stored, str):
            same = os.path.abspath(current) == os.path.abspath(stored)  # noqa: PTH100 - or no path
        if not same:
            yield name, current, stored
        return
    for key in (*current, *(stored.keys() - current.keys())):
        values = current.get(key, _ABSENT), stored.get(key, _ABSENT)
        if _ABSENT not in values:
            inner = f"{name}.{key}".removeprefix(".")
            yield from _walk(
                name if key == "init_args" else inner, *values, growing=key in _GROWING
            )
        elif not growing:
            new, old = ("unset" if value is _ABSENT else value for value in values)
            yield f"{name}.{key}", new, old


def _names_class(section: str, recipes: Sequence[Recipe], words: Sequence[str]) -> bool:
    """Return whether a call says the class of a section, and so all of it."""
    values = [recipe.get(section) for recipe in recipes]
    options = (f"--{section}=", f"--{section}.class_path=")
    return any(
        isinstance(v, str) or (isinstance(v, dict) and "class_path" in v) for v in values
    ) or (any(word.startswith(options) for word in words))

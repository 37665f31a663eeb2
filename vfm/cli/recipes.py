"""Recipes and options of a training: read once, brought up to date, and in the order that the parser wants."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vfm.cli.errors import UsageError
from vfm.cli.parsing import list_concrete
from vfm.data import ImageData
from vfm.renames import CLASSES, update_class_paths, update_path
from vfm.spec import update_arguments
from vfm.tasks import BaseTask

_BASES = {"model": BaseTask, "data": ImageData}
_NAMES_CLASS = ("model", "data", "head", "class_path")
"""Last parts of the options that take a class."""

Recipe = dict[str, Any]


def read_recipe(path: str) -> Recipe:
    """Read a recipe; it is empty where there is no such file, which the parser explains.

    Raises:
        UsageError: The file is no YAML.
    """
    if not Path(path).is_file():
        return {}
    try:
        recipe = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"The recipe {path} is not valid YAML:\n{error}") from error
    return recipe if isinstance(recipe, dict) else {}


def update(recipes: Sequence[Recipe], words: Sequence[str]) -> tuple[list[Recipe], list[str]]:
    """Bring names of classes and arguments of earlier versions up to date, in recipes and in words of `join_values`.

    Returns:
        The recipes and the options, those that name a class before the arguments of the class.
    """
    recipes = [update_class_paths(recipe) for recipe in recipes]
    current = []
    for word in words:
        name, equals, value = word.partition("=")
        # A short name is one of a class only where the option takes classes: a folder may be called the same.
        takes_class = name.rpartition(".")[2].removeprefix("--") in _NAMES_CLASS
        if value.startswith("vfm.") or (takes_class and value in CLASSES):
            value = update_path(value)
        current.append(f"{name}{equals}{value}")
    words = sorted(current, key=_order)
    classes = {section: _find_class(section, recipes, words) for section in _BASES}
    for recipe in recipes:
        for section in classes.keys() & recipe.keys():
            recipe[section] = _update_section(recipe[section], classes[section])
    return recipes, [_update_keys(word, classes) for word in words]


def _order(word: str) -> tuple[bool, int]:
    name = word.partition("=")[0]
    of_class = name.removeprefix("--").partition(".")[0] in _BASES and "+" not in name
    return (not of_class, name.count(".") if of_class else 0)


def _find_class(section: str, recipes: Sequence[Recipe], words: Sequence[str]) -> type:
    """The class of the task or the data as far as it can be told; the parser explains what is wrong with another."""
    values = [recipe.get(section) for recipe in recipes]
    names = [value.get("class_path") if isinstance(value, dict) else value for value in values]
    options = (f"--{section}", f"--{section}.class_path")
    names += [word.partition("=")[2] for word in words if word.partition("=")[0] in options]
    base: type = _BASES[section]
    name = next((name for name in reversed(names) if isinstance(name, str)), "")
    module, _, last = name.rpartition(".")
    if not module:
        return next((cls for cls in list_concrete(base) if cls.__name__ == name), base)
    try:
        cls = getattr(importlib.import_module(module), last)
    except (ImportError, AttributeError):
        return base
    return cls if isinstance(cls, type) else base


def _update_section(value: Any, cls: type) -> Any:
    """A component as a recipe or an option holds it, with its arguments under `init_args` or by themselves."""
    if not isinstance(value, Mapping):
        return value
    if isinstance(value.get("init_args"), Mapping):
        return {**value, "init_args": update_arguments(cls, value["init_args"])}
    return dict(value) if "class_path" in value else update_arguments(cls, value)


def _update_keys(word: str, classes: Mapping[str, type]) -> str:
    """`--model.optim.max_grad_norm=1` and `--model.optim={clip: 1}` with the current name of the argument."""
    name, equals, text = word.partition("=")
    section, *keys = name.removeprefix("--").split(".")
    if section not in classes:
        return word
    try:
        value = yaml.safe_load(text) if text.startswith("{") else text
    except yaml.YAMLError:
        return word
    nested = value
    for key in reversed(keys):
        nested = {key: nested}
    nested = _update_section(nested, classes[section])
    current = [section]
    for _ in keys:
        ((key, nested),) = nested.items()
        current.append(key)
    text = text if nested == value else json.dumps(nested)
    return f"--{'.'.join(current)}{equals}{text}"

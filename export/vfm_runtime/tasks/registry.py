"""The table of tasks: each task type by the name that bundles and answers have for it.

Further ones come with installed packages, by the entry point group `vfm_runtime.tasks`, or from a program by
`register_task`. A bundle says a name, and never what to import.
"""

import re
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from vfm_runtime.errors import ContractError, OptionError
from vfm_runtime.tasks.base import TaskType

GROUP = "vfm_runtime.tasks"
"""Group of the entry points: the name of the task, and where its `TaskType` is."""

MULTI_HEAD = "multi_head"
"""Task of a bundle with several heads on one backbone."""

BUILT_IN = {
    "classification": "vfm_runtime.tasks.classification:ClassificationType",
    "multilabel": "vfm_runtime.tasks.classification:MultilabelType",
    "detection": "vfm_runtime.tasks.detection:DetectionType",
    "embedding": "vfm_runtime.tasks.embedding:EmbeddingType",
    "deepfake": "vfm_runtime.deepfake.task:DeepfakeType",
}
"""Where each task of this distribution is; imported when a bundle first has it."""

_NAME = re.compile(r"[a-z0-9_]+")
_DISTRIBUTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_registered: dict[str, type[TaskType]] = {}


def register_task(task_type: type[TaskType]) -> type[TaskType]:
    """Register a task, with `name`, `summary` and `outputs`, by its name in this process; also a decorator.

    Raises:
        OptionError: The name cannot be one, or another task has it.
    """
    name = task_type.name
    if not _NAME.fullmatch(name) or name == MULTI_HEAD:
        raise OptionError(
            f"A task cannot be called {name!r}. Give a name of small letters, digits and underscores."
        )
    if name in BUILT_IN or _registered.get(name, task_type) is not task_type:
        raise OptionError(
            f"There is a task '{name}' already. Give {task_type.__name__} another name."
        )
    _registered[name] = task_type
    return task_type


def find_task_type(name: object, package: object = None) -> type[TaskType]:
    """Return the task type of the name that a bundle has.

    Raises:
        ContractError: No installed package brings such a task; with what to install, which `package` may name.
    """
    if isinstance(name, str) and name in BUILT_IN and name not in _registered:
        module, _, attribute = BUILT_IN[name].partition(":")
        _registered[name] = getattr(import_module(module), attribute)
    if isinstance(name, str) and name in _registered:
        return _registered[name]
    # Only what is installed has entry points: the bundle's text is compared with their names, and nothing else.
    for point in entry_points(group=GROUP):
        if point.name == name:
            return register_task(point.load())
    remedy = "Install the package that brings it, or upgrade vfm-runtime."
    if isinstance(package, str) and _DISTRIBUTION.fullmatch(package):
        remedy = f"Install what brings it: pip install {package}"
    raise ContractError.of("task", name, f"one of {', '.join(list_tasks())}", remedy)


def list_tasks() -> list[str]:
    """Return the names of all tasks that can be had here."""
    named = (point.name for point in entry_points(group=GROUP))
    return list(dict.fromkeys([*BUILT_IN, *_registered, *named]))


def list_answer_types() -> list[Any]:
    """List what the tasks of this process answer, `TaskType.answer_type`; those of plug-ins once a bundle has them."""
    tasks = [find_task_type(name) for name in dict.fromkeys([*BUILT_IN, *_registered])]
    return list(dict.fromkeys(task.answer_type for task in tasks))

"""Renames: old dotted paths of modules and classes and old names of arguments, and what they are called now.

Checkpoints, recipes, command lines and Python code of earlier versions hold the old ones; these stay readable.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

PACKAGES = {
    "vfm.data.boxes": "vfm.data.detection",
    "vfm.data.fakes": "vfm.deepfake.data",
}
"""Current package by the one of version 0.1, for the package and those of its modules that `MODULES` leaves out."""

MODULES = {
    "vfm.data.boxes.data": "vfm.data.detection.base",
    "vfm.data.boxes.scenes": "vfm.data.detection.synthetic",
    "vfm.data.detect": "vfm.data.auto",
    "vfm.data.detection": "vfm.data.detection.auto",
    "vfm.data.fakes.procedural": "vfm.deepfake.data.synthetic",
    "vfm.deepfake.data.procedural": "vfm.deepfake.data.synthetic",
    "vfm.data.stored": "vfm.data.feature_dataset",
    "vfm.losses.deepfake": "vfm.deepfake.loss",
    "vfm.models.heads.deepfake": "vfm.deepfake.head",
    "vfm.tasks.adapter_file": "vfm.training.adapter_file",
    "vfm.tasks.averaging": "vfm.training.ema",
    "vfm.tasks.callbacks": "vfm.training.callbacks",
    "vfm.tasks.classification": "vfm.tasks.classification.task",
    "vfm.tasks.deepfake": "vfm.deepfake.task",
    "vfm.tasks.detection": "vfm.tasks.detection.task",
    "vfm.tasks.memory": "vfm.training.oom",
    "vfm.tasks.nonfinite": "vfm.training.nonfinite",
    "vfm.tasks.optim": "vfm.training.optim",
    "vfm.tasks.saving": "vfm.training.saving",
    "vfm.tasks.sharding": "vfm.training.sharding",
    "vfm.tasks.stalls": "vfm.training.watchdog",
}
"""Current module by the one of version 0.1, of those with a class that a checkpoint, a recipe or an option may name."""

CLASSES = {
    "DetectionHead": "DetrHead",
    "FakesData": "DeepfakeData",
    "SyntheticFakes": "SyntheticDeepfakes",
    "vfm.FakesData": "vfm.DeepfakeData",
    "vfm.SyntheticFakes": "vfm.SyntheticDeepfakes",
    "vfm.data.FakesData": "vfm.deepfake.DeepfakeData",
    "vfm.data.SyntheticFakes": "vfm.deepfake.SyntheticDeepfakes",
    "vfm.data.fakes.data.FakesData": "vfm.deepfake.data.data.DeepfakeData",
    "vfm.deepfake.FakesData": "vfm.deepfake.DeepfakeData",
    "vfm.deepfake.SyntheticFakes": "vfm.deepfake.SyntheticDeepfakes",
    "vfm.deepfake.data.data.FakesData": "vfm.deepfake.data.data.DeepfakeData",
    "vfm.deepfake.data.procedural.SyntheticFakes": "vfm.deepfake.data.synthetic.SyntheticDeepfakes",
    "vfm.data.fakes.procedural.SyntheticFakes": "vfm.deepfake.data.synthetic.SyntheticDeepfakes",
    "vfm.DetectionHead": "vfm.DetrHead",
    "vfm.metrics.accuracy": "vfm.metrics.compute_accuracy",
    "vfm.metrics.bootstrap": "vfm.metrics.compute_interval",
    "vfm.metrics.class_rankings": "vfm.metrics.rank_classes",
    "vfm.metrics.classification_results": "vfm.metrics.compute_classification_results",
    "vfm.metrics.confusion_matrix": "vfm.metrics.compute_confusion_matrix",
    "vfm.metrics.macro_f1": "vfm.metrics.compute_macro_f1",
    "vfm.metrics.mean_average_precision": "vfm.metrics.compute_mean_average_precision",
    "vfm.metrics.multilabel_results": "vfm.metrics.compute_multilabel_results",
    "vfm.models.heads.DetectionHead": "vfm.models.heads.DetrHead",
    "vfm.models.heads.detection.DetectionHead": "vfm.models.heads.detr.DetrHead",
}
"""Current path, or short name, of classes and public names, by the one of version 0.1 where that is another."""

KEYS = {
    "vfm.data.detection.dataset.BoxAugment": {"calm": "close_mosaic", "colours": "colors"},
    "vfm.deepfake.data.data.DeepfakeData": {"all_as": "force_split", "ties": "group_by"},
    "vfm.deepfake.head.DeepfakeHead": {"normalise": "normalize"},
    "vfm.models.heads.head.Head": {"places": "needs_geometry", "reads": "uses"},
    "vfm.tasks.base.BaseTask": {"probe_first": "lp_ft"},
    "vfm.training.optim.Optim": {
        "clip": "max_grad_norm",
        "final": "min_lr_ratio",
        "freeze": "freeze_ratio",
        "warmup": "warmup_ratio",
    },
}
"""Current names of arguments and attributes by those of version 0.1, for a class and all that derive from it."""


def update_path(path: str) -> str:
    """Return the current path of a class, with a DeprecationWarning where an old one was given.

    Args:
        path: Dotted path of a class, such as `vfm.tasks.stalls.StallWatch`, or a short name of `CLASSES`.
    """
    module, _, name = path.rpartition(".")
    package, dot, last = module.rpartition(".")
    inside = PACKAGES.get(package, package) + dot + last
    home = MODULES.get(module) or PACKAGES.get(module) or inside
    current = CLASSES.get(path) or f"{home}.{name}".lstrip(".")
    if current != path:
        warnings.warn(f"{path} is now {current}.", DeprecationWarning, stacklevel=2)
    return current


def update_class_paths(value: Any) -> Any:
    """Return plain values with every `class_path` and its arguments updated, also a `head` or `data` without any.

    Args:
        value: A spec or a recipe, as YAML or a checkpoint holds it.
    """
    if isinstance(value, dict):
        updated = {
            key: update_path(item)
            if key in ("class_path", "head", "model", "data") and isinstance(item, str)
            else update_class_paths(item)
            for key, item in value.items()
        }
        arguments, path = updated.get("init_args"), str(updated.get("class_path"))
        # Recipes call public classes by their short names.
        full = path if "." in path else next((p for p in KEYS if p.endswith(f".{path}")), path)
        for old, new in KEYS.get(full, {}).items():
            if isinstance(arguments, dict) and old in arguments:
                arguments[new] = arguments.pop(old)
                warnings.warn(f"{path}'s {old} is now {new}.", DeprecationWarning, stacklevel=2)
        return updated
    return [update_class_paths(item) for item in value] if isinstance(value, list) else value


def list_old_keys(cls: type) -> dict[str, str]:
    """Return the current name of each argument that a class or a base of it had under another name."""
    paths = [f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__]
    return {old: new for path in paths for old, new in KEYS.get(path, {}).items()}


def update_keys(
    cls: type, names: Collection[str], arguments: Mapping[str, Any], stacklevel: int = 3
) -> dict[str, Any]:
    """Return a constructor's arguments by their current names, with a DeprecationWarning for each old one.

    Args:
        cls: Class that is made.
        names: Arguments that the constructor takes: one that a user's class calls by an old name keeps it.
        arguments: Values of the arguments by name.
        stacklevel: Frames from here to the caller whom the warning names.
    """
    current = dict(arguments)
    for old, new in list_old_keys(cls).items():
        if old in current and old not in names and new not in current:
            current[new] = current.pop(old)
            text = f"{cls.__name__}'s {old} is now {new}."
            warnings.warn(text, DeprecationWarning, stacklevel=stacklevel)
    return current


def accept_old_keys(cls: type[T]) -> type[T]:
    """Let the constructor of a dataclass take its arguments by their old names too; a decorator."""
    import inspect  # here, since `vfm --help` reads this module and does without

    init = cls.__init__
    names = inspect.signature(cls).parameters

    @functools.wraps(init)
    def wrapper(self: T, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **update_keys(cls, names, kwargs))

    cls.__init__ = wrapper  # type: ignore[method-assign, assignment]
    return cls

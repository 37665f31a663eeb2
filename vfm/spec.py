"""Components remember how they were made, so that a checkpoint can rebuild its model.

A component is any class that derives from `Component`: tasks, heads, data. Its constructor arguments are recorded as a
*spec*, plain data of the form `{"class_path": "package.module.Name", "init_args": {...}}`, the form that the
command line reads and writes too. `build` turns a spec back into an object.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Unpack, get_args, get_origin, get_type_hints

from vfm_runtime.errors import VfmError

from vfm.renames import update_keys, update_path

Spec = dict[str, Any]


class SpecError(VfmError, ValueError):
    """A spec cannot be recorded or rebuilt; the message says what to do."""


class Component:
    """Base of everything that a checkpoint can rebuild.

    Subclass it and give the constructor plain arguments (numbers, strings, lists, dicts, dataclasses of these) or other
    components; nothing else needs to be done.
    """

    option_defaults: ClassVar[Mapping[str, object]] = {}
    """Defaults of a constructor's `**options: Unpack[SomeTypedDict]`, recorded and shown like those of arguments."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = _record_arguments(cls.__init__, cls.option_defaults)  # type: ignore[method-assign]

    @property
    def spec(self) -> Spec:
        """Plain data from which `build` makes an equal component.

        Raises:
            SpecError: An argument is neither plain nor a component.
        """
        name = get_class_path(type(self))
        arguments = self.__dict__.get("_init_args", {})
        return {
            "class_path": name,
            "init_args": {
                key: _make_plain(value, f"{name}({key})") for key, value in arguments.items()
            },
        }


def get_class_path(cls: type) -> str:
    """Return where a class is imported from, as `package.module.Name`."""
    return f"{cls.__module__}.{cls.__qualname__}"


def build(spec: Mapping[str, Any], *, base: type, trust: Collection[str] = ()) -> Any:
    """Make the component that a spec describes.

    Args:
        spec: Plain data of `Component.spec`.
        base: Class that the result must derive from.
        trust: Packages besides vfm whose code may be imported, such as `["mypkg"]`.

    Raises:
        SpecError: The module is not trusted, cannot be imported, or does not hold such a component.
    """
    cls = import_class(update_path(str(spec["class_path"])), trust)
    if not (issubclass(cls, base) and issubclass(cls, Component)):
        raise SpecError(
            f"'{spec['class_path']}' is not a {base.__name__}. "
            f"Give a class that derives from {get_class_path(base)}."
        )
    hints = list_arguments(cls)
    arguments = {
        name: _rebuild(value, hints.get(name), trust) for name, value in spec["init_args"].items()
    }
    return cls(**arguments)


def check_trust(spec: Any, trust: Collection[str]) -> None:
    """Refuse a spec that names code outside vfm and the trusted packages, at any depth.

    Raises:
        SpecError: It does.
    """
    if isinstance(spec, Mapping):
        if "class_path" in spec:
            _require_trusted(str(spec["class_path"]), trust)
        for value in spec.values():
            check_trust(value, trust)
    elif isinstance(spec, list):
        for value in spec:
            check_trust(value, trust)


def list_arguments(cls: type) -> dict[str, Any]:
    """List the types of the arguments of a component's constructor by name, each of its `**options` among them."""
    init: Any = cls.__init__  # type: ignore[misc]
    hints = get_type_hints(inspect.unwrap(init))
    names = list(inspect.signature(init).parameters.items())[1:]
    return {name: hints.get(name, argument.annotation) for name, argument in names}


def update_arguments(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a component or dataclass by their current names, as a recipe holds them, at any depth."""
    is_component = issubclass(cls, Component)
    hints = list_arguments(cls) if is_component else get_type_hints(cls)
    current = update_keys(cls, hints, arguments, stacklevel=2)
    for name, value in current.items():
        if not isinstance(value, Mapping):
            continue
        kind = _find_dataclass(hints.get(name))
        path, inner = str(value.get("class_path")), value.get("init_args")
        if kind is not None:
            current[name] = update_arguments(kind, value)
        elif path.startswith("vfm.") and isinstance(inner, Mapping):
            component = import_class(update_path(path), ())
            current[name] = {**value, "init_args": update_arguments(component, inner)}
    return current


def _record_arguments(
    init: Callable[..., None], option_defaults: Mapping[str, object]
) -> Callable[..., None]:
    signature, doc = inspect.signature(init), init.__doc__
    *_, last = signature.parameters.values()
    if option_defaults and (
        "Unpack[" in str(last.annotation) or get_origin(last.annotation) is Unpack
    ):
        signature, doc = _expand_options(init, signature, option_defaults)

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs = update_keys(type(self), signature.parameters, kwargs)
        # Only the outermost constructor sees what the caller wrote; those of base classes come later.
        if "_init_args" not in self.__dict__:
            bound = signature.bind(self, *args, **kwargs)
            # Defaults are recorded too: a later version may change them, a checkpoint may not.
            bound.apply_defaults()
            arguments: dict[str, Any] = {}
            for name, value in list(bound.arguments.items())[1:]:
                is_spread = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
                arguments |= value if is_spread else {name: value}
            self.__dict__["_init_args"] = arguments
        init(self, *args, **kwargs)

    # The command line reads names, types, defaults and help from these.
    wrapper.__signature__ = signature  # type: ignore[attr-defined]
    wrapper.__doc__ = doc
    return wrapper


def _expand_options(
    init: Callable[..., None], signature: inspect.Signature, defaults: Mapping[str, object]
) -> tuple[inspect.Signature, str]:
    """Return the signature and docstring of a constructor with an argument for each of its `**options`."""
    *arguments, options = signature.parameters.values()
    hint = options.annotation
    if isinstance(hint, str):
        hint = eval(hint, init.__globals__)
    (kind,) = get_args(hint)
    for name, annotation in get_type_hints(kind).items():
        default = defaults.get(name, inspect.Parameter.empty)
        arguments.append(
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
        )
    entries = inspect.cleandoc(kind.__doc__ or "").partition("Args:\n")[2]
    doc = re.sub(
        rf" *\*\*{options.name}: .*", lambda _: entries, inspect.cleandoc(init.__doc__ or "")
    )
    return signature.replace(parameters=arguments), doc


def _make_plain(value: Any, where: str) -> Any:
    if value is None:
        return None
    if isinstance(value, Enum):
        return _make_plain(value.value, where)
    if isinstance(value, Component):
        return value.spec
    if isinstance(value, Path):
        return str(value)
    for kind in (bool, int, float, str):
        # Not numpy's and other kinds of them, which torch.load would refuse to read.
        if isinstance(value, kind):
            return kind(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: _make_plain(getattr(value, f.name), f"{where}.{f.name}") for f in fields}
    if isinstance(value, Mapping):
        return {str(key): _make_plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_make_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise SpecError(
        f"A checkpoint cannot remember {where}: it is a {get_class_path(type(value))}. "
        "Arguments of a component are numbers, strings, lists, dicts, dataclasses of these, or components "
        "(classes that derive from vfm.Component). Pass what the object is made from instead."
    )


def _rebuild(value: Any, hint: Any, trust: Collection[str]) -> Any:
    if isinstance(value, list):
        return [_rebuild(item, None, trust) for item in value]
    if isinstance(value, Mapping):
        if set(value) == {"class_path", "init_args"}:
            return build(value, base=Component, trust=trust)
        kind = _find_dataclass(hint)
        return value if kind is None else kind(**value)
    return value


def _find_dataclass(hint: Any) -> type | None:
    """Find the dataclass of a type hint such as `Optim | None`."""
    kinds = (hint, *get_args(hint))
    return next((k for k in kinds if isinstance(k, type) and dataclasses.is_dataclass(k)), None)


def import_class(path: str, trust: Collection[str]) -> type:
    """Import a class that a file names as `package.module.Name`, from vfm or a trusted package.

    Raises:
        SpecError: The module is not trusted, cannot be imported, or does not hold such a class.
    """
    _require_trusted(path, trust)
    module_name, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"The checkpoint uses '{path}', which cannot be imported: {error}. "
            "Install the package, or run where it can be found (the working folder counts)."
        ) from error
    if not isinstance(cls, type):
        raise SpecError(f"'{path}' is not a class.")
    return cls


def _require_trusted(path: str, trust: Collection[str]) -> None:
    # Asked before the import: importing a module already runs its code.
    module = path.rpartition(".")[0]
    package = module.partition(".")[0]
    if package == "vfm" or any(f"{module}.".startswith(f"{trusted}.") for trusted in trust):
        return
    raise SpecError(
        f"The checkpoint uses '{path}', whose code is not part of vfm; loading would run it. "
        f"If you trust it, say so: trust=['{package}'] in Python, --trust {package} on the command line."
    )

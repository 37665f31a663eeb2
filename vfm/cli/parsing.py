"""A parser of jsonargparse that raises instead of printing pages, and its messages in a line or two."""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pydoc import locate
from typing import Any, NamedTuple, get_args

from jsonargparse import ArgumentParser, Namespace
from vfm_runtime.errors import suggest

from vfm.cli.errors import UsageError
from vfm.spec import list_arguments

OPTIONS: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
"""Settings of a parser that raises `argparse.ArgumentError` on a mistake, which a prefix of an option is too."""

_NUM_SHOWN = 8
_EXAMPLES = {
    "model": "--model ClassificationTask --model.backbone vit_small_patch14_reg4_dinov2",
    "data": "--data FolderData --data.root FOLDER",
}
_SUBCOMMAND = r"^(fit|validate|test|predict)\."
_NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
    "Expected a typing.Literal",
    "Problem with given class_path",
)
"""Beginnings of lines that name types tried in vain, and repeat the value as Python prints it."""
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
}


def parse(parser: ArgumentParser, words: list[str]) -> Namespace:
    """Parse, and explain what does not fit.

    Raises:
        UsageError: With cause, value given, near choices, remedy.
    """
    try:
        return parser.parse_args(words)
    except argparse.ArgumentError as error:
        raise UsageError(rewrite(str(error), list_options(parser))) from error


def refuse_nulls(key: str, value: Any) -> None:
    """Refuse null for the arguments of a component, at any depth, whose types do not have it; jsonargparse takes it.

    Args:
        key: Option that holds the component, such as `model`.
        value: What was parsed for it.

    Raises:
        UsageError: With the argument, and its default.
    """
    if not isinstance(value, Namespace) or "init_args" not in value:
        return
    component: Any = locate(value.class_path)
    hints = list_arguments(component)
    parameters = inspect.signature(component).parameters
    for name, argument in vars(value.init_args).items():
        hint = hints.get(name, Any)
        options = get_args(hint) or (hint,)
        if argument is None and not {Any, type(None), inspect.Parameter.empty} & set(options):
            remedy = f"Leave it out for its default, {parameters[name].default}."
            raise UsageError(f"--{key}.{name} is null, which it cannot be. {remedy}")
        refuse_nulls(f"{key}.{name}", argument)


def list_options(parser: ArgumentParser) -> list[str]:
    """List every option that a parser knows, such as `trainer.max_epochs`."""
    return [
        option.removeprefix("--")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and "help" not in option
    ]


class _Refusal(NamedTuple):
    """What jsonargparse says of a mistake: a tree of every type that was tried, the cause at the innermost place."""

    text: str
    key: str
    """Option that is wrong, such as `model.optim.lr`; empty where that is not said."""
    owner: str
    """Path of the innermost class whose arguments are wrong; empty for options of the command."""
    options: list[str]
    """Options of the command."""

    @property
    def owner_name(self) -> str:
        return self.owner.rpartition(".")[2]


def rewrite(message: str, options: list[str]) -> str:
    """Say in a line or two what jsonargparse says in many."""
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    owners = re.findall(r"Problem with given class_path '([^']+)'", message)
    refusal = _Refusal(message, key, owners[-1] if owners else "", options)
    for pattern, explain in _CASES:
        if match := re.search(pattern, message):
            return explain(refusal, match[1])
    return _strip_noise(message)


def find_root_cause(message: str) -> str:
    """Return the innermost reasons of a tree of tried types; the message itself when it is none.

    An error raised by a component's constructor reaches us inside such a tree.
    """
    is_tree = "Does not validate against any of the Union subtypes" in message
    return _strip_noise(message) if is_tree else message


def _strip_noise(message: str) -> str:
    lines = (line.strip().removeprefix("- ") for line in message.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(_NOISE))


def _explain_missing(refusal: _Refusal, missing: str) -> str:
    names = [re.sub(_SUBCOMMAND, "", name.strip()) for name in missing.split(",")]
    if refusal.owner:
        return f"{refusal.owner_name} needs --{refusal.key}.{', '.join(names)}; it was not given."
    examples = " ".join(_EXAMPLES[name] for name in names if name in _EXAMPLES)
    typed = ", ".join(f"--{name}" if name in refusal.options else name for name in names)
    remedy = f"\nGive a recipe with --config, or for example {examples}" if examples else ""
    return f"Missing: {typed}.{remedy}"


def _explain_unknown_option(refusal: _Refusal, words: str) -> str:
    option = words.split()[0]
    if refusal.text.startswith("unrecognized") and not option.startswith("-"):
        return f"'{words}' stands where an option is expected. Options start with --, such as --config."
    option = re.sub(_SUBCOMMAND, "", option.removeprefix("--").partition("=")[0])
    if group := re.search(r"Group '([^']+)' does not accept", refusal.text):
        option = f"{group[1]}.{option}"
    if refusal.owner:
        choices = list(_list_arguments(refusal.owner))
        takers = _find_takers(refusal.owner, option)
        hint = f" It is one of {', '.join(takers)}." if takers else suggest(option, choices)
        listed = f"\n{refusal.owner_name} takes: {', '.join(choices)}."
        return f"There is no option '{refusal.key}.{option}'.{hint}{listed}"
    # `trianer.max_epochs` is wrong in its first part, `trainer.max_epoch` in its last.
    groups = sorted({name.partition(".")[0] for name in refusal.options})
    hint = suggest(option, refusal.options) or suggest(option.partition(".")[0], groups)
    return f"There is no option '{option}'.{hint}"


def _explain_unknown_class(refusal: _Refusal, name: str) -> str:
    base = _find_base(refusal.text)
    # Words that the innermost value may be in place of a class.
    literals = re.findall(r"Subtypes: \[(?:typing\.Literal\[([^\]]+)\])?", refusal.text)
    short = re.findall(r"'([^']+)'", literals[-1])
    classes = [cls.__name__ for cls in list_concrete(base)]
    if name in short:
        shown = ", ".join(classes[:_NUM_SHOWN])
        return f"--{refusal.key} {name} takes no arguments of its own. Name one that may: {shown}."
    reason = ""
    if missing := re.search(r"No module named '[^']+'|cannot import name '[^']+'", refusal.text):
        reason = f" {missing[0]} here; the working folder and installed packages are searched."
    elif "does not correspond to a subclass" in refusal.text:
        reason = f" It is no {base.__name__}; derive it from vfm.{base.__name__}."
    hint = suggest(name, [*short, *classes])
    return (
        f"--{refusal.key} is '{name}', but there is no such {base.__name__}.{hint}{reason}\n"
        f"Choices: {', '.join([*short, *classes[:_NUM_SHOWN]])}, or another class as package.module.Name."
    )


def _explain_no_class(refusal: _Refusal, _: str) -> str:
    key, names = refusal.key, [cls.__name__ for cls in list_concrete(_find_base(refusal.text))]
    example = _EXAMPLES.get(key, f"--{key} {names[0]}")
    return f"--{key} must be named before its arguments. Choices: {', '.join(names)}. For example: {example}"


def _explain_wrong_value(refusal: _Refusal, _: str) -> str:
    innermost = refusal.text.rpartition("Parser key")[2]
    if single := re.search(r"Expected an? (.+?)\. Got value: (.*)", innermost):
        expected, value = [single[1]], single[2]
    else:
        tried, _, rest = innermost.partition("Given value")
        expected = re.findall(r"Expected an? (?!path)(.+)", tried)
        value = "".join(re.findall(r"Given value: (.*)", rest)[:1])
    types = list(dict.fromkeys(map(_name_type, expected)))
    if value == "None":  # as Python writes null
        value, types = "null", [name for name in types if name != "null"]
    hint = suggest(value, re.findall(r"'([^']+)'", " ".join(types)))
    return f"--{refusal.key} is '{value}'. Expected {' or '.join(types)}.{hint}"


def _explain_missing_file(refusal: _Refusal, path: str) -> str:
    remedy = "Give the path of a recipe, such as recipes/debug/digits.yaml."
    return f"There is no file {path} (--{refusal.key}). {remedy}"


_CASES: list[tuple[str, Callable[[_Refusal, str], str]]] = [
    (r"arguments? (?:is|are) required: (.+)", _explain_missing),
    (r"(?:Option|does not accept option) '([^']+)'", _explain_unknown_option),
    (r"unrecognized arguments: (.+)", _explain_unknown_option),
    (r"(is abstract|Not a valid subclass of)", _explain_no_class),
    (r"Expected a path but (\S+) either not accessible[\s\S]*Subtypes", _explain_unknown_class),
    (r"Expected a dot import path string: (\S+)", _explain_unknown_class),
    (r"File does not exist: '([^']+)'", _explain_missing_file),
    (r"Expected a (.+)", _explain_wrong_value),
]


def _name_type(text: str) -> str:
    if name := re.match(r"<class '(?:\w+\.)*(\w+)'>", text):
        return _TYPES.get(name[1], f"a {name[1]}")
    return re.sub(r"typing\.Literal\[(.+)\]", r"one of \1", text)


def _list_arguments(path: str) -> Iterator[str]:
    """List the arguments of a component by name; those of a dataclass among them as `optim.lr`."""
    component: Any = locate(path)
    for name, hint in list_arguments(component).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from (f"{name}.{field.name}" for field in dataclasses.fields(hint))
        else:
            yield name


def _find_takers(path: str, option: str) -> list[str]:
    """Find the components of the same kind that have an option, by their names."""
    component: Any = locate(path)
    base = [cls for cls in component.__mro__ if cls.__module__.startswith("vfm.")][-1]
    return [cls.__name__ for cls in list_concrete(base) if option in list_arguments(cls)]


def list_concrete(base: type) -> list[type]:
    """List the classes of vfm and the user that derive from a class and can be made."""
    derived: list[type] = type.__subclasses__(base)
    is_concrete = not inspect.isabstract(base) and not base.__name__.startswith("_")
    return [base] * is_concrete + [c for d in derived for c in list_concrete(d)]


def _find_base(message: str) -> Any:
    """Find the class that the innermost value, or each of a list of them, should have been one of."""
    subtypes = re.findall(r"Subtypes: \[(.+)\]", message)[-1]
    names = re.findall(r"(?:list\[|<class ')(\w+\.[\w.]+)", subtypes)
    classes: list[Any] = [locate(name) for name in names]
    return [cls for cls in classes if issubclass(classes[0], cls)][-1]

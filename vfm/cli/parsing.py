"""A parser of jsonargparse that raises instead of printing pages, and takes no abbreviations."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from jsonargparse import ArgumentParser, Namespace
from vfm_runtime.errors import suggest

from vfm.cli.errors import UsageError
from vfm.spec import list_arguments

OPTIONS: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}

_SHOWN = 8
_EXAMPLES = {
    "model": "--model ClassificationTask --model.backbone vit_small_patch14_reg4_dinov2",
    "data": "--data FolderData --data.root FOLDER",
}


class Parser(ArgumentParser):
    """Raises `argparse.ArgumentError` on a mistake; a prefix of an option is a mistake too."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**(OPTIONS | kwargs))


def parse(parser: ArgumentParser, words: list[str]) -> Namespace:
    """Parse, and explain what does not fit.

    Raises:
        UsageError: With cause, value given, near choices, remedy.
    """
    try:
        return parser.parse_args(words)
    except argparse.ArgumentError as error:
        raise UsageError(rewrite(str(error), known_keys(parser))) from error


def known_keys(parser: ArgumentParser) -> list[str]:
    """Every option that a parser knows, such as `trainer.max_epochs`."""
    return [
        option.removeprefix("--")
        for action in parser._actions
        for option in action.option_strings
        if option.startswith("--") and "help" not in option
    ]


def rewrite(message: str, known: list[str]) -> str:
    """Say in a line or two what jsonargparse says in many.

    Args:
        message: Of its error: a tree of every type that was tried, with the cause at the innermost place.
        known: Options of the parser.
    """
    key = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    inside = re.findall(r"Problem with given class_path '([^']+)'", message)
    for pattern, say in _CASES:
        if found := re.search(pattern, message):
            return say(found, key, inside[-1] if inside else "", known)
    return _bare(message)


def root_cause(message: str) -> str:
    """The innermost reasons of a tree of tried types; the message itself when it is none.

    An error raised by a component's constructor reaches us inside such a tree.
    """
    if "Does not validate against any of the Union subtypes" not in message:
        return message
    reasons = [line for line in _bare(message).splitlines() if not line.startswith("Subtypes")]
    return "\n".join(reasons)


def _bare(message: str) -> str:
    """Without the lines that name types tried in vain and repeat the value as Python prints it."""
    noise = (
        "Does not validate",
        "Subtypes:",
        "Errors:",
        "Given value",
        "Expected a <class 'NoneType'>",
        "Expected a typing.Literal",
        "Problem with given class_path",
    )
    lines = (line.strip().removeprefix("- ") for line in message.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith(noise))


def _required(found: re.Match[str], key: str, inside: str, known: list[str]) -> str:
    names = [name.strip().removeprefix("fit.") for name in found[1].split(",")]
    names = [re.sub(r"^(validate|test|predict)\.", "", name) for name in names]
    if inside:
        return f"{_short(inside)} needs --{key}.{', '.join(names)}; it was not given."
    examples = " ".join(_EXAMPLES[name] for name in names if name in _EXAMPLES)
    missing = ", ".join(f"--{name}" if name in known else name for name in names)
    remedy = f"\nGive a recipe with --config, or for example {examples}" if examples else ""
    return f"Missing: {missing}.{remedy}"


def _not_accepted(found: re.Match[str], key: str, inside: str, known: list[str]) -> str:
    given = found[1].removeprefix("--").partition("=")[0]
    given = re.sub(r"^(fit|validate|test|predict)\.", "", given)
    if nested := re.search(r"Group '([^']+)' does not accept", found.string):
        given = f"{nested[1]}.{given}"
    choices = list(_arguments(inside)) if inside else known
    prefix = f"{key}." if inside else ""
    listed = f"\n{_short(inside)} takes: {', '.join(choices)}." if inside else ""
    if not inside:
        group = given.partition(".")[0]
        # `trianer.max_epochs` is wrong in its first part, `trainer.max_epoch` in its last.
        groups = sorted({name.partition(".")[0] for name in known})
        hint = suggest(given, known) or suggest(group, groups)
    else:
        hint = suggest(given, choices)
    return f"There is no option '{prefix}{given}'.{hint}{listed}"


def _unrecognised(found: re.Match[str], key: str, inside: str, known: list[str]) -> str:
    word = found[1].split()[0]
    if not word.startswith("-"):
        return f"'{found[1]}' stands where an option is expected. Options start with --, such as --config."
    option = re.match(r"(\S+)", found[1].removeprefix("--"))
    return _not_accepted(option or found, key, inside, known)


def _unknown_class(found: re.Match[str], key: str, inside: str, known: list[str]) -> str:
    given = found[1]
    base = _base(found.string)
    classes = [cls.__name__ for cls in list_concrete(base)]
    short = _list_short_names(found.string)
    if given in short:
        return f"--{key} {given} takes no arguments of its own. Name one that may: {', '.join(classes[:_SHOWN])}."
    names = [*short, *classes]
    reason = ""
    if missing := re.search(r"No module named '[^']+'|cannot import name '[^']+'", found.string):
        reason = f" {missing[0]} here; the working folder and installed packages are searched."
    elif "does not correspond to a subclass" in found.string:
        reason = f" It is no {base.__name__}; derive it from vfm.{base.__name__}."
    return (
        f"--{key} is '{given}', but there is no such {base.__name__}.{suggest(given, names)}{reason}\n"
        f"Choices: {', '.join([*short, *classes[:_SHOWN]])}, or another class as package.module.Name."
    )


def _abstract(found: re.Match[str], key: str, inside: str, known: list[str]) -> str:
    names = [cls.__name__ for cls in list_concrete(_base(found.string))]
    example = _EXAMPLES.get(key, f"--{key} {names[0]}")
    return f"--{key} must be named before its arguments. Choices: {', '.join(names)}. For example: {example}"


def _wrong_value(found: re.Match[str], key: str, inside: str, known: list[str]) -> str:
    innermost = found.string.rpartition("Parser key")[2]
    if single := re.search(r"Expected an? (.+?)\. Got value: (.*)", innermost):
        expected, value = [single[1]], single[2]
    else:
        tried, _, rest = innermost.partition("Given value")
        expected = re.findall(r"Expected an? (?!path)(.+)", tried)
        value = "".join(re.findall(r"Given value: (.*)", rest)[:1])
    named = list(dict.fromkeys(map(_type_name, expected)))
    choices = re.findall(r"'([^']+)'", " ".join(named))
    return f"--{key} is '{value}'. Expected {' or '.join(named)}.{suggest(value, choices)}"


def _missing_file(found: re.Match[str], key: str, inside: str, known: list[str]) -> str:
    return f"There is no file {found[1]} (--{key}). Give the path of a recipe, such as recipes/debug/digits.yaml."


_CASES = [
    (r"arguments? (?:is|are) required: (.+)", _required),
    (r"Option '([^']+)' is not accepted", _not_accepted),
    (r"does not accept option '([^']+)'", _not_accepted),
    (r"unrecognized arguments: (.+)", _unrecognised),
    (r"is abstract|Not a valid subclass of", _abstract),
    (r"Expected a path but (\S+) either not accessible[\s\S]*Subtypes", _unknown_class),
    (r"Expected a dot import path string: (\S+)", _unknown_class),
    (r"File does not exist: '([^']+)'", _missing_file),
    (r"Expected a (.+)", _wrong_value),
]


def _type_name(text: str) -> str:
    plain = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    if name := re.match(r"<class '(?:\w+\.)*(\w+)'>", text):
        return "null" if name[1] == "NoneType" else plain.get(name[1], f"a {name[1]}")
    if literal := re.match(r"typing\.Literal\[(.+)\]", text):
        return f"one of {literal[1]}"
    return text


def _arguments(path: str) -> Iterator[str]:
    """Names of a component's arguments; those of a dataclass among them as `optim.lr`."""
    for name, hint in list_arguments(_imported(path)).items():
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from (f"{name}.{field.name}" for field in dataclasses.fields(hint))
        else:
            yield name


def list_concrete(base: type) -> list[type]:
    """List the classes of vfm and the user that derive from a class and can be made."""
    derived: list[type] = type.__subclasses__(base)
    named = not inspect.isabstract(base) and not base.__name__.startswith("_")
    return [base] * named + [c for d in derived for c in list_concrete(d)]


def _base(message: str) -> Any:
    """The class that the innermost value should have been one of; of a list of them, too; the widest of several."""
    subtypes = re.findall(r"Subtypes: \[(.+)\]", message)[-1]
    classes = [
        _imported(name) for name in re.findall(r"(?:list\[|<class ')(\w+\.[\w.]+)", subtypes)
    ]
    return [cls for cls in classes if issubclass(classes[0], cls)][-1]


def _list_short_names(message: str) -> list[str]:
    """Words that the innermost value may be in place of a class."""
    innermost = message.rpartition("Subtypes: [")[2]
    literal = re.match(r"typing\.Literal\[([^\]]+)\]", innermost)
    return re.findall(r"'([^']+)'", literal[1]) if literal else []


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _short(path: str) -> str:
    return path.rpartition(".")[2]

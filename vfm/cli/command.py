"""A typed function as a command: its first parameters are the words, its keyword-only ones the options.

A parameter `options` is a dataclass, whose fields are the options.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser

from vfm.cli.parsing import OPTIONS, parse
from vfm.cli.words import join_values, pop_option

_SHORT = {"-o": "--out", "-k": "--k"}
_REPEATED = "trust"
_SPREAD = "options"


def run(name: str, function: Callable[..., Any], words: list[str]) -> None:
    """Parse the words by the function's signature, and call it.

    Args:
        name: Name of the command.
        function: Typed function, whose docstring is the help; an argument `trust` may be given several times.
        words: Words after the command, as typed.

    Raises:
        UsageError: A word or option does not fit.
    """
    signature = dict(inspect.signature(function).parameters)
    described = docstring_parser.parse(inspect.getdoc(function) or "")
    parameters = described.params
    parser = ArgumentParser(**OPTIONS, prog=f"vfm {name}", description=described.short_description)
    hints = get_type_hints(function)
    skipped: set[str | int] = {_REPEATED, _SPREAD}
    options = hints.get(_SPREAD)
    if options is not None:
        del signature[_SPREAD]
        signature |= inspect.signature(options).parameters
        parameters = [*parameters, *docstring_parser.parse(inspect.getdoc(options) or "").params]
    helps = {p.arg_name: p.description for p in parameters}
    for parameter in signature.values():
        if parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD:
            skipped.add(parameter.name)
            hint = hints[parameter.name]
            word: dict[str, Any] = {"type": hint, "help": helps.get(parameter.name)}
            if get_origin(hint) is Sequence:
                word |= {"type": get_args(hint)[0], "nargs": "+"}
            elif parameter.default is not parameter.empty:
                word |= {"nargs": "?", "default": parameter.default}
            parser.add_argument(parameter.name, **word)
    parser.add_function_arguments(function, skip=skipped)
    if options is not None:
        parser.add_class_arguments(options, skip=skipped)
    switches = {f"--{name}" for name, p in signature.items() if p.annotation == "bool"}
    words = join_values(words, switches=switches, short=_SHORT)
    repeated: dict[str, Any] = {}
    if _REPEATED in signature:
        parser.epilog = f"--{_REPEATED} PACKAGE (any number of times): {helps[_REPEATED]}"
        words, repeated[_REPEATED] = pop_option(words, f"--{_REPEATED}")
    values = parser.instantiate_classes(parse(parser, words)).as_dict() | repeated
    if options is not None:
        names = inspect.signature(options).parameters.keys() & values.keys()
        values[_SPREAD] = options(**{name: values.pop(name) for name in names})
    function(**values)

"""A typed function as a command: its first parameters are the words, its keyword-only ones the options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, get_type_hints

from vfm.cli.parsing import Parser, parse

_SHORT = {"-o": "--out"}


def run(name: str, function: Callable[..., Any], words: list[str]) -> None:
    """Parse the words by the function's signature, and call it.

    Raises:
        UsageError: A word or option does not fit.
    """
    parser = Parser(prog=f"vfm {name}", description=inspect.getdoc(function))
    hints = get_type_hints(function)
    positional = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
    ]
    for parameter in positional:
        parser.add_argument(parameter, type=hints[parameter])
    parser.add_function_arguments(function, skip=set(positional))
    given = parse(parser, [_SHORT.get(word, word) for word in words])
    values = parser.instantiate_classes(given).as_dict()
    function(**values)

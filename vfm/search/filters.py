"""Filters of a search: column, comparison and value, joined by and, or, not, parsed to a store's expression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NoReturn

from vfm_runtime.errors import VfmError, suggest

from vfm.embed.store import quote_text

COMPARISONS = ("=", "!=", "<", "<=", ">", ">=")
_MOST = 10_000
"""Characters of a filter."""
_DEEPEST = 50
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<text>'(?:[^']|'')*')
    | (?P<quoted>"[^"]+")
    | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|!=|=|<|>|\(|\)|,)
    )""",
    re.VERBOSE,
)
_LANGUAGE = (
    "A filter is a column, one of = != < <= > >= or in, and a value, joined by and, or, not and parentheses: "
    "label = 'cat' and split in ('train', 'val')"
)


class FilterError(VfmError, ValueError):
    """A filter is none, or names what the store does not have."""


def parse_filter(text: str, columns: Mapping[str, str]) -> str:
    """Return the store's expression for a filter.

    Args:
        text: Filter as the user wrote it.
        columns: Kind of each column, text, number or boolean, as `EmbeddingStore.columns` gives it.

    Raises:
        FilterError: It is none, or a column or a value cannot be.
    """
    parser = _Parser(text, columns)
    expression = parser.parse_or(0)
    if parser.current[0] != "end":
        parser.refuse(f"a filter cannot go on with {parser.current[1]}")
    return expression


class _Parser:
    """A parser that goes down the grammar: or, and, not, comparison."""

    def __init__(self, text: str, columns: Mapping[str, str]) -> None:
        self.text = text
        self.columns = columns
        if len(text) > _MOST:
            raise FilterError(f"--where has {len(text):,} characters; at most {_MOST:,} are read.")
        self._tokens: list[tuple[str, str]] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                self.refuse(f"{text[position:].strip()[:20]!r} is nothing that a filter knows")
            self._tokens.append((str(match.lastgroup), str(match[str(match.lastgroup)])))
            position = match.end()
        self._tokens.append(("end", "the end"))

    @property
    def current(self) -> tuple[str, str]:
        """Kind and text of what comes next."""
        return self._tokens[0]

    def refuse(self, cause: str) -> NoReturn:
        """Raise a FilterError with the cause and the language."""
        raise FilterError(f"--where {self.text!r}: {cause}. {_LANGUAGE}.")

    def take(self, *words: str) -> str | None:
        """Take what comes next where it is one of these words or signs, whatever the case."""
        kind, text = self.current
        if kind in ("word", "sign") and text.lower() in words:
            del self._tokens[0]
            return text.lower()
        return None

    def parse_or(self, depth: int) -> str:
        if depth > _DEEPEST:
            self.refuse("it is nested too deeply")
        parts = [self.parse_and(depth)]
        while self.take("or"):
            parts.append(self.parse_and(depth))
        return f"({' OR '.join(parts)})"

    def parse_and(self, depth: int) -> str:
        parts = [self.parse_not(depth)]
        while self.take("and"):
            parts.append(self.parse_not(depth))
        return f"({' AND '.join(parts)})"

    def parse_not(self, depth: int) -> str:
        if depth > _DEEPEST:
            self.refuse("it is nested too deeply")
        if self.take("not"):
            return f"(NOT {self.parse_not(depth + 1)})"
        if self.take("("):
            inner = self.parse_or(depth + 1)
            if not self.take(")"):
                self.refuse(f"a parenthesis is not closed before {self.current[1]}")
            return inner
        return self.parse_comparison()

    def parse_comparison(self) -> str:
        kind, text = self.current
        if kind not in ("word", "quoted"):
            self.refuse(f"a column is expected, not {text}")
        del self._tokens[0]
        column = text.strip('"')
        if column not in self.columns:
            self.refuse(
                f"there is no column '{column}'.{suggest(column, self.columns)} Columns: {', '.join(self.columns)}"
            )
        if "`" in column:
            self.refuse(
                f"the column '{column}' has a backtick in its name and cannot be filtered by"
            )
        name = f"`{column}`"
        is_negated = self.take("not") is not None
        if self.take("in"):
            inner = f"IN ({', '.join(self.parse_values(column))})"
            return _compare(name, inner, is_negated=is_negated)
        comparison = None if is_negated else self.take(*COMPARISONS)
        if comparison is None:
            expected = "in" if is_negated else "one of = != < <= > >= or in"
            self.refuse(f"after '{column}' {expected} is expected, not {self.current[1]}")
        value = self.parse_value(column)
        if comparison == "!=":
            return _compare(name, f"= {value}", is_negated=True)
        return _compare(name, f"{comparison} {value}", is_negated=False)

    def parse_values(self, column: str) -> list[str]:
        if not self.take("("):
            self.refuse(f"after in a parenthesis is expected, not {self.current[1]}")
        values = [self.parse_value(column)]
        while self.take(","):
            values.append(self.parse_value(column))
        if not self.take(")"):
            self.refuse(f"a parenthesis is not closed before {self.current[1]}")
        return values

    def parse_value(self, column: str) -> str:
        kind, text = self.current
        expected = self.columns[column]
        fits = {
            "text": kind == "text",
            "number": kind == "number",
            "boolean": kind == "word" and text.lower() in ("true", "false"),
        }
        if not fits[expected]:
            example = {
                "text": "a value such as 'cat'",
                "number": "a value such as 0.5",
                "boolean": "true or false",
            }
            self.refuse(
                f"the column '{column}' holds {expected}, so {example[expected]} is expected, not {text}"
            )
        del self._tokens[0]
        return quote_text(text[1:-1].replace("''", "'")) if kind == "text" else text


def _compare(name: str, comparison: str, *, is_negated: bool) -> str:
    """Return a comparison that is true or false, and false for a row without a value; of SQL it would be neither."""
    plain = f"({name} IS NOT NULL AND {name} {comparison})"
    return f"(NOT {plain})" if is_negated else plain

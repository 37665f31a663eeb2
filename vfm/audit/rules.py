"""Audit rules: what `--fail-on` asks for, such as `worst_group_gap<0.1,accuracy>0.9`, and whether it holds."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from vfm_runtime.errors import OptionError, VfmError, suggest

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_RULE = re.compile(r"\s*([A-Za-z0-9_.]+)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*")


class AuditFailed(VfmError, RuntimeError):  # noqa: N818 - the audit itself went well
    """A rule of `--fail-on` does not hold."""


class Rule(NamedTuple):
    """A bound that a metric must keep."""

    metric: str
    sign: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric}{self.sign}{self.bound:g}"

    def holds(self, value: float) -> bool:
        """Whether a value keeps the bound."""
        return _OPERATORS[self.sign](value, self.bound)


def parse_rules(text: str) -> list[Rule]:
    """Read rules, separated by commas.

    Raises:
        OptionError: One is no rule.
    """
    rules = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        match = _RULE.fullmatch(part)
        try:
            rules.append(Rule(match[1], match[2], float(match[3])))  # type: ignore[index]
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"--fail-on holds '{part}', which is no rule. Write what must hold, separated by commas: "
                '"accuracy>0.9,worst_group_gap<0.1".'
            ) from error
    return rules


def check_rules(rules: list[Rule], values: Mapping[str, float | None]) -> list[dict[str, object]]:
    """Return for each rule its value, and whether it holds; what could not be measured does not.

    Raises:
        OptionError: A rule names no metric of the audit.
    """
    rows: list[dict[str, object]] = []
    for rule in rules:
        if rule.metric not in values:
            raise OptionError(
                f"--fail-on names '{rule.metric}', which this audit does not measure.{suggest(rule.metric, values)} "
                f"Choices: {', '.join(values)}."
            )
        value = values[rule.metric]
        holds = value is not None and rule.holds(value)
        rows.append({"rule": str(rule), "value": value, "holds": holds})
    return rows

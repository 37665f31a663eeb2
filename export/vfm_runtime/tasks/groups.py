"""Rules by group: thresholds for the images of one site, camera or set of people, and which of them holds.

A bundle may hold rules of its own for groups of images. Who asks says which group an image is of; where nobody says
it, and for groups of which too little is known, the general rules hold, and the answer says so.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from vfm_runtime.errors import DataError, OptionError, format_value, suggest
from vfm_runtime.validation import StoredRules, is_deep

_MOST_LISTED = 20


class GroupChoice(NamedTuple):
    """The group that an image was said to be of, and whose rules its prediction is by."""

    column: str
    """What the groups are values of, such as `site`."""
    value: str | None
    """Group of the image; None where none was given."""
    rule: Literal["own", "general"]
    """Whether the group has rules of its own."""

    def to_dict(self) -> dict[str, Any]:
        """Return what an answer says of it, `group` and `group_rule`."""
        return {"group": self.value, "group_rule": self.rule}

    def __str__(self) -> str:
        name = f"no {self.column} given" if self.value is None else f"{self.column} {self.value}"
        return f"{name}: {self.rule} rule"


@dataclass(frozen=True, kw_only=True)
class GroupRules(StoredRules):
    """Rules by group, part of a bundle; a task checks the values of its rules. Checked when made."""

    title: ClassVar[str] = "rules by group"

    column: str
    """What the groups are values of, such as `site`."""
    criterion: str
    """What the groups have in common by these rules, in words."""
    general: Mapping[str, Any]
    """What holds in place of the rules of the contract where no group is given; empty where these hold."""
    groups: Mapping[str, Mapping[str, Any] | None]
    """For each group, by its value, what holds in place of the general rules; None where these hold."""

    def __post_init__(self) -> None:
        for name in ("column", "criterion"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                self._refuse(name, "a text")
        if not isinstance(self.general, Mapping) or is_deep(self.general):
            self._refuse("general", "an object of rules")
        if not isinstance(self.groups, Mapping) or not self.groups or is_deep(self.groups):
            self._refuse("groups", "an object with at least one group")
        for group, rules in self.groups.items():
            if not isinstance(group, str) or not (rules is None or isinstance(rules, Mapping)):
                self._refuse("groups", "rules, or null, by the value of each group")

    def choose(self, group: str | None) -> tuple[GroupChoice, dict[str, Any]]:
        """Return which rules hold for a group, None where none was given, and what they are.

        Raises:
            OptionError: There is no such group.
        """
        if group is not None and group not in self.groups:
            names = [name or "(empty)" for name in self.groups]
            more = ", ..." if len(names) > _MOST_LISTED else ""
            raise OptionError(
                f"The group is {format_value(group)}, and the model knows no such {self.column}."
                f"{suggest(str(group), names)} Choices: {', '.join(names[:_MOST_LISTED])}{more}. Give one of them, or "
                "none for the general rule."
            )
        rules = None if group is None else self.groups[group]
        choice = GroupChoice(self.column, group, "general" if rules is None else "own")
        return choice, {**self.general, **(rules or {})}

    def to_dict(self) -> dict[str, Any]:
        """Return the rules as plain values that JSON can hold."""
        groups = {
            name: None if rules is None else dict(rules) for name, rules in self.groups.items()
        }
        return {**vars(self), "general": dict(self.general), "groups": groups}

    def _refuse(self, name: str, expected: str) -> None:
        value = format_value(getattr(self, name))
        raise DataError(f"The {self.title} hold {value} as '{name}'; expected {expected}.")

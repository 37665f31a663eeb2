"""Licences of pretrained weights: what they forbid and what they oblige to; the table is `licenses.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple, get_args

LicensedUse = Literal["sell", "redistribute", "train-others"]
"""What may be done with weights and what is made of them: built into a product, given to others under the same terms,
or used to train other models."""
USES: tuple[LicensedUse, ...] = get_args(LicensedUse)


class Terms(NamedTuple):
    """What a licence means for a company. A summary for orientation, no legal advice."""

    may: frozenset[LicensedUse]
    """Uses that it permits, if its duties are kept."""
    duties: str
    """What the licence obliges to or forbids; empty for the usual permissive licences."""

    @property
    def commercial(self) -> bool:
        """Whether a product may be built on the weights."""
        return "sell" in self.may


_FILE = Path(__file__).with_name("licenses.json")
_TERMS = {
    name: Terms(frozenset(terms["may"]), terms["duties"])
    for name, terms in json.loads(_FILE.read_text(encoding="utf-8")).items()
}
_UNKNOWN = Terms(frozenset(), "it is not known to vfm: have it read before the model goes anywhere")
_UNSTATED = Terms(
    frozenset(),
    "the weights state no licence: find out where they come from before the model goes anywhere",
)


def find_terms(license: str | None) -> Terms:
    """Return what a licence means by its name in timm; unknown or None, it counts as not cleared for commercial use."""
    if license is None:
        return _UNSTATED
    return _TERMS.get(license.lower(), _UNKNOWN)


def describe_license(backbone: str, license: str | None) -> str | None:
    """Return what to tell whoever trains from weights; None for the usual permissive licences."""
    terms = find_terms(license)
    if not terms.duties:
        return None
    kind = "" if terms.commercial else "; not cleared for commercial use"
    return (
        f"Licence of the weights of {backbone}: {license or 'none stated'}{kind}: {terms.duties}."
    )


def list_limits(licenses: Mapping[str, str | None]) -> dict[LicensedUse, list[str]]:
    """Return which parts of a model stand against each use: what is made of parts may do what all of them permit.

    Args:
        licenses: Licence of each part, such as the pretrained weights or the training images; None where none is
            stated.

    Returns:
        For each use the parts that do not permit it, with their licences; empty where the use is permitted.
    """
    return {
        use: [
            f"{part} ({license or 'no licence stated'})"
            for part, license in licenses.items()
            if use not in find_terms(license).may
        ]
        for use in USES
    }

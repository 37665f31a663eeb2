"""Licences of pretrained weights: what they forbid and what they oblige to; the table is `licenses.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Terms(NamedTuple):
    """What a licence means for a company. A summary for orientation, no legal advice."""

    commercial: bool
    """Whether a product may be built on the weights."""
    duties: str
    """What the licence obliges to or forbids; empty for the usual permissive licences."""


_FILE = Path(__file__).with_name("licenses.json")
_TERMS = {
    name: Terms(**terms) for name, terms in json.loads(_FILE.read_text(encoding="utf-8")).items()
}
_UNKNOWN = Terms(False, "it is not known to vfm: have it read before the model goes anywhere")
_UNSTATED = Terms(
    False,
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

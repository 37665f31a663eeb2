"""Licences of pretrained weights: what they forbid and what they oblige to."""

from __future__ import annotations

from typing import NamedTuple


class Terms(NamedTuple):
    """What a licence means for a company. A summary for orientation, no legal advice."""

    commercial: bool
    """Whether a product may be built on the weights."""
    duties: str
    """What it obliges to or forbids; empty for the usual permissive licences."""


_PERMISSIVE = Terms(True, "")
_TERMS = {
    "apache-2.0": _PERMISSIVE,
    "mit": _PERMISSIVE,
    "bsd-3-clause": _PERMISSIVE,
    "dinov3-license": Terms(
        True,
        "commercial use is allowed; whoever gets the weights or anything derived from them, a fine-tuned or distilled "
        "model too, must get a copy of the licence and is bound by it; publications name DINOv3; no military, nuclear, "
        "weapons or espionage use; read https://ai.meta.com/resources/models-and-libraries/dinov3-license",
    ),
    "fastvit-license": Terms(
        True,
        "Apple's own terms: use and change are allowed, Apple's notice stays with every copy and its names may not "
        "advertise what is derived; read https://github.com/apple/ml-fastvit/blob/main/LICENSE",
    ),
    "apple-ascl": Terms(
        True,
        "Apple's sample code licence: use and change are allowed, Apple's notice stays with every copy, no patent "
        "rights beyond that; read https://github.com/apple/ml-aim/blob/main/LICENSE",
    ),
    "nvidia-open-model-license": Terms(
        True,
        "commercial use is allowed; a copy of the licence and NVIDIA's notice go with every copy, guard rails may not "
        "be taken out; read https://www.nvidia.com/en-us/agreements/enterprise-software/nvidia-open-model-license",
    ),
    "cc-by-4.0": Terms(
        True, "the authors must be named wherever the weights or what is derived are shown"
    ),
    "cvnets-license": Terms(
        True, "Apple's own terms; read https://github.com/apple/ml-cvnets/blob/main/LICENSE"
    ),
    "mobileone-license": Terms(
        True, "Apple's own terms; read https://github.com/apple/ml-mobileone/blob/main/LICENSE"
    ),
    "gemma": Terms(
        True,
        "Google's terms: a list of forbidden uses, which goes with every copy and whatever is derived; read "
        "https://ai.google.dev/gemma/terms",
    ),
    "seer-license": Terms(False, "Meta's SEER licence: non-commercial research only"),
    "apple-amlr": Terms(
        False,
        "research only: neither the weights nor what is derived may be sold or used in a product",
    ),
    "fair-noncommercial-research-license": Terms(
        False, "non-commercial research only; whatever is derived is bound by the same licence"
    ),
    "cc-by-nc-4.0": Terms(
        False,
        "no commercial use; the authors must be named wherever the weights or what is derived are shown",
    ),
    "cc-by-nc-sa-4.0": Terms(
        False,
        "no commercial use; the authors must be named, what is derived carries the same licence",
    ),
}
_UNKNOWN = Terms(False, "it is not known to vfm: have it read before the model goes anywhere")
_UNSTATED = Terms(
    False,
    "the weights state no licence: find out where they come from before the model goes anywhere",
)


def find_terms(licence: str | None) -> Terms:
    """What a licence means; one that is unknown or not stated counts as not cleared for commercial use.

    Args:
        licence: As timm names it, such as `apache-2.0`; None when the weights state none.
    """
    if licence is None:
        return _UNSTATED
    return _TERMS.get(licence.lower(), _UNKNOWN)


def describe_license(name: str, licence: str | None) -> str | None:
    """What to tell whoever trains from weights; None for the usual permissive licences.

    Args:
        name: Of the backbone.
        licence: Of its weights.
    """
    found = find_terms(licence)
    if not found.duties:
        return None
    kind = "" if found.commercial else "; not cleared for commercial use"
    return f"Licence of the weights of {name}: {licence or 'none stated'}{kind}: {found.duties}."

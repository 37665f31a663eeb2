"""Whom a video shows and what it was made from, as the public data sets write it into file names."""

from __future__ import annotations

import re
from typing import NamedTuple

FORENSICS = "FaceForensics++"
DFD = "DeepFakeDetection"


class Origin(NamedTuple):
    """What a file name says."""

    identities: tuple[str, ...]
    source: str
    """Of a fake the real video that it was made from; "" for a real one, and where the name does not say so."""


NO_ORIGIN = Origin((), "")


def forensics(video: str) -> Origin:
    """FaceForensics++: `000` is real, `000_003` the video 000 with the face of 003."""
    found = re.fullmatch(r"(\d{3})(?:_(\d{3}))?", video)
    if not found:
        return NO_ORIGIN
    target, donor = found.groups()
    names = (f"ff/{target}",) if donor is None else (f"ff/{target}", f"ff/{donor}")
    return Origin(names, target if donor else "")


def actors(video: str) -> Origin:
    """DeepFakeDetection: `01__walking` is real, `01_02__walking__AB12` the actor 01 with the face of 02."""
    found = re.fullmatch(r"(\d{2})(?:_(\d{2}))?__(.+?)(?:__([A-Z0-9]{8}))?", video)
    if not found:
        return NO_ORIGIN
    target, donor, scene, _ = found.groups()
    if donor is None:
        return Origin((f"dfd/{target}",), "")
    return Origin((f"dfd/{target}", f"dfd/{donor}"), f"{target}__{scene}")


def celebrities(video: str) -> Origin:
    """Celeb-DF: `id0_0000` is real, `id0_id1_0000` that video with the face of id1; the versions share the persons.

    The methods of Celeb-DF++ may add more after these parts.
    """
    found = re.match(r"id(\d+)(?:_id(\d+))?_(\d{4})(?![\d])", video)
    if not found:
        return NO_ORIGIN
    target, donor, number = found.groups()
    if donor is None:
        return Origin((f"celeb/id{target}",), "")
    return Origin((f"celeb/id{target}", f"celeb/id{donor}"), f"id{target}_{number}")


def origin(dataset: str, video: str) -> Origin:
    """What the name of a video says, in a data set made from FaceForensics++, DeepFakeDetection or Celeb-DF."""
    name = dataset.lower()
    if "celeb" in name or name.endswith("_cdf"):
        return celebrities(video)
    if name == DFD.lower():
        return actors(video)
    if name == FORENSICS.lower() or name.endswith("_ff"):
        return forensics(video)
    return NO_ORIGIN

"""File names of FaceForensics++, DeepFakeDetection and Celeb-DF: persons, and what a fake was made from."""

from __future__ import annotations

import re
from typing import NamedTuple

FORENSICS = "FaceForensics++"
DFD = "DeepFakeDetection"
CELEB = "Celeb-DF"


class _Convention(NamedTuple):
    """How a data set names its videos."""

    pattern: re.Pattern[str]
    """Has the groups `target` and `donor`, which is missing from what is real, and perhaps `scene`."""
    person: str
    source: str


_CONVENTIONS = {
    # 000 is real, 000_003 the video 000 with the face of 003.
    FORENSICS: _Convention(
        re.compile(r"(?P<target>\d{3})(?:_(?P<donor>\d{3}))?$"), "ff/{}", "{target}"
    ),
    # 01__walking is real, 01_02__walking__AB12CD34 the actor 01 with the face of 02.
    DFD: _Convention(
        re.compile(r"(?P<target>\d{2})(?:_(?P<donor>\d{2}))?__(?P<scene>.+?)(?:__[A-Z0-9]{8})?$"),
        "dfd/{}",
        "{target}__{scene}",
    ),
    # id0_0000 is real, id0_id1_0000 that video with the face of id1; all versions share the persons, and the methods of
    # Celeb-DF++ may add more after these parts.
    CELEB: _Convention(
        re.compile(r"id(?P<target>\d+)(?:_id(?P<donor>\d+))?_(?P<scene>\d{4})(?!\d)"),
        "celeb/id{}",
        "id{target}_{scene}",
    ),
}


def parse_name(dataset: str, video: str) -> tuple[tuple[str, ...], str]:
    """Read the persons of a video, and of a fake the real video that it was made from; nothing where none is named.

    Args:
        dataset: Name of a data set that was made from one of the three, such as Celeb-DF-v2 or simswap_ff.
        video: Name of the video, without a suffix.
    """
    name = dataset.lower()
    if "celeb" in name or name.endswith("_cdf"):
        convention = _CONVENTIONS[CELEB]
    elif name == FORENSICS.lower() or name.endswith("_ff"):
        convention = _CONVENTIONS[FORENSICS]
    elif name == DFD.lower():
        convention = _CONVENTIONS[DFD]
    else:
        return (), ""
    match = convention.pattern.match(video)
    if match is None:
        return (), ""
    if match["donor"] is None:
        return (convention.person.format(match["target"]),), ""
    persons = tuple(convention.person.format(match[part]) for part in ("target", "donor"))
    return persons, convention.source.format(**match.groupdict())

"""MP4 atoms: the number of frames that the index of a file claims, read without opening it."""

from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

_HOLDERS = frozenset(
    (
        *(b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex", b"edts"),
        *(b"udta", b"tref", b"wave", b"sinf", b"schi"),
    )
)
# Offset in the body of an atom of the number of frames, or cuts, that it is about.
_COUNTS = {b"stsz": 8, b"stz2": 8, b"trun": 4, b"elst": 4}
_PACKED, _CUTS = b"cmov", b"elst"
_DEEPEST = 16


class Claims(NamedTuple):
    """Counts that the index of an MP4 claims."""

    frames: int
    """Number of frames of all tracks."""
    cuts: int
    """Number of cuts of the track with most, 1 at least; each may show all frames again."""
    is_packed: bool
    """Whether a part of the index is compressed, so that its claims cannot be read."""


def read_claims(raw: BinaryIO, size: int, check: Callable[[], None]) -> Claims:
    """Read the index of an MP4, and leave the file at its start. One of another format claims nothing.

    Args:
        raw: File that is open for reading.
        size: Number of bytes of the file.
        check: Called again and again, to end what takes too long.
    """
    frames, cuts, is_packed = 0, 1, False
    for kind, count in _read_atoms(raw, 0, size, check, 0):
        if kind == _CUTS:
            cuts = max(cuts, count)
        elif kind == _PACKED:
            is_packed = True
        else:
            frames += count
    raw.seek(0)
    return Claims(frames, cuts, is_packed)


def _read_atoms(
    raw: BinaryIO, at: int, end: int, check: Callable[[], None], depth: int
) -> Iterator[tuple[bytes, int]]:
    """Yield the kind of each atom (box) that claims something, with how many; also of those that are packed."""
    while at + 8 <= end and depth < _DEEPEST:
        check()
        raw.seek(at)
        head = raw.read(16)
        size, kind, start = int.from_bytes(head[:4], "big"), head[4:8], at + 8
        if size == 1:  # a size beyond 32 bits follows in 64
            size, start = int.from_bytes(head[8:16], "big"), at + 16
        after = at + size if size else end  # 0 is up to the end
        if after < start:
            return
        if kind in _HOLDERS:
            yield from _read_atoms(raw, start, min(after, end), check, depth + 1)
        elif kind in _COUNTS:
            raw.seek(start + _COUNTS[kind])
            yield kind, int.from_bytes(raw.read(4), "big")
        elif kind == _PACKED:
            yield kind, 0
        at = after

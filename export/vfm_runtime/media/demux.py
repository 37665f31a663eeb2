"""Demuxing: the file of a video opened safely, and its frames counted before any is decoded."""

import io
import itertools
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn, TypeAlias

from vfm_runtime.errors import MissingPackageError
from vfm_runtime.media.image import ImageError
from vfm_runtime.media.mp4 import read_claims

VideoSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview
"""Everything that `read_video` opens: a path, or the bytes of a file."""

# Playlists and the like are no videos but lists of other files and addresses; FFmpeg would open those.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,mxf,h264,hevc,"
    "m4v,ivf,obu,mjpeg,dv,wav,mp3,aac,flac"
)
AGAIN = "Copy or download it again."


class VideoError(ImageError):
    """A video cannot be opened; says which, why and what to do. It never becomes a score."""


@dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """Limits on the size, length and time of a video; one beyond them is refused."""

    max_seconds: float = 600.0
    """Longest clip."""
    max_pixels: int = 7680 * 4320
    """Pixels of the largest frame."""
    max_bytes: int = 4 * 2**30
    """Size of the largest file."""
    max_memory: int = 2 * 2**30
    """Bytes of all frames that are kept; of very large frames, fewer are taken."""
    max_frames: int = 1_000_000
    """Most frames; they are counted before any is decoded."""
    decode_seconds: float = 120.0
    """Longest time to read and decode the clip."""


LIMITS = VideoLimits()
"""The limits where none are given."""


def import_av() -> Any:
    """Return the module `av`, which only videos need; a MissingPackageError says how to install it."""
    try:
        import av
    except ImportError as error:
        raise MissingPackageError(
            f"PyAV, which reads videos, cannot be imported ({error}). "
            'Run: pip install "vfm-runtime[video]"'
        ) from error
    return av


class Guard:
    """Refuses what goes beyond the limits, in the middle of the work too."""

    def __init__(self, name: str, limits: VideoLimits) -> None:
        self._name = name
        self._limits = limits
        self._deadline = time.monotonic() + limits.decode_seconds

    @property
    def is_late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self._deadline

    def check_clock(self) -> None:
        """Raise `VideoError` when the time is over."""
        if self.is_late:
            seconds = self._limits.decode_seconds
            self._refuse(f"reading it took longer than {seconds:g} s", "decode_seconds")

    def check_seconds(self, seconds: float) -> None:
        """Raise `VideoError` for a clip that lasts too long."""
        limit = self._limits.max_seconds
        if seconds > limit:
            self._refuse(
                f"it lasts {seconds:.1f} s or more; the limit is {limit:g} s", "max_seconds"
            )

    def check_pixels(self, width: int, height: int) -> None:
        """Raise `VideoError` for frames that are too large."""
        limit = self._limits.max_pixels
        if width * height > limit:
            reason = f"its frames have {width}x{height} pixels; the limit is {limit} pixels"
            self._refuse(reason, "max_pixels", "Make it smaller")

    def check_count(self, count: int) -> None:
        """Raise `VideoError` for a clip of too many frames."""
        limit = self._limits.max_frames
        if count > limit:
            self._refuse(f"it has more than {limit} frames, the limit", "max_frames")

    def check_bytes(self, count: int) -> None:
        """Raise `VideoError` for a file that is empty or too large."""
        if count == 0:
            raise VideoError(self._name, "the file is empty", AGAIN)
        if count > self._limits.max_bytes:
            self._refuse(f"{count} bytes; the limit is {self._limits.max_bytes}", "max_bytes")

    def count_affordable(self, width: int, height: int) -> int:
        """Count the frames of this size that fit into the memory that is allowed, 1 at least."""
        return max(1, self._limits.max_memory // max(1, 3 * width * height))

    def _refuse(self, reason: str, limit: str, remedy: str = "Cut it") -> NoReturn:
        raise VideoError(self._name, reason, f"{remedy}, or raise VideoLimits.{limit}.")


class VideoFile(NamedTuple):
    """A file, which is read twice."""

    name: str
    data: bytes | None
    path: Path

    @classmethod
    def resolve(cls, source: VideoSource, limits: VideoLimits) -> "VideoFile":
        """Refuse a source that is missing, no regular file, empty or too large, with a VideoError."""
        if isinstance(source, bytes | bytearray | memoryview):
            data = bytes(source)
            name = f"video of {len(data)} bytes"
            Guard(name, limits).check_bytes(len(data))
            return cls(name, data, Path())
        if not isinstance(source, str | os.PathLike):
            kind = f"{type(source).__name__} object"
            raise VideoError(kind, "not a video", "Give a path or the bytes of a file.")
        name = os.fspath(source)
        path = Path(source)
        if "://" in name:
            raise VideoError(name, "an address", "Download it first and give its path.")
        if path.is_dir():
            remedy = "Give its files: vfm_runtime.find_videos lists them."
            raise VideoError(name, "a folder, not a video", remedy)
        if not path.exists():
            remedy = f"Check the path; relative paths start at {Path.cwd()}."
            raise VideoError(name, "no such file", remedy)
        if not path.is_file():
            # A pipe or a device may never end.
            raise VideoError(name, "not a regular file", "Write it to a file first.")
        Guard(name, limits).check_bytes(path.stat().st_size)
        return cls(name, None, path)

    def open(self) -> BinaryIO:
        """Open it for reading from its start."""
        if self.data is not None:
            return io.BytesIO(self.data)
        try:
            return self.path.open("rb")
        except OSError as error:
            reason = f"not readable ({error})"
            raise VideoError(self.name, reason, "Check its permissions.") from error


class _Reader:
    """A file that ends when the time is over: an index may send FFmpeg to and fro for hours."""

    def __init__(self, raw: BinaryIO, guard: Guard) -> None:
        self._raw, self._guard = raw, guard
        self.seek, self.tell = raw.seek, raw.tell

    def read(self, size: int) -> bytes:
        return b"" if self._guard.is_late else self._raw.read(size)


@contextmanager
def open_container(
    av: Any, file: VideoFile, guard: Guard | None = None
) -> Iterator[tuple[Any, Any]]:
    """Open the container of a checked file, and its first stream of moving pictures, within the guard's limits."""
    guard = guard or Guard(file.name, LIMITS)
    with file.open() as raw:
        _check_index(file.name, raw, guard)
        try:
            options = {"format_whitelist": _FORMATS, "protocol_whitelist": "none"}
            # Damaged titles do not matter.
            container = av.open(
                _Reader(raw, guard), metadata_errors="replace", container_options=options
            )
        except av.error.FFmpegError as error:
            guard.check_clock()
            raise VideoError(
                file.name,
                f"not a video, damaged at its start, or cut before its index ({error.strerror})",
                "Open it in a viewer; if it plays there, convert it to MP4 (H.264).",
            ) from error
        with container:
            guard.check_clock()
            yield container, _choose_stream(av, container, file.name)


def _check_index(name: str, raw: BinaryIO, guard: Guard) -> None:
    """Refuse an MP4 whose index claims more frames than the file has bytes.

    FFmpeg makes room for all of them when it opens the file: gigabytes, for a claim of a few bytes.
    """
    size = raw.seek(0, os.SEEK_END)
    frames, cuts, is_packed = read_claims(raw, size, guard.check_clock)
    if is_packed:
        raise VideoError(name, "its index is packed", "Convert it to MP4 (H.264).")
    if frames * cuts > size:
        times = f", {cuts} times" if cuts > 1 else ""
        reason = f"its index claims {frames} frames{times}, and it has {size} bytes"
        raise VideoError(name, reason, AGAIN)


def _choose_stream(av: Any, container: Any, name: str) -> Any:
    still = av.stream.Disposition.attached_pic  # the cover of an album
    streams = [s for s in container.streams.video if not s.disposition & still]
    if not streams:
        has_sound = len(container.streams.audio) > 0
        reason = "it has no moving pictures" + (", only sound" if has_sound else "")
        raise VideoError(name, reason, "Leave it out.")
    if streams[0].codec_context is None:
        raise VideoError(name, "its codec is unknown here", "Convert it to MP4 (H.264).")
    return streams[0]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """Facts of a video that its packets tell, without decoding any."""

    stamps: list[int]
    """Times of display in units of `base`, sorted, each once; empty where the file has none."""
    count: int
    """Frames that it should have, as its packets say."""
    base: Fraction
    """Seconds of one unit of `stamps`."""
    step: float
    """Seconds from frame to frame, usually."""
    affordable: int
    """Frames that fit into memory."""
    codec: str
    claimed: int | None
    """Frames that the header claims."""
    claimed_seconds: float | None
    """Seconds that the header claims."""
    num_packets: int
    """Packets, those included that are not for display."""
    is_anamorphic: bool
    """Whether its pixels are not square."""

    @property
    def duration(self) -> float:
        """Seconds from the start of the first frame to the end of the last."""
        if not self.stamps:
            return self.count * self.step
        return float((self.stamps[-1] - self.stamps[0]) * self.base) + self.step


def survey(av: Any, file: VideoFile, guard: Guard) -> Survey:
    """Read all packets of a video and count its frames, decoding none.

    Raises:
        VideoError: The file is no video, has no frames, or is beyond a limit.
    """
    with open_container(av, file, guard) as (container, stream):
        context = stream.codec_context
        guard.check_pixels(context.width, context.height)
        stamps, num_packets = _read_stamps(
            read_packets(av, container, stream, []), stream.time_base, guard
        )
        is_timed = None not in stamps
        ordered = sorted(stamp for stamp in set(stamps) if stamp is not None) if is_timed else []
        step = 1 / (stream.average_rate or stream.guessed_rate or Fraction(25))
        if len(ordered) > 1:
            gaps = (after - before for before, after in itertools.pairwise(ordered))
            step = statistics.median(gaps) * stream.time_base
        video = Survey(
            stamps=ordered,
            count=len(ordered) if is_timed else len(stamps),
            base=stream.time_base,
            step=float(step),
            affordable=guard.count_affordable(context.width, context.height),
            codec=context.name,
            claimed=stream.frames or None,
            claimed_seconds=container.duration / av.time_base if container.duration else None,
            num_packets=num_packets,
            is_anamorphic=(context.sample_aspect_ratio or 1) != 1,
        )
    if not video.count:
        raise VideoError(file.name, "it has no frames", AGAIN)
    guard.check_seconds(video.duration)
    return video


def read_packets(av: Any, container: Any, stream: Any, damage: list[str]) -> Iterator[Any]:
    """Read the packets of a stream up to its end, or to where it cannot be read; `damage` takes the reason."""
    try:
        yield from container.demux(stream)
    except av.error.EOFError:
        return
    except av.error.FFmpegError as error:
        damage.append(str(error.strerror))


def _read_stamps(
    source: Iterator[Any], base: Fraction, guard: Guard
) -> tuple[list[int | None], int]:
    """Return the times of display of the packets that are for display, and the number of all packets."""
    stamps: list[int | None] = []
    first: int | None = None
    num_packets = 0
    for packet in source:
        guard.check_clock()
        if not packet.size:
            continue  # the mark of the end
        num_packets += 1
        guard.check_count(num_packets)
        # Discarded packets lead up to the frame that an edited clip begins with.
        if not packet.is_discard:
            stamps.append(packet.pts)
        if packet.pts is not None:
            first = packet.pts if first is None else first
            # Checked at each packet, so that a clip without end is left early.
            guard.check_seconds(float(abs(packet.pts - first) * base))
    return stamps, num_packets

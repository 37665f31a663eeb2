"""Videos: frames spread over the whole clip, the same ones for training and production."""

import bisect
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vfm_runtime.errors import OptionError
from vfm_runtime.media.demux import (
    AGAIN,
    LIMITS as LIMITS,
    Guard,
    Survey,
    VideoError as VideoError,
    VideoFile,
    VideoLimits as VideoLimits,
    VideoSource as VideoSource,
    import_av,
    open_container,
    read_packets,
    survey,
)
from vfm_runtime.media.files import find_images, list_files
from vfm_runtime.media.image import IMAGE_SUFFIXES, Pixels

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".m2ts", ".mts"),
    *(".flv", ".wmv", ".asf", ".3gp", ".3g2", ".ogv", ".vob", ".mxf", ".h264", ".264", ".hevc"),
)
"""Names of video files end so; compared in lower case."""

# Pictures that begin as MP4 does.
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_STARTS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"\x00\x00\x01\xba",  # MPEG programme stream
    b"\x00\x00\x01\xb3",  # MPEG-1 and 2 without a container
    b"FLV\x01",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"OggS",
)
_TS_PACKET = 188


@dataclass(frozen=True, eq=False)
class VideoFrame:
    """One frame of a video."""

    pixels: Pixels
    """Uint8 RGB, [height, width, 3], upright."""
    time: float
    """Seconds since the first frame."""
    index: int
    """Number of the frame in the order of display, from 0, among those that could be decoded."""


class VideoClip(NamedTuple):
    """Frames of a video and what is known of the whole."""

    frames: list[VideoFrame]
    """In the order of display."""
    duration: float
    """Seconds, measured from the times of the frames."""
    num_frames: int
    """Frames that are really there and could be decoded."""
    claimed: int | None
    """Frames that the header claims; None where it says nothing."""
    fps: float | None
    """Frames per second, measured; None for a single frame."""
    codec: str
    """FFmpeg's name of the codec."""
    warnings: list[str]
    """What is unusual about the file, one sentence each."""
    num_repeated: int = 0
    """Chosen frames that were left out, as each is the same picture as the one chosen before."""


def is_video(source: object) -> bool:
    """Tell whether a path or the bytes of a file are a video, by the name of the file or else by its first bytes."""
    if isinstance(source, bytes | bytearray | memoryview):
        return _is_video_start(bytes(source[: 3 * _TS_PACKET]))
    if not isinstance(source, str | os.PathLike):
        return False
    name = os.fspath(source).lower()
    if name.endswith(VIDEO_SUFFIXES):
        return True
    if name.endswith(IMAGE_SUFFIXES):
        return False
    try:
        with Path(source).open("rb") as file:
            return _is_video_start(file.read(3 * _TS_PACKET))
    except (OSError, ValueError):
        # Whoever opens it says why it cannot be opened.
        return False


def find_videos(folder: str | os.PathLike[str]) -> list[Path]:
    """List the video files in a folder and the folders below it, as `find_images` does images.

    Raises:
        VideoError: It is not a folder.
    """
    if not Path(folder).is_dir():
        raise VideoError(str(folder), "not a folder", "Give a folder that holds videos.")
    return list_files(folder, VIDEO_SUFFIXES)


def find_media(folder: str | os.PathLike[str], *, videos: bool) -> list[Path]:
    """List the images in a folder and the folders below it, and the videos too where they are taken."""
    images = find_images(folder)
    return list_files(folder, IMAGE_SUFFIXES + VIDEO_SUFFIXES) if videos else images


def choose_evenly(n: int, count: int) -> list[int]:
    """Choose indices of n things that are spread evenly, the first and the last among them.

    Args:
        n: Number of things, from 0 up.
        count: Number to choose, from 1 up; where there are no more than that, all are chosen. A single one is from the
            middle.

    Returns:
        Increasing indices, min(n, count) of them; neighbours are equally far apart but for rounding.
    """
    if n < 0 or count < 1:
        raise OptionError(
            f"Cannot choose {count} of {n}: give a count of 1 or more and n of 0 or more."
        )
    if n <= count:
        return list(range(n))
    if count == 1:
        return [n // 2]
    steps = count - 1
    # In whole numbers, as floating-point ones round differently from one place to another.
    return [(2 * i * (n - 1) + steps) // (2 * steps) for i in range(count)]


def read_video(
    source: VideoSource,
    num_frames: int = 32,
    limits: VideoLimits = LIMITS,
    *,
    num_threads: int = 0,
) -> VideoClip:
    """Decode a video from start to end and keep frames that are spread evenly over it.

    The frames are counted by their time stamps, as the header is often wrong, and none is sought, as that is inexact
    with many formats. The rotation that cameras write into the file is applied.

    Args:
        source: Path of a file, or its bytes.
        num_frames: Number of frames to keep; of a shorter video, all.
        limits: Largest size and length of the video.
        num_threads: Number of threads of the decoder; 0 for one a core.

    Raises:
        VideoError: The file is missing, no video, without pictures, damaged from its start on, or beyond a limit.
        MissingPackageError: PyAV is not installed.
    """
    if num_frames < 1:
        raise OptionError(f"num_frames is {num_frames}. Give 1 or more.")
    av = import_av()
    file = VideoFile.resolve(source, limits)
    guard = Guard(file.name, limits)
    decoder = _Decoder(file.name, survey(av, file, guard), num_frames, guard)
    with open_container(av, file, guard) as (container, stream):
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = num_threads
        decoder.run(av, container, stream)
    return decoder.make_clip()


def _is_video_start(start: bytes) -> bool:
    if start[4:8] == b"ftyp":
        return start[8:12] not in _PICTURE_BRANDS
    if start[4:8] in _BOXES or start.startswith(_STARTS):
        return True
    if start[:4] == b"RIFF":
        return start[8:12] == b"AVI "
    syncs = [start[at : at + 1] for at in range(0, 3 * _TS_PACKET, _TS_PACKET)]
    return syncs == [b"G"] * 3


class _Decoder:
    """Decodes all frames and keeps the wanted ones."""

    def __init__(self, name: str, video: Survey, num_asked: int, guard: Guard) -> None:
        self._name = name
        self._video = video
        self._guard = guard
        self._num_asked = num_asked
        wanted = choose_evenly(video.count, min(num_asked, video.affordable))
        # Positions of the wanted frames: times of display, or numbers where the file has no times.
        self._wanted = [video.stamps[i] for i in wanted] if video.stamps else list(wanted)
        self._frames: list[VideoFrame] = []
        self._count = 0
        self._num_taken = 0
        self._num_repeated = 0
        self._damage: list[str] = []
        self._notes: dict[str, None] = {}  # a set that keeps its order

    def run(self, av: Any, container: Any, stream: Any) -> None:
        """Decode to the end; a packet that cannot be decoded is counted and left out."""
        last = None
        for packet in read_packets(av, container, stream, self._damage):
            self._guard.check_clock()
            try:
                decoded = packet.decode()
            except av.error.EOFError:
                break
            except av.error.FFmpegError as error:
                self._damage.append(str(error.strerror))
                continue
            for frame in decoded:
                position = frame.pts if self._video.stamps else self._count
                if position is not None:
                    # Several wanted positions are passed at once where frames before could not be decoded.
                    passed = bisect.bisect_right(self._wanted, position)
                    del self._wanted[:passed]
                    last = None if passed else (frame, self._count)
                    if passed:
                        self._keep(frame, self._count)
                self._count += 1
        if last is not None and self._wanted:
            # The end that was wanted cannot be decoded; this is the nearest to it.
            self._keep(*last)

    def _keep(self, frame: Any, index: int) -> None:
        self._guard.check_pixels(frame.width, frame.height)
        pixels = _turn_upright(frame, self._notes)
        if frame.interlaced_frame:
            self._notes["It is interlaced; moving edges are combed."] = None
        self._num_taken += 1
        if self._frames and np.array_equal(self._frames[-1].pixels, pixels):
            self._num_repeated += 1
            return
        video = self._video
        seconds = index * video.step
        if video.stamps:
            seconds = float((frame.pts - video.stamps[0]) * video.base)
        self._frames.append(VideoFrame(pixels, seconds, index))

    def make_clip(self) -> VideoClip:
        """Return the frames that were kept, with a VideoError where not one could be decoded."""
        video = self._video
        if not self._frames:
            cause = f" ({self._damage[0]})" if self._damage else ""
            raise VideoError(self._name, f"none of its frames can be decoded{cause}", AGAIN)
        seconds = video.duration
        return VideoClip(
            frames=sorted(self._frames, key=lambda frame: frame.time),
            duration=seconds,
            num_frames=self._count,
            claimed=video.claimed,
            fps=video.count / seconds if video.count > 1 and seconds > 0 else None,
            codec=video.codec,
            warnings=[*self._notes, *self._describe_oddities()],
            num_repeated=self._num_repeated,
        )

    def _describe_oddities(self) -> list[str]:
        video = self._video
        remarks = []
        if video.claimed is not None and video.claimed != video.num_packets:
            remarks.append(f"Its header claims {video.claimed} frames; it has {video.num_packets}.")
        if video.claimed_seconds is not None and video.claimed_seconds > 1.1 * video.duration + 1:
            remarks.append(
                f"Its header claims {video.claimed_seconds:.1f} s; its frames end after {video.duration:.1f} s."
            )
        if self._count < video.count or self._damage:
            remarks.append(
                f"It is damaged or truncated: {self._count} of {video.count} frames were decoded."
            )
        if video.affordable < min(self._num_asked, video.count):
            remarks.append(
                f"Its frames are so large that {video.affordable} were taken instead of {self._num_asked}."
            )
        if video.is_anamorphic:
            remarks.append("Its pixels are not square; they were left as they are.")
        if self._num_repeated:
            remarks.append(
                f"{self._num_repeated} of {self._num_taken} chosen frames repeat the one before and were left out."
            )
        return remarks


def _turn_upright(frame: Any, notes: dict[str, None]) -> Pixels:
    """Return the pixels as a player shows them, turned and mirrored as the file says."""
    pixels: Pixels = frame.to_ndarray(format="rgb24")
    matrix = _read_display_matrix(frame)
    if matrix is None:
        return pixels
    # x' = a x + c y and y' = b x + d y, with y downwards.
    a, b, c, d = matrix
    if max(abs(a), abs(d)) >= max(abs(b), abs(c)):
        flip_x, flip_y, rest = a < 0, d < 0, (b, c)
    else:
        pixels = pixels.transpose(1, 0, 2)
        flip_x, flip_y, rest = c < 0, b < 0, (a, d)
    if any(rest):
        notes["It is turned by other than a right angle; the nearest right angle was taken."] = None
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def _read_display_matrix(frame: Any) -> tuple[int, int, int, int] | None:
    for entry in frame.side_data:
        if entry.type.name == "DISPLAYMATRIX":
            # Nine numbers, row by row; the third column and the third row do not turn.
            a, b, _, c, d, *_ = struct.unpack("=9i", bytes(entry)[:36])
            return a, b, c, d
    return None

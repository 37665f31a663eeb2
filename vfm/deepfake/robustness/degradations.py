"""Corruptions of the robustness curve: JPEG, blur, resize, noise and H.264, at the levels in use.

Levels and kinds but the last are those of the robustness test of GenD (Yermakov et al., 2025), H.264 as in
FaceForensics++, whose c23 and c40 are named after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

import cv2
import numpy as np
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.media.demux import import_av
from vfm_runtime.media.image import Pixels

from vfm.deepfake.data.augment import compress_jpeg

Kind = Literal["jpeg", "blur", "resize", "noise", "h264"]

LEVELS: dict[Kind, tuple[float, ...]] = {
    "jpeg": (100, 80, 60, 40, 20, 10),
    "blur": (0.5, 1, 1.5, 2, 3),
    "resize": (224, 112, 64),
    "noise": (0.01, 0.03, 0.05, 0.1, 0.2),
    "h264": (23, 28, 35, 40),
}
"""From weak to strong. JPEG: quality. Blur: standard deviation in pixels. Resize: side in pixels. Noise: standard
deviation, of values from 0 to 1. H.264: constant rate factor."""

WORDS: dict[Kind, str] = {
    "jpeg": "JPEG quality",
    "blur": "blur, sigma in pixels",
    "resize": "side in pixels",
    "noise": "noise, sigma",
    "h264": "H.264 CRF",
}
"""What a level says."""

_FORMATS: dict[Kind, str] = {
    "jpeg": "JPEG quality {:g}",
    "blur": "blurred by {:g} px",
    "resize": "resized to {:g} px",
    "noise": "noise of {:g}",
    "h264": "H.264 CRF {:g}",
}

_KERNELS = {0.5: 5, 1: 7, 1.5: 11, 2: 13, 3: 19}
_FILTERS = (
    *(cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC),
    *(cv2.INTER_AREA, cv2.INTER_LANCZOS4, cv2.INTER_LINEAR_EXACT),
)


class Degradation(NamedTuple):
    """One kind at one level."""

    kind: Kind
    level: float
    """In the unit that `LEVELS` says."""

    def __str__(self) -> str:
        return _FORMATS[self.kind].format(self.level)

    def apply(self, pixels: Pixels, generator: np.random.Generator) -> Pixels:
        """Return the degraded picture.

        Args:
            pixels: uint8 [H, W, 3].
            generator: Random numbers for the noise, and for the filter of a resize.

        Returns:
            uint8 of the same size, but for a resize: [level, level, 3] where that is smaller.
        """
        return _APPLY[self.kind](pixels, self.level, generator)


def list_degradations(kinds: Sequence[str] = get_args(Kind)) -> list[Degradation]:
    """All levels of some kinds of `LEVELS`.

    Raises:
        ValueError: There is no such kind.
    """
    unknown = [kind for kind in kinds if kind not in LEVELS]
    if unknown:
        raise OptionError(
            f"There is no kind of degradation '{unknown[0]}'. Choices: {', '.join(LEVELS)}."
        )
    return [Degradation(kind, level) for kind in LEVELS if kind in kinds for level in LEVELS[kind]]


def reencode(frames: Sequence[Pixels], crf: float, *, rate: int = 25) -> list[Pixels]:
    """Frames as they come back from an H.264 video, as many as were given.

    Args:
        frames: uint8 [H, W, 3], all of one size, in the order of time.
        crf: Constant rate factor, 0 (lossless) to 51.
        rate: Frames per second; the encoder spends less on frames that are shown shorter.

    Raises:
        ValueError: There are no frames, or they differ in size.
        ImportError: PyAV is not installed.
    """
    sizes = {frame.shape for frame in frames}
    if len(sizes) != 1:
        raise DataError(
            f"{len(frames)} frames of {len(sizes)} sizes cannot be a video. Give frames of one size."
        )
    height, width, _ = frames[0].shape
    av = import_av()
    # With another row or column where there is an odd number: colors are kept for every second one.
    odd = (height % 2, width % 2)
    even = [np.pad(f, ((0, odd[0]), (0, odd[1]), (0, 0)), mode="edge") for f in frames]
    packets = _encode(av, even, crf, rate)
    decoder = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    decoded = [frame for packet in [*packets, None] for frame in decoder.decode(packet)]
    return [
        np.ascontiguousarray(frame.to_ndarray(format="rgb24")[:height, :width]) for frame in decoded
    ]


def _encode(av: Any, frames: Sequence[Pixels], crf: float, rate: int) -> list[Any]:
    encoder = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = frames[0].shape[:2]
    encoder.pix_fmt = "yuv420p"
    encoder.time_base = Fraction(1, rate)
    encoder.framerate = Fraction(rate)
    # With one thread the result is the same on every machine.
    encoder.thread_count = 1
    encoder.options = {"crf": f"{crf:g}", "preset": "medium"}
    packets: list[Any] = []
    for number, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = number, encoder.time_base
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    return packets


def _resize(pixels: Pixels, level: float, generator: np.random.Generator) -> Pixels:
    side = int(level)
    # Drawn in any case, so that the random numbers of other levels stay the same.
    chosen = _FILTERS[int(generator.integers(len(_FILTERS)))]
    if side >= min(pixels.shape[:2]):
        return pixels
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=chosen), np.uint8)


def _blur(pixels: Pixels, level: float, _: np.random.Generator) -> Pixels:
    # Four standard deviations to either side, for other levels than the usual ones.
    side = _KERNELS.get(level, 2 * round(4 * level) + 1)
    return np.asarray(cv2.GaussianBlur(pixels, (side, side), level), np.uint8)


def _add_noise(pixels: Pixels, level: float, generator: np.random.Generator) -> Pixels:
    noise = generator.standard_normal(pixels.shape, np.float32) * (255 * level)
    noisy: Pixels = np.rint(np.clip(pixels + noise, 0, 255)).astype(np.uint8)
    return noisy


# A corruption that is added here needs its levels, its words and its format above.
_APPLY: dict[Kind, Callable[[Pixels, float, np.random.Generator], Pixels]] = {
    "jpeg": lambda pixels, level, _: compress_jpeg(pixels, int(level)),
    "blur": _blur,
    "resize": _resize,
    "noise": _add_noise,
    "h264": lambda pixels, level, _: reencode([pixels], level)[0],
}

"""Corruptions of the robustness curve: JPEG, blur, resize, noise and H.264, at the levels in use.

Levels and kinds but the last are those of the robustness test of GenD (Yermakov et al., 2025), H.264 as in
FaceForensics++, whose c23 and c40 are named after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import cv2
import numpy as np
import simplejpeg
from vfm_runtime.errors import DataError
from vfm_runtime.media.demux import import_av
from vfm_runtime.media.image import Pixels

_KERNELS = {0.5: 5, 1: 7, 1.5: 11, 2: 13, 3: 19}
_FILTERS = (
    *(cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC),
    *(cv2.INTER_AREA, cv2.INTER_LANCZOS4, cv2.INTER_LINEAR_EXACT),
)


class Corruption(NamedTuple):
    """One kind of corruption, at the levels of the curve."""

    levels: tuple[float, ...]
    """From weak to strong."""
    unit: str
    """What a level says."""
    text: str
    """The corruption in words, with braces for its level."""
    apply: Callable[[Pixels, float, np.random.Generator], Pixels]
    """Degrades a picture, uint8 [H, W, 3], at a level; random numbers are for noise, and for the filter of a resize."""


def compress_jpeg(pixels: Pixels, quality: int, subsampling: str = "420") -> Pixels:
    """The image, uint8 [h, w, 3], as it comes back from a JPEG file of a quality from 1 to 100."""
    data = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality, colorspace="RGB", colorsubsampling=subsampling
    )
    decoded: Pixels = simplejpeg.decode_jpeg(data, colorspace="RGB")
    return decoded


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


def blur_picture(pixels: Pixels, level: float, _: np.random.Generator) -> Pixels:
    """Blur by a Gaussian, whose standard deviation in pixels is the level."""
    # Four standard deviations to either side, for other levels than the usual ones.
    side = _KERNELS.get(level, 2 * round(4 * level) + 1)
    return np.asarray(cv2.GaussianBlur(pixels, (side, side), level), np.uint8)


def add_noise(pixels: Pixels, level: float, generator: np.random.Generator) -> Pixels:
    """Add Gaussian noise, whose standard deviation is the level, for values from 0 to 1."""
    noise = generator.standard_normal(pixels.shape, np.float32) * (255 * level)
    noisy: Pixels = np.rint(np.clip(pixels + noise, 0, 255)).astype(np.uint8)
    return noisy


CORRUPTIONS = {
    "jpeg": Corruption(
        (100, 80, 60, 40, 20, 10),
        "JPEG quality",
        "JPEG quality {:g}",
        lambda pixels, level, _: compress_jpeg(pixels, int(level)),
    ),
    "blur": Corruption(
        (0.5, 1, 1.5, 2, 3), "blur, sigma in pixels", "blurred by {:g} px", blur_picture
    ),
    "resize": Corruption((224, 112, 64), "side in pixels", "resized to {:g} px", _resize),
    "noise": Corruption((0.01, 0.03, 0.05, 0.1, 0.2), "noise, sigma", "noise of {:g}", add_noise),
    "h264": Corruption(
        (23, 28, 35, 40),
        "H.264 CRF",
        "H.264 CRF {:g}",
        lambda pixels, level, _: reencode([pixels], level)[0],
    ),
}
"""Corruptions by kind. A level is the quality of JPEG, the standard deviation of blur in pixels and of noise for values
from 0 to 1, the side of a resize in pixels, and the constant rate factor of H.264."""

"""Videos whose frames say which ones they are; written by PyAV."""

import io
from fractions import Fraction

import av
import numpy as np

WIDTH, HEIGHT = 96, 64
_BITS = 8


def picture(number, width=WIDTH, height=HEIGHT):
    """Eight bars are the number in binary; above them red on the left and blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    top = height // 2
    pixels[:top, : width // 2] = 200, 30, 30
    pixels[:top, width // 2 :] = 30, 30, 200
    for bit in range(_BITS):
        if number >> bit & 1:
            pixels[top:, bit * width // _BITS : (bit + 1) * width // _BITS] = 255
    return pixels


def number(pixels):
    """The number that a picture shows."""
    height, width, _ = pixels.shape
    row = pixels[height * 3 // 4, :, 1]
    centres = [(2 * bit + 1) * width // (2 * _BITS) for bit in range(_BITS)]
    return sum(1 << bit for bit, x in enumerate(centres) if row[x] > 127)


def write(
    pictures,
    form="mp4",
    codec="libx264",
    rate=25,
    times=None,
    rotation=None,
    matrix=None,
    options=None,
    container_options=None,
    sound=False,
    path=None,
):
    """The bytes of a video; `times` are the milliseconds of its frames, `path` is for muxers that read again."""
    file = io.BytesIO()
    with av.open(
        file if path is None else str(path), "w", format=form, options=container_options or {}
    ) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {"preset": "ultrafast"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        audio = _sound(container) if sound else None
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for index, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if audio is not None:
            container.mux(audio.encode())
    return file.getvalue() if path is None else path.read_bytes()


def empty():
    """The bytes of a video of no frames."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        container.start_encoding()
    return file.getvalue()


def sound_only(form="mp4"):
    """The bytes of a second of silence."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        container.mux(_sound(container).encode())
    return file.getvalue()


def _sound(container):
    stream = container.add_stream("aac", rate=16000, layout="mono")
    for start in range(0, 16000, 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate, frame.pts = 16000, start
        container.mux(stream.encode(frame))
    return stream


PICTURES = [picture(index) for index in range(60)]
EIGHT = [0, 8, 17, 25, 34, 42, 51, 59]
"""Eight of them, evenly spread."""


def numbers(clip):
    """The numbers that a clip's frames show."""
    return [number(frame.pixels) for frame in clip.frames]

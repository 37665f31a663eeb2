"""What a request carries: read up to the limits, and unpacked to the bytes of one file."""

import asyncio
import base64
import binascii
import io
import re
import struct
import zlib
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image, UnidentifiedImageError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from vfm_runtime.bundle.contract import parse_json
from vfm_runtime.media.image import Pixels, open_image
from vfm_runtime.server.errors import ApiError, ClientGoneError
from vfm_runtime.server.settings import Settings

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "file"
"""Name of the field of a form that holds the file."""

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow's names of the formats that are opened; others of it call programs or are rarely tested."""

_TAKES = (
    "Send multipart/form-data with the field 'file', or the bytes of the file as image/*, video/* "
    'or application/octet-stream, or JSON {"data": "<base64>"}.'
)
# What Pillow's readers of headers were seen to raise on damaged files, besides its own errors.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, RuntimeError, MemoryError, struct.error, zlib.error),
)
_MOST_HEADERS, _MOST_PARTS = 16, 32
# A scan of a JPEG may be a few bytes, and goes over all pixels. Programs write 10 or so.
_MOST_SCANS, _MOST_SEGMENTS = 100, 5000
# No JPEG is longer; a line of millions of pixels is more than resizing can take.
_LONGEST_SIDE = 65_535
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SCAN, _END = b"\xff\xda", b"\xff\xd9"


class Upload(NamedTuple):
    """One file that was sent."""

    data: bytes
    is_video: bool | None
    """What the client says of it; None where it says nothing."""


class MediaType(NamedTuple):
    """A Content-Type header."""

    name: str
    """In lower case, without parameters; empty where there is none."""
    options: dict[bytes, bytes]

    @classmethod
    def of(cls, request: Request) -> "MediaType":
        """Read it from a request.

        Args:
            request: The request.
        """
        name, options = parse_options_header(request.headers.get("content-type", ""))
        return cls(name.decode("latin-1").strip().lower(), options)


async def read_body(request: Request, settings: Settings) -> bytes:
    """Read the whole body, counting it while it arrives.

    Args:
        request: The request.
        settings: Hold the limits.

    Raises:
        ApiError: It is compressed, too large or too slow.
        ClientGoneError: The client left.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        # A small body could unpack to anything.
        raise ApiError(
            415, f"Content-Encoding '{encoding[:40]}' is refused. Send the body as it is."
        )
    limit = settings.max_body
    declared = request.headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > limit:
        raise _too_large(settings)
    chunks, size = [], 0
    try:
        async with asyncio.timeout(settings.body_timeout):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(settings)
                chunks.append(chunk)
    except TimeoutError as error:
        raise ApiError(
            408,
            f"The body did not arrive within {settings.body_timeout:g} s. Send it faster.",
            # What is still to come would be taken for the next request.
            headers={"Connection": "close"},
        ) from error
    except ClientDisconnect as error:
        raise ClientGoneError from error
    return b"".join(chunks)


def _too_large(settings: Settings) -> ApiError:
    return ApiError(
        413,
        f"The body is larger than {settings.max_body_mb:g} MiB, the limit of this server. "
        "Send a smaller file.",
    )


def unpack(body: bytes, media: MediaType) -> Upload:
    """Take the file out of a body.

    Args:
        body: All of it.
        media: What it claims to be.

    Raises:
        ApiError: It is of another type, malformed, or holds no file.
    """
    if media.name == "multipart/form-data":
        return _of_form(body, media.options.get(b"boundary", b""))
    if media.name == "application/json":
        return Upload(_of_json(body), None)
    is_video = _kind(media.name)
    if is_video is None and media.name != "application/octet-stream":
        given = (
            f"Content-Type is '{media.name[:80]}'." if media.name else "There is no Content-Type."
        )
        raise ApiError(415, f"{given} {_TAKES}")
    return _whole(body, is_video)


def _whole(data: bytes, is_video: bool | None) -> Upload:
    if not data:
        raise ApiError(400, f"The file is empty. {_TAKES}")
    return Upload(data, is_video)


def _kind(media: str) -> bool | None:
    if media.startswith("video/"):
        return True
    return False if media.startswith("image/") else None


def _of_json(body: bytes) -> bytes:
    values = json_object(body)
    text = values.get("data")
    unknown = ", ".join(repr(name)[:40] for name in values if name != "data")
    if unknown:
        raise ApiError(422, f"The JSON object has unknown keys: {unknown}. It takes 'data' alone.")
    if not isinstance(text, str):
        raise ApiError(422, "The JSON object needs 'data', a string: the file in base64.")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            400, f"'data' is not base64 ({error}). Leave out line breaks and any `data:` prefix."
        ) from error
    return _whole(data, None).data


def json_object(body: bytes) -> dict[str, Any]:
    """Parse a body that is one JSON object.

    Args:
        body: Its bytes.

    Raises:
        ApiError: It is not.
    """
    try:
        values = parse_json(body)
    except ValueError as error:
        raise ApiError(400, f"The body is not valid JSON ({str(error)[:200]}).") from error
    if not isinstance(values, dict):
        raise ApiError(422, f"The body is a JSON {type(values).__name__}, not an object.")
    return values


class _Form:
    """Collects the parts of a form; only the file's bytes are kept."""

    def __init__(self) -> None:
        self.files: list[tuple[bytearray, str]] = []
        self.names: list[str] = []
        self.ended = False
        self._name = bytearray()
        self._value = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._data: bytearray | None = None

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._place,
            "on_part_data": self._take,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.names) >= _MOST_PARTS:
            raise ApiError(400, f"The form has more than {_MOST_PARTS} parts. Send one file.")
        self._headers, self._data = {}, None

    def _header(self) -> None:
        self._headers[bytes(self._name).lower()] = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _place(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        self.names.append(name)
        if name == FIELD:
            media, _ = parse_options_header(self._headers.get(b"content-type", b""))
            self._data = bytearray()
            self.files.append((self._data, media.decode("latin-1").strip().lower()))

    def _take(self, data: bytes, start: int, end: int) -> None:
        if self._data is not None:
            self._data += data[start:end]

    def _end(self) -> None:
        self.ended = True


def _of_form(body: bytes, boundary: bytes) -> Upload:
    if not boundary:
        raise ApiError(400, "The Content-Type multipart/form-data names no boundary.")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks(), max_header_count=_MOST_HEADERS)
        parser.write(body)
        parser.finalize()
    except (FormParserError, ValueError) as error:
        raise ApiError(400, f"The multipart form is malformed ({str(error)[:200]}).") from error
    if not form.ended:
        raise ApiError(400, "The multipart form ends before its last boundary. Send all of it.")
    if len(form.files) != 1:
        fields = ", ".join(repr(name[:40]) for name in form.names) or "none"
        raise ApiError(
            400,
            f"The form has {len(form.files)} fields '{FIELD}', not one. Its fields: {fields}.",
        )
    data, media = form.files[0]
    return _whole(bytes(data), _kind(media))


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    # Older versions of Pillow lack AVIF, and refuse names that they do not know.
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_picture(data: bytes, max_pixels: int) -> Pixels:
    """Open an image that is of a known format and not too large.

    Args:
        data: The bytes of a file.
        max_pixels: Of the largest image.

    Raises:
        ApiError: As of `check_pixels`.
        ImageError: It is damaged.
    """
    check_pixels(data, max_pixels)
    # Of the same formats: others might see another picture in the same bytes, and a larger one.
    return open_image(data, formats=_formats())


def check_pixels(data: bytes, max_pixels: int) -> None:
    """Refuse an image that is too large, from its header alone, or that is of a format not taken.

    Args:
        data: The bytes of a file.
        max_pixels: Of the largest image.

    Raises:
        ApiError: It has more pixels, more scans, is damaged at its start, or is no image of a known format.
    """
    if data.startswith(b"\xff\xd8"):
        _check_segments(data)
    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise ApiError(
            413, f"The image has far more than {max_pixels} pixels, the limit. Make it smaller."
        ) from error
    except UnidentifiedImageError as error:
        raise ApiError(
            400,
            f"The {len(data)} bytes are no image, damaged at their start, or of a format that is "
            f"not taken. Formats: {', '.join(_formats())}.",
            "bad_image",
        ) from error
    except _DAMAGE as error:
        raise ApiError(
            400,
            f"The image is damaged at its start ({str(error)[:200]}). Send it again.",
            "bad_image",
        ) from error
    if max(width, height) > _LONGEST_SIDE:
        raise ApiError(
            413,
            f"The image has {width}x{height} pixels; the limit of a side is {_LONGEST_SIDE} pixels. "
            "Cut it.",
        )
    if width * height > max_pixels:
        raise ApiError(
            413,
            f"The image has {width}x{height} pixels; the limit is {max_pixels} pixels. "
            "Make it smaller.",
        )


def _check_segments(data: bytes) -> None:
    """Refuse a JPEG that says little in many pieces: each costs, whatever it holds."""
    at, scans = 2, 0
    for _ in range(_MOST_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None or marker[0] == _END:
            return
        scans += marker[0] == _SCAN
        if scans > _MOST_SCANS:
            break
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    raise ApiError(
        413,
        f"The JPEG has more than {_MOST_SCANS} scans or {_MOST_SEGMENTS} segments. Save it anew.",
    )

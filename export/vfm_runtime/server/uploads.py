"""Uploads: bodies read up to the limits of size and time, and the file in a form, in JSON or in the body itself."""

import asyncio
import base64
import binascii
import io
import re
from collections.abc import AsyncGenerator
from functools import cache
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.types import Message, Receive

from vfm_runtime.bundle.contract import parse_json
from vfm_runtime.errors import format_value
from vfm_runtime.media.bit_depth import ValueRange
from vfm_runtime.media.image import DAMAGE, Pixels, open_image
from vfm_runtime.server.errors import ApiError
from vfm_runtime.server.service import get_service
from vfm_runtime.server.settings import Settings

FIELD = "file"
"""Name of the field of a form that holds the file."""

_GROUP_FIELD = "group"

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Pillow's names of the formats that are opened; others of it call programs or are rarely tested."""

_TAKES = (
    "Send multipart/form-data with the field 'file', or the bytes of the file as image/*, video/* "
    'or application/octet-stream, or JSON {"data": "<base64>"}.'
)
_MAX_PARTS = 32
# A scan of a JPEG may be a few bytes, and goes over all pixels. Programs write 10 or so.
_MAX_SCANS, _MAX_SEGMENTS = 100, 5000
# No JPEG is longer; a line of millions of pixels is more than resizing can take.
_MAX_SIDE = 65_535
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
_SCAN, _END = b"\xff\xda", b"\xff\xd9"


class LimitedReceive:
    """The `receive` of ASGI: counts a body in `size` while it arrives, and refuses a large or a slow one."""

    def __init__(self, receive: Receive, headers: Headers, settings: Settings) -> None:
        self.size = 0
        self._receive = receive
        self._headers = headers
        self._settings = settings
        self._deadline: float | None = None
        self._is_whole = False

    async def __call__(self) -> Message:
        """Return the next message, or raise an ApiError about the body."""
        if self._is_whole:
            return await self._receive()  # waits for the client to leave
        if self._deadline is None:
            self._check_head()
            self._deadline = asyncio.get_running_loop().time() + self._settings.body_timeout
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise ApiError(
                408,
                f"The body did not arrive within {self._settings.body_timeout:g} s. Send it faster.",
                # What is still to come would be taken for the next request.
                headers={"Connection": "close"},
            ) from error
        self.size += len(message.get("body", b""))
        self._check_size(self.size)
        self._is_whole = not message.get("more_body", False)
        return message

    def _check_head(self) -> None:
        encoding = self._headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            # A small body could unpack to anything.
            raise ApiError(
                415, f"Content-Encoding '{encoding[:40]}' is refused. Send the body as it is."
            )
        length = self._headers.get("content-length", "0")
        if length.isascii() and length.isdigit():
            self._check_size(int(length[:20]))

    def _check_size(self, size: int) -> None:
        if size > self._settings.max_body:
            raise ApiError(
                413,
                f"The body is larger than {self._settings.max_body_mb:g} MiB, the limit of this server. "
                "Send a smaller file.",
            )


class Upload(NamedTuple):
    """One file that was sent."""

    data: bytes
    is_video: bool | None
    """What the client says of it; None where it says nothing."""
    name: str = ""
    """Name of the file without folders, where the client says it."""
    group: str | None = None
    """Group of the image, by a field of the form or a key of the JSON; None where none is said, or none is taken."""


async def read_upload(request: Request, *, takes_group: bool = False) -> Upload:
    """Read a body and take the file out of it, and where the route takes one the group of the image.

    Raises:
        ApiError: It is of another type, malformed, or holds no file; or as of `LimitedReceive`.
    """
    return (await read_uploads(request, most=1, takes_group=takes_group))[0]


async def read_uploads(
    request: Request, most: int = _MAX_PARTS, *, takes_group: bool = False
) -> list[Upload]:
    """Read a body and take the files out of it: one, or of a form up to `most`; errors are those of `read_upload`."""
    media_type = _parse_media_type(request.headers.get("content-type", ""))
    if media_type == "multipart/form-data":
        return await _read_form(request, most, takes_group)
    if media_type == "application/json":
        body = await request.body()
        return [await get_service(request).run_in_thread(_decode_json, body, takes_group)]
    is_video = _is_video(media_type)
    if is_video is None and media_type != "application/octet-stream":
        what = (
            f"Content-Type is '{media_type[:80]}'." if media_type else "There is no Content-Type."
        )
        raise ApiError(415, f"{what} {_TAKES}")
    return [_check_file(Upload(await request.body(), is_video))]


def _parse_media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _is_video(media_type: str) -> bool | None:
    if media_type.startswith("video/"):
        return True
    return False if media_type.startswith("image/") else None


def _check_file(upload: Upload) -> Upload:
    if not upload.data:
        raise ApiError(400, f"The file is empty. {_TAKES}")
    return upload


def _decode_json(body: bytes, takes_group: bool) -> Upload:
    values = read_json_object(body)
    text, group = values.get("data"), values.get("group")
    keys = ("data", "group") if takes_group else ("data",)
    unknown = ", ".join(repr(name)[:40] for name in values if name not in keys)
    if unknown:
        takes = "'data', and maybe 'group'" if takes_group else "'data' alone"
        raise ApiError(422, f"The JSON object has unknown keys: {unknown}. It takes {takes}.")
    if not (group is None or isinstance(group, str)):
        raise ApiError(422, f"'group' is {format_value(group)}. Give a string, or leave it out.")
    if not isinstance(text, str):
        raise ApiError(422, "The JSON object needs 'data', a string: the file in base64.")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            400, f"'data' is not base64 ({error}). Leave out line breaks and any `data:` prefix."
        ) from error
    return _check_file(Upload(data, None, group=group))


def read_json_object(body: bytes) -> dict[str, Any]:
    """Parse a body that is one JSON object.

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


class _FormParser(MultiPartParser):
    """The parser of `request.form`, which keeps files in memory and knows whether the form has ended."""

    spool_max_size = 2**40
    has_ended = False
    num_parts = 0

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self.num_parts += 1
        if self.num_parts > _MAX_PARTS:
            raise MultiPartException(f"it has more than {_MAX_PARTS} parts")

    def on_headers_finished(self) -> None:
        # With a filename every part is a file: its bytes are not decoded, and its own headers are kept.
        options = (self._current_part.content_disposition or b"").partition(b";")[2]
        self._current_part.content_disposition = b'form-data; filename="";' + options
        super().on_headers_finished()

    def on_end(self) -> None:
        self.has_ended = True


async def _read_form(request: Request, most: int, takes_group: bool) -> list[Upload]:
    chunks = request.stream()
    assert isinstance(chunks, AsyncGenerator)
    # Names of fields are UTF-8, whatever the client says.
    headers = Headers({"content-type": f"{request.headers['content-type']}; charset=utf-8"})
    parser = _FormParser(headers, chunks)
    try:
        form = await parser.parse()
    except (
        MultiPartException,
        ValueError,
    ) as error:  # older versions let errors of the parser through
        cause = str(error.__cause__ or error)[:200]
        raise ApiError(
            400,
            f"The multipart form is malformed ({cause}). Send one file in the field '{FIELD}'.",
        ) from error
    if not parser.has_ended:
        raise ApiError(400, "The multipart form ends before its last boundary. Send all of it.")
    files = form.getlist(FIELD)
    if not 1 <= len(files) <= most:
        names = ", ".join(repr(name[:40]) for name, _ in form.multi_items()) or "none"
        raise ApiError(
            400,
            f"The form has {len(files)} fields '{FIELD}', not {'one' if most == 1 else f'1 to {most}'}. Its fields: "
            f"{names}.",
        )
    groups = form.getlist(_GROUP_FIELD) if takes_group else []
    if len(groups) > 1:
        raise ApiError(
            400, f"The form has {len(groups)} fields '{_GROUP_FIELD}'. Send one, or none."
        )
    group = None
    for field in groups:
        assert isinstance(field, UploadFile)
        try:
            group = (await field.read()).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ApiError(
                400, f"The field '{_GROUP_FIELD}' is not UTF-8. Send it as such."
            ) from error
    uploads = []
    for file in files:
        assert isinstance(file, UploadFile)
        is_video = _is_video(_parse_media_type(file.content_type or ""))
        name = re.split(r"[/\\]", file.filename or "")[-1][:200]
        name = name if name.isprintable() else ""
        uploads.append(_check_file(Upload(await file.read(), is_video, name, group)))
    return uploads


@cache
def list_formats() -> tuple[str, ...]:
    """List those of `FORMATS` that this Pillow has: older versions lack AVIF, and refuse unknown names."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def open_picture(data: bytes, value_range: ValueRange | None = None) -> Pixels:
    """Open the bytes of an image that `check_pixels` has let in, as uint8 [H, W, 3].

    Args:
        data: File that was sent.
        value_range: Black and white of values of more than 8 bits, as of the model.

    Raises:
        ImageError: It is damaged.
    """
    # Of the formats that were checked: others might see another picture in the same bytes, and a larger one.
    return open_image(data, formats=list_formats(), value_range=value_range)


def check_pixels(data: bytes, max_pixels: int) -> tuple[int, int]:
    """Refuse the bytes of an image that is too large, by its header alone, or that is of a format not taken.

    Returns:
        Its height and width as stored.

    Raises:
        ApiError: It has more pixels, more scans, is damaged at its start, or is no image of a known format.
    """
    if data.startswith(b"\xff\xd8"):
        _check_segments(data)
    try:
        with Image.open(io.BytesIO(data), formats=list_formats()) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise ApiError(
            413, f"The image has far more than {max_pixels} pixels, the limit. Make it smaller."
        ) from error
    except DAMAGE as error:
        text = f"The image is damaged at its start ({str(error)[:200]}). Send it again."
        if isinstance(error, UnidentifiedImageError):
            text = (
                f"The {len(data)} bytes are no image, damaged at their start, or of a format that is "
                f"not taken. Formats: {', '.join(list_formats())}."
            )
        raise ApiError(400, text, "bad_image") from error
    size = f"The image has {width}x{height} pixels; the limit"
    if max(width, height) > _MAX_SIDE:
        raise ApiError(413, f"{size} of a side is {_MAX_SIDE} pixels. Cut it.")
    if width * height > max_pixels:
        raise ApiError(413, f"{size} is {max_pixels} pixels. Make it smaller.")
    return height, width


def _check_segments(data: bytes) -> None:
    """Refuse a JPEG that says little in many pieces: each costs, whatever it holds."""
    start, scans = 2, 0
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, start)
        if marker is None or marker[0] == _END:
            return
        scans += marker[0] == _SCAN
        if scans > _MAX_SCANS:
            break
        start = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    raise ApiError(
        413,
        f"The JPEG has more than {_MAX_SCANS} scans or {_MAX_SEGMENTS} segments. Save it anew.",
    )

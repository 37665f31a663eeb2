"""Files that are small to send and large to open: refused in time, without the memory that they ask for."""

import io
import json
import struct
import time
import warnings
import zlib

import pytest
from PIL import Image
from vfm_runtime.media.video import VideoError, VideoLimits, read_video

from tests.runtime import videos
from tests.runtime.server.live import PATIENCE_S, Live, code_of

pytestmark = pytest.mark.slow

MIB = 2**20
JPEG, VIDEO = "image/jpeg", "video/mp4"


@pytest.fixture(scope="module")
def live(settings_for):
    server = Live(settings_for("toy", "fake", reload_every=0))
    yield server
    assert server.ask("/v2/health/ready")[0] == 200
    server.stop()


def predict(live, content, kind="application/octet-stream", model="toy", **headers):
    return live.ask(f"/predict?model={model}", content, kind, **headers)


# Small files that are large inside.


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, rows, *, more=b"", depth=1):
    """A grey PNG; `rows` are its pixels, packed."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0))
    parts = (header, more, chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def zeros(number):
    """Zeros that are packed, without ever holding them all."""
    packer, piece = zlib.compressobj(9), bytes(MIB)
    parts = [packer.compress(piece) for _ in range(number // MIB)]
    return b"".join([*parts, packer.compress(bytes(number % MIB)), packer.flush()])


def memory():
    """Bytes that this process holds at most, since it began."""
    status = open("/proc/self/status").read()  # noqa: SIM115, PTH123
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize("model", ["toy", "fake"])
def test_a_whole_png_of_30000_by_30000(live, model):
    content = png(30_000, 30_000, zeros(30_000 * 3751))
    assert len(content) < MIB
    before = memory()
    answer = predict(live, content, "image/png", model)
    assert code_of(answer) == (413, "too_large")
    assert memory() - before < 200 * MIB


@pytest.mark.parametrize("model", ["toy", "fake"])
@pytest.mark.parametrize("size", [(1, 1), (1, 65_535), (65_535, 1), (65_536, 1), (20_000_000, 1)])
def test_thin_pictures(live, model, size):
    width, height = size
    rows = b"".join(bytes(1 + (width + 7) // 8) for _ in range(height))
    answer = predict(live, png(width, height, zlib.compress(rows)), "image/png", model)
    if max(size) > 65_535:
        assert code_of(answer) == (413, "too_large")
        assert b"the limit of a side is 65535 pixels" in answer[2]
    else:
        assert answer[0] == 200


def webp_of(width, height):
    """The head of a lossless WebP."""
    size = struct.pack("<I", (width - 1) | (height - 1) << 14)
    data = b"\x2f" + size + bytes(20)
    return b"RIFF" + struct.pack("<I", len(data) + 12) + b"WEBPVP8L" + struct.pack("<I", 25) + data


def gif_of(width, height):
    """One picture of this size on a screen of one pixel."""
    file = io.BytesIO()
    Image.new("P", (1, 1)).save(file, "GIF")
    content = bytearray(file.getvalue())
    at = content.index(b"\x2c\0\0\0\0") + 5
    content[at : at + 4] = struct.pack("<HH", width, height)
    return bytes(content)


def progressive(side, scans):
    """A JPEG whose last scan comes again and again: little to send, much to decode."""
    file = io.BytesIO()
    Image.new("L", (side, side), 128).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * scans + b"\xff\xd9"


BOMBS = {
    "text": png(9, 9, zeros(27), more=chunk(b"zTXt", b"a\0\0" + zeros(300 * MIB))),
    "profile": png(9, 9, zeros(27), more=chunk(b"iCCP", b"a\0\0" + zeros(300 * MIB))),
    "more rows than it has": png(9, 9, zeros(300 * MIB)),
    "webp": webp_of(16_383, 16_383),
    "gif": gif_of(65_535, 65_535),
    "scans": progressive(4000, 20_000),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs(live, name):
    before, start = memory(), time.monotonic()
    answer = predict(live, BOMBS[name], "image/*")
    if answer[0] != 200:
        assert code_of(answer) in {(400, "bad_image"), (413, "too_large")}
    assert time.monotonic() - start < 60
    assert memory() - before < 200 * MIB


def two_pictures():
    """A TIFF of one pixel; a reader of another format, asked first, would see one of 13000 x 13000."""
    start = b"II*\0" + (512).to_bytes(4, "little")
    other = b": x\nImage size (x*y): 13000*13000\nImage type: 0 1 image\n\x1a"
    tags = ((256, 1), (257, 1), (258, 8), (262, 1), (273, 511), (278, 1), (279, 1))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return (start + other).ljust(512, b"\0") + struct.pack("<H", 7) + entries + bytes(4)


def test_a_file_that_is_of_two_formats(live):
    content = two_pictures()
    Image.init()
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(content)) as image:
        assert image.size == (13_000, 13_000)
    status, _, body = predict(live, content)
    assert status == 200
    assert json.loads(body)["width"] == 1


def test_a_body_that_is_packed(live):
    content = zeros(300 * MIB)
    answer = predict(live, content, JPEG, Content_Encoding="gzip")
    assert code_of(answer) == (415, "unsupported_media_type")


# Videos without end.


def box(data, kind):
    """Where the body of a box begins, and where it ends."""
    at = data.index(kind)
    return at + 4, at - 4 + int.from_bytes(data[at - 4 : at], "big")


def with_index(content, count):
    """An MP4 whose index claims so many frames, in the few bytes that a claim takes."""
    data = bytearray(content)
    for kind, body in (
        (b"stsz", struct.pack(">III", 0, 1, count)),
        (b"stts", struct.pack(">IIII", 0, 1, count, 1)),
        (b"stsc", struct.pack(">IIIII", 0, 1, 1, count, 1)),
    ):
        start, end = box(data, kind)
        # What is left over becomes a box that nobody reads.
        rest = end - start - len(body)
        assert rest >= 8 or not rest
        data[start - 8 : start - 4] = struct.pack(">I", len(body) + 8)
        free = struct.pack(">I4s", rest, b"free") + bytes(rest - 8) if rest else b""
        data[start:end] = body + free
    return bytes(data)


def long_video():
    """An hour that is told, by a clip of sixty frames."""
    # Without the list of cuts, which tells a shorter one.
    data = bytearray(videos.write(videos.PICTURES).replace(b"elst", b"free"))
    start, _ = box(data, b"stts")
    number = int.from_bytes(data[start + 4 : start + 8], "big")
    for entry in range(number):
        at = start + 12 + 8 * entry
        data[at : at + 4] = struct.pack(">I", 512 * 25 * 60)
    return bytes(data)


def test_videos_that_claim_hours(live):
    answer = predict(live, long_video(), VIDEO, "fake")
    assert code_of(answer) == (400, "bad_image")
    assert b"the limit is 600 s" in answer[2]


@pytest.mark.parametrize("count", [10**6, 2**31 - 1])
def test_a_video_whose_index_is_a_bomb(live, count):
    content = with_index(videos.write(videos.PICTURES), count)
    before, start = memory(), time.monotonic()
    answer = predict(live, content, VIDEO, "fake")
    assert code_of(answer) == (400, "bad_image")
    assert time.monotonic() - start < 60
    assert memory() - before < 200 * MIB


CLAIMS = {
    "1000060 frames": lambda data: with_index(data, 10**6) + moof(60),
    "60 frames, 1000 times": lambda data: with_cuts(data, 1000),
    "is packed": lambda data: data.replace(b"udta", b"cmov"),
}


def moof(count):
    """A fragment that claims so many frames."""
    run = struct.pack(">I4sII", 16, b"trun", 0, count)
    track = struct.pack(">I4s", len(run) + 8, b"traf") + run
    return struct.pack(">I4s", len(track) + 8, b"moof") + track


def with_cuts(content, count):
    data = bytearray(content)
    start, _ = box(data, b"elst")
    data[start + 4 : start + 8] = struct.pack(">I", count)
    return bytes(data)


@pytest.mark.parametrize("said", CLAIMS)
def test_what_an_index_claims(said):
    with pytest.raises(VideoError, match=f"its index (claims )?{said}"):
        read_video(CLAIMS[said](videos.write(videos.PICTURES)))


def test_frames_are_counted_before_they_are_decoded(mp4):
    with pytest.raises(VideoError, match="it has more than 59 frames, the limit"):
        read_video(mp4, 4, VideoLimits(max_frames=59))


def test_a_stream_of_more_frames_than_are_taken(live):
    """The same clip again and again, as a camera sends it that nobody has stopped."""
    part = videos.write(videos.PICTURES[:25], "mpegts", "mpeg2video")
    start = time.monotonic()
    answer = predict(live, part * 1500, VIDEO, "fake")
    assert code_of(answer) == (413, "too_large")
    assert b"The video has 37500 frames" in answer[2]
    assert time.monotonic() - start < PATIENCE_S


def test_a_video_that_takes_too_long(live, mp4):
    start = time.monotonic()
    answer = predict(live, mp4, VIDEO, "fake", X_Timeout_Ms="5")
    assert code_of(answer) == (504, "deadline")
    assert time.monotonic() - start < 60

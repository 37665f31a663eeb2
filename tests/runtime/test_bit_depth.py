"""Values of more than 8 bits, and fourth bands that are no alpha."""

import io
import itertools
import logging
import struct
import zlib

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image
from vfm_runtime.media import image as image_module
from vfm_runtime.media.bit_depth import make_range, scale_values
from vfm_runtime.media.image import ImageError, open_image, read_size

TWELVE = make_range(12)
COLORS = (1000, 2000, 4095)
SCALED = [62, 125, 255]  # of 4095
UPPER = [3, 7, 15]  # the upper bytes
LAYOUTS = {
    "pixels": {},
    "zlib": {"compression": "zlib"},
    "predictor": {"compression": "zlib", "predictor": True},
    "tiles": {"tile": (16, 16)},
    "planes": {"planarconfig": "separate"},
}


@pytest.fixture(autouse=True)
def warnings_anew(monkeypatch):
    monkeypatch.setattr(image_module, "_warned", set())


def write_tiff(array, **options):
    file = io.BytesIO()
    if options.get("planarconfig") == "separate":
        array = np.ascontiguousarray(array.transpose(2, 0, 1))
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def fill(values, shape=(20, 30), dtype=np.uint16):
    return np.broadcast_to(np.array(values, dtype), (*shape, len(values))).copy()


def write_png(array, *, color_type):
    """A PNG of 16 bits: 4 is gray with alpha."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    height, width = array.shape[:2]
    head = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def the_color(pixels):
    assert (pixels == pixels[0, 0]).all()
    return pixels[0, 0].tolist()


@pytest.mark.parametrize(
    ("layout", "order", "fourth"),
    itertools.product(LAYOUTS, "<>", [None, "unassalpha", "assocalpha", "unspecified"]),
)
def test_colors_of_16_bits_are_read_in_all_their_bits(layout, order, fourth):
    array = fill(COLORS)
    options = {"photometric": "rgb", "byteorder": order, **LAYOUTS[layout]}
    if fourth is not None:
        band = np.random.default_rng(0).integers(300, 30000, array.shape[:2], dtype=np.uint16)
        array = np.dstack([array, band])
        options["extrasamples"] = [fourth]
    file = write_tiff(array, **options)
    assert the_color(open_image(file)) == UPPER
    assert the_color(open_image(file, value_range=TWELVE)) == SCALED


def test_png_of_16_bits():
    file = cv2.imencode(".png", fill(COLORS[::-1]))[1].tobytes()
    assert the_color(open_image(file)) == UPPER
    assert the_color(open_image(file, value_range=TWELVE)) == SCALED
    gray = fill([2000, 65535])
    gray[10:, :, 1] = 0  # transparent
    pixels = open_image(write_png(gray, color_type=4), value_range=TWELVE)
    assert pixels[[0, 19], 0].tolist() == [[125] * 3, [255] * 3]


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.int32, np.float32])
def test_gray_of_more_bits(dtype):
    array = np.full((4, 4), 1000, dtype)
    array[2:] = 1100
    pixels = open_image(write_tiff(array), value_range=TWELVE)
    assert pixels[[0, 2], 0, 0].tolist() == [62, 68]
    assert np.array_equal(open_image(array, value_range=TWELVE), pixels)


def test_more_than_16_bits():
    file = write_tiff(np.full((4, 4), 2**20 - 1, np.uint32))
    with pytest.raises(
        ImageError, match=r"go from 1\.04858e\+06 to .*outside the range 0 to 65535"
    ):
        open_image(file)
    assert the_color(open_image(file, value_range=make_range(20))) == [255] * 3


def test_values_outside_of_the_range_are_refused():
    for content in (np.full((4, 4), 5000, np.uint16), fill((5000, 0, 0))):
        with pytest.raises(ImageError, match=r"5000, outside the range 0 to 4095. Say how many"):
            open_image(write_tiff(content), value_range=TWELVE)
    with pytest.raises(ImageError, match="nan to nan, outside"):
        open_image(np.full((4, 4), np.nan, np.float32), value_range=TWELVE)
    planes = write_tiff(
        fill(COLORS), photometric="rgb", planarconfig="separate", compression="zlib"
    )
    with pytest.raises(ImageError, match=r"compressed planes.*INTERLEAVE=PIXEL"):
        open_image(planes, value_range=TWELVE)


def test_8_bits_are_left_alone():
    array = fill((10, 100, 200), dtype=np.uint8)
    assert the_color(open_image(array, value_range=TWELVE)) == [10, 100, 200]
    assert the_color(open_image(write_tiff(array), value_range=TWELVE)) == [10, 100, 200]


def test_whole_range_is_exact():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = (values.astype(int) + 128) // 257
    assert np.array_equal(scale_values(values, (0, 65535)), expected)
    assert np.array_equal(scale_values(values.astype(np.int32), (0, 65535)), expected)


@pytest.mark.parametrize("kind", ["gray", "colors"])
def test_narrow_values_are_warned_of_once(kind, caplog, tmp_path):
    array = np.full((4, 4), 1000, np.uint16)
    array[2:] = 1100
    if kind == "colors":
        array = np.dstack([array] * 3)
    path = tmp_path / "scan.tif"
    path.write_bytes(write_tiff(array))
    with caplog.at_level(logging.WARNING):
        open_image(path)
        open_image(path)
    (message,) = caplog.messages
    assert message.startswith(f"{path}: its values go from 1000 to 1100; ")
    assert "(3 to 4 of 255). If they have 11 bits, train with --data.bit_depth 11" in message


def test_values_of_the_whole_range_are_not_warned_of(caplog):
    open_image(write_tiff(np.full((4, 4), 40000, np.uint16)))
    open_image(write_tiff(np.zeros((4, 4), np.uint16)))
    open_image(write_tiff(fill((40000, 0, 3))))
    assert not caplog.messages


@pytest.mark.parametrize("fourth", ["unassalpha", "assocalpha", "unspecified", None])
def test_infrared_is_no_alpha(fourth, caplog):
    array = fill((100, 110, 120, 0), dtype=np.uint8)
    array[..., 3] = np.random.default_rng(0).integers(20, 60, array.shape[:2])
    options = {} if fourth is None else {"extrasamples": [fourth]}
    pixels = open_image(write_tiff(array, photometric="rgb", **options))
    assert the_color(pixels) == [100, 110, 120]
    assert len(caplog.messages) == (fourth != "unspecified")
    assert all("it is left out" in message for message in caplog.messages)


def test_masks_of_tiff_files_are_alpha(caplog):
    array = fill((100, 110, 120, 255), dtype=np.uint8)
    array[:5, :, 3] = 0
    array[5, :, 3] = 128  # a soft edge
    pixels = open_image(write_tiff(array, photometric="rgb", extrasamples=["unassalpha"]))
    assert pixels[[0, 19], 0].tolist() == [[255] * 3, [100, 110, 120]]
    assert not caplog.messages


def test_alpha_of_png_files_is_alpha_and_said(caplog):
    file = io.BytesIO()
    Image.new("RGBA", (5, 4), (0, 0, 0, 128)).save(file, "PNG")
    assert the_color(open_image(file.getvalue())) == [127] * 3
    assert "it is laid over white as alpha" in caplog.text


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_of_a_turned_tiff(orientation, tmp_path):
    path = tmp_path / "a.tif"
    tag = (0x0112, "H", 1, orientation, True)
    tifffile.imwrite(path, np.zeros((20, 30, 3), np.uint8), photometric="rgb", extratags=[tag])
    with Image.open(path) as image:
        assert read_size(image, "a.tif") == open_image(path).shape[:2]


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_plain_tiff_files_are_read_as_they_are(mode, compression):
    """One band is not a plane of several, though its raw mode is one letter too."""
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5).convert(mode)
    file = io.BytesIO()
    picture.save(file, "TIFF", compression=compression)
    expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(open_image(file.getvalue()), expected)

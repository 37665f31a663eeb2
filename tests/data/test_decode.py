from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vfm_runtime.media.image import ImageError, open_image

from vfm.data.decode import Source
from vfm.data.detection.annotation import read_image_header

RNG = np.random.default_rng(0)


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without fine detail, so that all good ways of shrinking it agree."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    planes = [np.sin(5 * x + 2 * y), np.cos(4 * y), x * y]
    return np.stack([(p - p.min()) / np.ptp(p) * 255 for p in planes], -1).astype(np.uint8)


@pytest.fixture
def photo(tmp_path):
    def write(name="a.jpg", size=(300, 420), mode="RGB", **options):
        path = tmp_path / name
        Image.fromarray(smooth(*size)).convert(mode).save(path, **options)
        return str(path)

    return write


def test_whole_picture_is_that_of_evaluation(photo):
    path = photo(quality=95)
    source = Source.open(path)
    assert (source.height, source.width) == (300, 420)
    difference = source.decode().astype(int) - open_image(path)
    assert np.abs(difference).max() <= 6  # the faster arithmetic


@pytest.mark.parametrize(
    ("scale", "factor"),
    [(1.0, 1), (0.51, 1), (0.5, 2), (0.26, 2), (0.25, 4), (0.125, 8), (0.01, 8)],
)
def test_scale_is_a_power_of_two_that_is_enough(photo, scale, factor):
    pixels = Source.open(photo()).decode(scale)
    assert pixels.shape == (-(-300 // factor), -(-420 // factor), 3)
    expected = Image.fromarray(smooth(300, 420)).resize(pixels.shape[1::-1], Image.Resampling.BOX)
    assert np.abs(pixels.astype(int) - np.asarray(expected)).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(photo, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = photo(exif=exif, quality=95)
    upright = open_image(path)
    source = Source.open(path)
    assert (source.height, source.width) == upright.shape[:2]
    assert np.abs(source.decode().astype(int) - upright).max() <= 6
    half = source.decode(0.5)
    assert half.shape == (upright.shape[0] // 2, upright.shape[1] // 2, 3)
    assert np.abs(half[0, 0].astype(int) - upright[0, 0]).max() < 12


@pytest.mark.parametrize(
    ("name", "mode"), [("a.png", "RGB"), ("a.png", "L"), ("a.jpg", "L"), ("a.jpg", "CMYK")]
)
def test_other_formats_and_modes_are_as_in_evaluation(photo, name, mode):
    path = photo(name, mode=mode)
    assert np.abs(Source.open(path).decode().astype(int) - open_image(path)).max() <= 6


def test_array(photo):
    image = smooth(20, 30)
    assert np.array_equal(Source.open(image).decode(0.1), image)
    assert Source.open(image[:, :, 0]).decode().shape == (20, 30, 3)


def test_cut_file_is_refused_as_in_evaluation(photo, tmp_path):
    path = tmp_path / "a.jpg"
    photo("a.jpg")
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ImageError, match="truncated"):
        open_image(path)
    with pytest.raises(ImageError, match="truncated"):
        Source.open(str(path)).decode(0.5)


def test_file_that_is_no_jpeg_after_all(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8\xff" + bytes(100))
    with pytest.raises(ImageError):
        Source.open(str(path))


def test_too_many_pixels_go_the_way_of_evaluation(photo, monkeypatch):
    path = photo()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match="more pixels than is safe"):
        Source.open(path)


def write_xmp(orientation):
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="{orientation}"/></x:xmpmeta>'
    return b"http://ns.adobe.com/xap/1.0/\0" + text.encode()


@pytest.mark.parametrize("place", ["xmp", "behind"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_wherever_the_file_says_it(photo, place, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = Path(photo(quality=95))
    segments = [(0xE1, write_xmp(orientation))]
    if place == "behind":  # EXIF behind 64 KiB of other segments
        segments = [(0xE2, b"filler" * 10000)] * 2 + [(0xE1, exif.tobytes())]
    head = b"".join(
        bytes([0xFF, kind]) + (len(content) + 2).to_bytes(2, "big") + content
        for kind, content in segments
    )
    content = path.read_bytes()
    path.write_bytes(content[:2] + head + content[2:])
    upright = open_image(path)
    assert upright.shape[:2] == ((420, 300) if orientation > 4 else (300, 420))
    source = Source.open(str(path))
    assert (source.height, source.width) == upright.shape[:2]
    assert np.abs(source.decode().astype(int) - upright).max() <= 6
    assert read_image_header(path).size == upright.shape[:2]

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from skimage import data
from sklearn.datasets import load_sample_image
from vfm_runtime.media.files import find_images
from vfm_runtime.media.image import IMAGE_SUFFIXES, ImageError, open_image

PHOTO = data.astronaut()[40:104, 180:276]  # 64 x 96


def encode(image, fmt="PNG", **options):
    file = io.BytesIO()
    image.save(file, fmt, **options)
    return file.getvalue()


def photo(mode="RGB"):
    return Image.fromarray(PHOTO).convert(mode)


def solid(mode, colour, size=(5, 4)):
    return Image.new(mode, size, colour)


def pixel(source):
    array = open_image(source)
    assert (array == array[0, 0]).all()
    return tuple(array[0, 0].tolist())


@pytest.mark.parametrize("fmt", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_give_the_pixels_back(fmt):
    array = open_image(encode(photo(), fmt))
    assert array.dtype == np.uint8
    assert array.flags.c_contiguous
    assert array.flags.writeable
    np.testing.assert_array_equal(array, PHOTO)


@pytest.mark.parametrize("fmt", ["JPEG", "WEBP", "AVIF", "JPEG2000"])
def test_lossy_formats_are_near(fmt):
    array = open_image(encode(photo(), fmt))
    assert array.shape == PHOTO.shape
    assert np.abs(array.astype(int) - PHOTO).mean() < 12


def test_sources_agree(tmp_path):
    path = tmp_path / "photo.png"
    path.write_bytes(encode(photo()))
    content = path.read_bytes()
    sources = [path, str(path), content, bytearray(content), memoryview(content), photo(), PHOTO]
    for source in sources:
        np.testing.assert_array_equal(open_image(source), PHOTO)


def test_real_photo(tmp_path):
    china = load_sample_image("china.jpg")
    Image.fromarray(china).save(tmp_path / "china.JPG", quality=95)
    array = open_image(tmp_path / "china.JPG")
    assert array.shape == china.shape
    assert np.abs(array.astype(int) - china).mean() < 3


TURNS = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
@pytest.mark.parametrize("turn", TURNS)
def test_exif_orientation(fmt, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    array = open_image(encode(photo(), fmt, exif=exif))
    np.testing.assert_array_equal(array, TURNS[turn](PHOTO))


def test_exif_orientation_of_pillow_images_and_odd_values():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encode(photo(), exif=exif)))
    np.testing.assert_array_equal(open_image(image), np.rot90(PHOTO, -1))
    exif[0x0112] = 9
    np.testing.assert_array_equal(open_image(encode(photo(), exif=exif)), PHOTO)


def test_damaged_exif_is_said_and_the_photo_opens(caplog, monkeypatch):
    def broken(self):
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    np.testing.assert_array_equal(open_image(encode(photo())), PHOTO)
    assert "its EXIF is damaged" in caplog.text


def lab(colour):
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    return ImageCms.applyTransform(solid("RGB", colour), to_lab)


def grey16(value, order="<"):
    return Image.fromarray(np.full((4, 5), value, f"{order}u2"))


def palette(colour, **info):
    image = solid("P", 3)
    image.putpalette([0, 0, 0] * 3 + list(colour))
    image.info.update(info)
    return image


MODES = {
    "1 white": (solid("1", 1), (255, 255, 255)),
    "1 black": (solid("1", 0), (0, 0, 0)),
    "L": (solid("L", 77), (77, 77, 77)),
    "P": (palette((10, 200, 30)), (10, 200, 30)),
    "P transparent": (palette((10, 200, 30), transparency=3), (255, 255, 255)),
    "CMYK": (solid("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
    "HSV": (solid("HSV", (0, 255, 255)), (255, 0, 0)),
    "YCbCr": (solid("YCbCr", (128, 128, 128)), (128, 128, 128)),
    "RGBX": (solid("RGBX", (1, 2, 3, 0)), (1, 2, 3)),
    "RGBA opaque": (solid("RGBA", (1, 2, 3, 255)), (1, 2, 3)),
    "RGBA clear": (solid("RGBA", (1, 2, 3, 0)), (255, 255, 255)),
    "RGBA half": (solid("RGBA", (0, 0, 0, 128)), (127, 127, 127)),
    "RGBa": (solid("RGBA", (0, 0, 0, 128)).convert("RGBa"), (127, 127, 127)),
    "LA clear": (solid("LA", (9, 0)), (255, 255, 255)),
    "LA opaque": (solid("LA", (9, 255)), (9, 9, 9)),
    "PA clear": (palette((9, 9, 9)).convert("RGBA").convert("PA"), (9, 9, 9)),
    "I;16 white": (grey16(65535), (255, 255, 255)),
    "I;16 middle": (grey16(32768), (128, 128, 128)),
    "I;16 rounds up": (grey16(129), (1, 1, 1)),
    "I;16 rounds down": (grey16(128), (0, 0, 0)),
    "I;16B": (grey16(200 * 257, ">"), (200, 200, 200)),
    "I": (Image.fromarray(np.full((4, 5), 65535, "int32")), (255, 255, 255)),
}


@pytest.mark.parametrize("name", MODES)
def test_modes(name):
    image, expected = MODES[name]
    assert pixel(image) == expected


def test_lab():
    assert np.abs(np.subtract(pixel(lab((200, 30, 60))), (200, 30, 60))).max() <= 2


@pytest.mark.parametrize(
    ("image", "key", "expected"),
    [
        (solid("L", 7), 7, (255, 255, 255)),
        (solid("L", 7), 8, (7, 7, 7)),
        (solid("RGB", (7, 8, 9)), (7, 8, 9), (255, 255, 255)),
        (solid("RGB", (7, 8, 9)), (7, 8, 8), (7, 8, 9)),
        (solid("1", 0), 0, (255, 255, 255)),
        (grey16(514), 514, (255, 255, 255)),
        (grey16(514), 513, (2, 2, 2)),
        (palette((9, 8, 7)), b"\xff\xff\xff\x00", (255, 255, 255)),
        (palette((0, 0, 0)), b"\xff\xff\xff\x80", (127, 127, 127)),
    ],
)
def test_png_transparency_chunk(image, key, expected):
    assert pixel(encode(image, transparency=key)) == expected


@pytest.mark.parametrize("fmt", ["PNG", "TIFF"])
def test_16_bit_files(fmt):
    ramp = np.arange(0, 65536, 257, dtype="uint16").reshape(16, 16)
    array = open_image(encode(Image.fromarray(ramp), fmt))
    np.testing.assert_array_equal(array[..., 1].ravel(), np.arange(256))


def test_16_bit_pgm_opens_as_mode_i():
    content = b"P5 2 1 65535\n" + struct.pack(">2H", 65535, 257 * 9)
    assert Image.open(io.BytesIO(content)).mode.startswith("I")
    assert open_image(content)[0, :, 0].tolist() == [255, 9]


@pytest.mark.parametrize("fmt", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_animations(fmt):
    frames = [solid("RGB", colour, (16, 16)) for colour in ("red", "lime", "blue")]
    content = encode(frames[0], fmt, save_all=True, append_images=frames[1:])
    red, green, blue = open_image(content)[8, 8].tolist()
    assert red > 245
    assert max(green, blue) < 10


@pytest.mark.parametrize("size", [(1, 1), (20_000, 3), (3, 20_000)])
def test_extreme_sizes(size):
    assert open_image(encode(solid("RGB", "red", size))).shape == (size[1], size[0], 3)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (PHOTO[..., 0], np.repeat(PHOTO[..., :1], 3, axis=2)),
        (PHOTO[..., :1], np.repeat(PHOTO[..., :1], 3, axis=2)),
        (PHOTO, PHOTO),
        (PHOTO[::2, ::-1], PHOTO[::2, ::-1]),
        (np.dstack([PHOTO, np.full((64, 96), 255, "uint8")]), PHOTO),
        (np.dstack([PHOTO, np.zeros((64, 96), "uint8")]), np.full_like(PHOTO, 255)),
    ],
)
def test_arrays(array, expected):
    opened = open_image(array)
    np.testing.assert_array_equal(opened, expected)
    opened[0] = 0
    assert not np.shares_memory(opened, array)


BAD_ARRAYS = {
    "float": (np.zeros((4, 5, 3), "float32"), "float32, not uint8", "* 255).round()"),
    "int": (np.zeros((4, 5, 3), int), "int64, not uint8", "Give uint8"),
    "chw": (np.zeros((3, 40, 50), "uint8"), "last dimension is 50", "transpose(1, 2, 0)"),
    "two channels": (np.zeros((9, 5, 2), "uint8"), "last dimension is 2", "Give uint8"),
    "batch": (np.zeros((2, 4, 5, 3), "uint8"), "4 dimensions", "as a list"),
    "flat": (np.zeros(9, "uint8"), "1 dimensions", "Give uint8"),
    "no rows": (np.zeros((0, 5, 3), "uint8"), "no pixels", "Give uint8"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays(name):
    array, reason, remedy = BAD_ARRAYS[name]
    with pytest.raises(ImageError) as caught:
        open_image(array)
    assert str(list(array.shape)) in caught.value.source
    assert str(array.dtype) in caught.value.source
    assert reason in caught.value.reason
    assert remedy in str(caught.value)


def bomb():
    def chunk(kind, body):
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


BAD_FILES = {
    "empty": (b"", "the file is empty", "Copy or download"),
    "text": (b"hello, this is no image", "not an image", "Open it in a viewer"),
    "cut jpeg": (encode(photo(), "JPEG")[:-200], "damaged or truncated", "Copy or download"),
    "cut png": (encode(photo())[:2000], "damaged or truncated", "Copy or download"),
    "png without end": (encode(photo())[:-12], "end of the PNG is missing", "Copy or download"),
    "cut bmp": (encode(photo(), "BMP")[:2000], "damaged or truncated", "Copy or download"),
    "bomb": (bomb(), "more pixels than is safe", "make it smaller"),
    "float": (encode(photo().convert("F"), "TIFF"), "floating-point", "8-bit PNG"),
    "int32": (
        encode(Image.fromarray(np.full((4, 5), 70_000, "int32")), "TIFF"),
        "go from 70000 to 70000",
        "8-bit PNG",
    ),
    "negative": (encode(Image.new("I", (4, 4), -1), "TIFF"), "go from -1 to -1", "8-bit PNG"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name, tmp_path):
    content, reason, remedy = BAD_FILES[name]
    path = tmp_path / "bad one.png"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        open_image(path)
    assert caught.value.source == str(path)
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"{path}: ")
    assert remedy in str(caught.value)
    with pytest.raises(ImageError, match=f"image of {len(content)} bytes"):
        open_image(content)


@pytest.mark.parametrize(
    ("source", "reason", "remedy"),
    [
        ("missing.png", "no such file", "relative paths start at"),
        ("https://example.org/cat.png", "no such file", "Download it first"),
        (".", "a folder, not an image", "find_images"),
        ("x" * 5000, "too long for a path", "as bytes"),
        ("a\0b.png", "not readable", "Give a path"),
        (7, "not an image", "Give a path, the bytes"),
        (None, "not an image", "Give a path, the bytes"),
        (Image.new("RGB", (0, 5)), "no pixels (0x5)", "Leave it out"),
    ],
)
def test_bad_sources(source, reason, remedy):
    with pytest.raises(ImageError) as caught:
        open_image(source)
    assert reason in caught.value.reason
    assert remedy in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
def test_every_truncation_is_refused(fmt):
    content = encode(photo(), fmt)
    lengths = {*range(0, len(content), len(content) // 40), *range(len(content) - 12, len(content))}
    for length in sorted(lengths):
        with pytest.raises(ImageError):
            open_image(content[:length])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "JPEG2000"])
def test_random_damage_opens_or_raises_image_error(fmt):
    chance = random.Random(fmt)
    content = encode(photo(), fmt)
    refused = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 3, 20))):
            damaged[chance.randrange(min(len(damaged), 400))] = chance.randrange(256)
        try:
            array = open_image(bytes(damaged))
        except ImageError:
            refused += 1
        else:
            assert array.dtype == np.uint8
            assert array.shape[2:] == (3,)
    assert refused


def test_find_images(tmp_path):
    names = ["b.png", "a.JPG", "sub/c.tiff", "sub.png/d.webp", "Z.avif"]
    others = ["notes.txt", ".hidden.png", ".git/e.png", "__MACOSX/f.png", "sub/._c.png", "png"]
    for name in names + others:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["Z.avif", "a.JPG", "b.png", "sub/c.tiff", "sub.png/d.webp"]
    assert find_images(str(tmp_path / ".git")) == [tmp_path / ".git/e.png"]


def test_find_images_follows_links_but_in_no_circle(tmp_path):
    for name in ("far/a.png", "root/x/b.png", "root/y/c.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    (tmp_path / "root" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "x" / "self").symlink_to(tmp_path / "root" / "x")
    (tmp_path / "root" / "x" / "y").symlink_to(tmp_path / "root" / "y")
    found = [p.relative_to(tmp_path / "root").as_posix() for p in find_images(tmp_path / "root")]
    assert found == ["link/a.png", "x/b.png", "x/y/c.png", "y/c.png"]


def test_find_images_needs_a_folder(tmp_path):
    with pytest.raises(ImageError, match="not a folder"):
        find_images(tmp_path / "nowhere")


def test_every_suffix_is_one_that_pillow_reads():
    Image.init()
    for suffix in IMAGE_SUFFIXES:
        assert Image.registered_extensions()[suffix] in Image.OPEN

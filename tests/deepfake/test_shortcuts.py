"""Shortcuts in the data: metadata of files, the probe, and what it says."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from vfm_runtime.media.image import ImageError

from vfm.data import file_metadata as metadata
from vfm.data.file_metadata import estimate_jpeg_quality, read_metadata
from vfm.deepfake.data.record import DeepfakeDataError, Item
from vfm.deepfake.shortcuts.page import add_shortcuts, explain_names, explain_shortcuts
from vfm.deepfake.shortcuts.search import choose_files, find_shortcuts
from vfm.metrics.separation import measure_separation
from vfm.report import Page


def noise(random, width=32, height=24):
    return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def write(folder, label, number, *, suffix="jpg", side=(32, 24), **how):
    random = np.random.default_rng([number, label == "fake"])
    path = folder / label / f"{number:05d}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    noise(random, *side).save(path, **how)
    method = "" if label == "real" else "swap"
    return Item(str(path), label, f"{number:05d}", method=method, dataset="a")


def alike(folder, num=24):
    """Real and fake files of sizes and qualities drawn alike."""
    random = np.random.default_rng(7)
    made = []
    for number in range(num):
        for label in ("real", "fake"):
            side = (int(random.integers(24, 40)), int(random.integers(24, 40)))
            quality = int(random.integers(60, 96))
            made.append(write(folder, label, 2 * number + (label == "fake"), side=side, quality=quality))  # fmt: skip
    return made


def named(found, name):
    return next(feature for feature in found.features if feature.name == name)


# --- what a file says of itself ---


@pytest.mark.parametrize("quality", [1, 10, 25, 49, 50, 51, 75, 90, 96, 100])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_quality_of_a_jpeg_is_found_again(tmp_path, quality, mode):
    path = tmp_path / "a.jpg"
    noise(np.random.default_rng(0)).convert(mode).save(path, quality=quality)
    assert read_metadata(path)["jpeg_quality"] == quality


def test_foreign_tables_have_the_nearest_quality():
    buffer = io.BytesIO()
    noise(np.random.default_rng(0)).save(buffer, "JPEG", quality=80)
    with Image.open(buffer) as image:
        tables = {
            key: [step + (k % 2) for k, step in enumerate(steps)]
            for key, steps in image.quantization.items()
        }
    assert abs(estimate_jpeg_quality(tables) - 80) <= 5


@pytest.mark.parametrize(("given", "found"), [(0, "4:4:4"), (1, "4:2:2"), (2, "4:2:0")])
def test_the_subsampling_of_colours_is_read(tmp_path, given, found):
    path = tmp_path / "a.jpg"
    noise(np.random.default_rng(0)).save(path, subsampling=given)
    assert read_metadata(path)["chroma_subsampling"] == found


def test_a_still_says_size_format_and_name(tmp_path):
    path = tmp_path / "IMG 0012.PNG"
    exif = Image.Exif()
    exif[0x010F] = "camera"
    noise(np.random.default_rng(0), 40, 20).save(path, exif=exif)
    found = read_metadata(path)
    assert (found["width"], found["height"], found["aspect_ratio"]) == (40, 20, 2)
    assert (found["file_format"], found["colour_mode"], found["exif"]) == ("PNG", "RGB", 1)
    assert found["bytes_per_pixel"] == path.stat().st_size / 800
    assert "jpeg_quality" not in found
    assert (found["name_length"], found["name_digits"]) == (8, 0.5)
    assert (found["name_characters"], found["name_suffix"]) == ("digits upper space", ".PNG")


def test_no_pixel_is_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    noise(np.random.default_rng(0)).save(path)
    metadata._read_libjpeg_tables()

    def refuse(self):
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert read_metadata(path)["width"] == 32


def test_a_video_says_length_rate_and_codec(tmp_path):
    path = write_clip(tmp_path / "a.mp4", frames=24, fps=12)
    found = read_metadata(path)
    assert (found["width"], found["height"], found["codec"]) == (64, 48, "h264")
    assert (found["fps"], found["num_frames"], found["duration"]) == (12, 24, 2)
    assert found["bit_rate"] == 8 * path.stat().st_size / 2
    assert found["bytes_per_pixel"] == path.stat().st_size / (64 * 48 * 24)
    assert (found["sound"], found["pixel_format"]) == (0, "yuv420p")


@pytest.mark.parametrize(
    ("name", "reason"), [("a.jpg", "its header cannot be read"), ("a.mp4", "not a video, damaged")]
)
def test_a_damaged_file_is_named(tmp_path, name, reason):
    path = tmp_path / name
    path.write_bytes(b"not what the name says" * 9)
    with pytest.raises(ImageError, match=f"{name}: {reason}"):
        read_metadata(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ImageError, match=r"gone\.png: no such file\. Take it out of the data"):
        read_metadata(tmp_path / "gone.png")


def write_clip(path, *, frames=8, fps=10, crf=23):
    av = pytest.importorskip("av")
    random = np.random.default_rng(frames)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(frames):
            pixels = random.integers(0, 256, (48, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


# --- the probe ---


def test_a_number_that_says_nothing_is_near_a_half():
    random = np.random.default_rng(0)
    values = [float(v) for v in random.normal(size=400)]
    found = measure_separation({"x": values}, random.random(400) < 0.5, np.arange(400))
    assert 0.4 < found.auc < 0.6
    assert found.low < 0.5 < found.high
    assert found.level == "clear"


def test_a_fixed_value_amid_varying_ones_is_found():
    random = np.random.default_rng(0)
    positive = np.arange(200) % 2 == 0
    widths = [512.0 if fake else float(random.integers(300, 725)) for fake in positive]
    found = measure_separation({"width": widths}, positive, np.arange(200))
    assert found.auc > 0.95
    assert found.level == "red"


def test_missing_values_tell_too():
    positive = np.arange(100) % 2 == 0
    found = measure_separation(
        {"quality": [None if fake else 90.0 for fake in positive]}, positive, np.arange(100)
    )
    assert found.auc == 1


def test_what_only_groups_share_is_not_learned():
    """A value that names the group would tell the label if the group were on both sides of a fold."""
    groups = np.repeat(np.arange(12), 10)
    positive = groups % 2 == 0
    names = [f"group {group}" for group in groups]
    mixed = measure_separation({"name": names}, positive, np.arange(120))
    kept = measure_separation({"name": names}, positive, groups)
    assert mixed.auc > 0.99
    assert kept.auc < 0.6


def test_few_groups_give_wide_intervals_or_none():
    random = np.random.default_rng(0)
    values = [float(v) for v in random.normal(size=400)]
    positive = np.arange(400) % 2 == 0
    wide = measure_separation({"x": values}, positive, np.arange(400) // 20)
    narrow = measure_separation({"x": values}, positive, np.arange(400))
    assert wide.high - wide.low > 0
    assert narrow.high - narrow.low > 0
    assert measure_separation({"x": values}, positive, np.arange(400) % 4) is None


def test_the_seed_alone_decides():
    random = np.random.default_rng(1)
    values = [float(v) for v in random.normal(size=100)]
    positive = random.random(100) < 0.5
    once, again, other = (
        measure_separation({"x": values}, positive, np.arange(100), seed=seed) for seed in (0, 0, 1)
    )
    assert once == again
    assert once != other


# --- a data set ---


def test_trap_16_real_jpeg_and_fake_png_is_a_red_warning(tmp_path):
    items = [write(tmp_path, "real", n, quality=90) for n in range(20)]
    items += [write(tmp_path, "fake", n, suffix="png") for n in range(20)]
    found = find_shortcuts(items)
    assert found.warning
    assert found.seen.auc > 0.99
    assert named(found, "file_format").separation.auc == 1
    assert (named(found, "file_format").real, named(found, "file_format").fake) == (
        "JPEG (100%)",
        "PNG (100%)",
    )
    assert explain_shortcuts(found).startswith("RED WARNING: the files give the labels away")
    assert "file format" in explain_shortcuts(found)
    page = Page("Doctor", "")
    add_shortcuts(page, found)
    assert "RED WARNING" in page.to_html()


@pytest.mark.parametrize(
    ("feature", "real", "fake"),
    [
        ("jpeg_quality", {"quality": 90}, {"quality": 70}),
        ("width", {"side": (33, 24)}, {"side": (32, 24)}),
        ("chroma_subsampling", {"subsampling": 0}, {"subsampling": 2}),
        ("exif", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}, {}),
    ],
)
def test_trap_16_each_property_alone_is_found(tmp_path, feature, real, fake):
    items = [write(tmp_path, "real", n, **real) for n in range(12)]
    items += [write(tmp_path, "fake", n, **fake) for n in range(12)]
    found = find_shortcuts(items)
    assert named(found, feature).separation.level == "red"
    assert found.warning


def test_trap_16_length_and_compression_of_clips(tmp_path):
    """Real clips are longer and of better quality, as in sets whose fakes were cut and re-encoded."""
    items = []
    for number in range(8):
        real = write_clip(tmp_path / f"{number:03d}.mp4", frames=12 + number, crf=18)
        fake = write_clip(tmp_path / f"{number + 50:03d}.mp4", frames=4 + number // 2, crf=40)
        items.append(Item(str(real), "real", real.stem))
        items.append(Item(str(fake), "fake", fake.stem, method="swap"))
    found = find_shortcuts(items)
    assert {"duration", "num_frames", "bytes_per_pixel"} <= {
        feature.name for feature in found.features if feature.separation.level == "red"
    }


def test_files_made_alike_give_no_warning(tmp_path):
    found = find_shortcuts(alike(tmp_path))
    assert not found.warning
    assert found.seen.low < 0.5
    assert "RED" not in explain_shortcuts(found)


def test_nothing_to_tell_apart_by_is_said(tmp_path):
    """Crops: everything of one size and format, and so of one figure for each feature."""
    items = []
    for label in ("real", "fake"):
        for number in range(6):
            path = tmp_path / f"{label}{number}" / "000.png"
            path.parent.mkdir()
            Image.new("RGB", (16, 16)).save(path)
            items.append(Item(str(path), label, f"{number}", method="swap" * (label == "fake")))
    found = find_shortcuts(items)
    assert found.seen is None
    assert not found.features
    text = "No shortcut: size, format, compression and length are the same"
    assert explain_shortcuts(found).startswith(text)
    page = Page("Doctor", "")
    add_shortcuts(page, found)
    assert text in page.to_html()


def test_names_are_told_apart_from_what_a_model_sees(tmp_path):
    """As in FaceForensics++, where a fake is called 000_003."""
    items = []
    for item in alike(tmp_path):
        name = "{0:03d}_{1:03d}" if item.label == "fake" else "{0:03d}"
        number = int(item.video)
        path = tmp_path / item.label / (name.format(number, number + 1) + ".jpg")
        items.append(item._replace(path=str(path)))
        (tmp_path / item.label / f"{item.video}.jpg").rename(path)
    found = find_shortcuts(items)
    assert found.named.auc == 1
    assert not found.warning
    assert "names of the files give the labels away (AUC 1.000)" in explain_names(found)


def test_reals_of_two_data_sets_are_told_apart(tmp_path):
    items = [write(tmp_path / "a", label, n, quality=90) for n in range(10) for label in ("real", "fake")]  # fmt: skip
    more = [write(tmp_path / "b", label, n, quality=50) for n in range(10) for label in ("real", "fake")]  # fmt: skip
    found = find_shortcuts(items + [item._replace(dataset="b") for item in more])
    assert found.reals["dataset a"].auc > 0.99
    assert not found.warning
    assert found.dataset.auc < 0.6
    assert set(found.methods) == {"a/swap", "b/swap"}


def test_a_method_that_gives_itself_away_comes_first(tmp_path):
    items = [write(tmp_path, "real", n, quality=90) for n in range(16)]
    items += [write(tmp_path, "fake", n, quality=90) for n in range(16)]
    other = [write(tmp_path / "b", "fake", n, quality=60) for n in range(16)]
    found = find_shortcuts(items + [item._replace(method="lips") for item in other])
    assert list(found.methods) == ["a/lips", "a/swap"]
    assert found.methods["a/lips"].level == "red"
    assert found.methods["a/swap"].level != "red"


def test_frames_of_a_video_count_once(tmp_path):
    items = [
        Item(f"{tmp_path}/{video}/{frame}.png", "real", str(video), frame=frame)
        for video in range(4)
        for frame in range(9)
    ]
    chosen = choose_files(items, 100, seed=0)
    assert sorted(item.video for item in chosen) == ["0", "1", "2", "3"]
    assert {item.frame for item in chosen} == {4}


def test_methods_share_what_is_chosen():
    items = [Item(f"r{n}", "real", f"r{n}") for n in range(100)]
    items += [Item(f"a{n}", "fake", f"a{n}", method="a") for n in range(90)]
    items += [Item(f"b{n}", "fake", f"b{n}", method="b") for n in range(10)]
    chosen = choose_files(items, 40, seed=0)
    methods = [item.method for item in chosen]
    assert (methods.count(""), methods.count("a"), methods.count("b")) == (20, 10, 10)


def test_damaged_files_are_counted_by_label(tmp_path):
    items = alike(tmp_path, 8)
    for item in items[:2]:
        Path(item.path).write_bytes(b"damaged")
    found = find_shortcuts(items)
    assert found.num_files == {"real": 7, "fake": 7}
    assert found.to_dict()["failures"]["num"] == {"real": 1, "fake": 1}
    assert any(note.startswith("Not read: 1 of 8 real and 1 of 8 fake files") for note in found.notes)  # fmt: skip


def test_people_in_all_videos_are_said(tmp_path):
    items = [item._replace(identities=("one",)) for item in alike(tmp_path)]
    found = find_shortcuts(items)
    assert found.seen is not None
    assert any(note.startswith("People appear in so many videos") for note in found.notes)


def test_too_few_of_a_label_are_refused(tmp_path):
    items = [write(tmp_path, "real", n) for n in range(9)] + [write(tmp_path, "fake", 0)]
    message = r"There are 9 real and 1 fake.*at least 5 of each: add fake ones"
    with pytest.raises(DeepfakeDataError, match=message):
        find_shortcuts(items)

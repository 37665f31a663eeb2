"""`vfm embed` of videos and shards, whose rows are opened again by their paths."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image
from vfm_runtime.media.image import ImageError

import vfm
from tests.embed.test_embed import read, run
from tests.runtime.videos import picture, write
from vfm.embed.sources import open_stored

pytest.importorskip("lancedb")
pytest.importorskip("av")


@pytest.fixture
def clips(tmp_path):
    folder = tmp_path / "media" / "clips"
    folder.mkdir(parents=True)
    write([picture(n) for n in range(20)], rate=10, path=folder / "a.mp4")
    Image.fromarray(picture(3)).save(folder / "b.png")
    (folder / "broken.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(100))
    return folder


def test_frames_of_a_video_and_their_mean(clips, weights, tmp_path, capsys):
    store = tmp_path / "store"
    assert run(clips.parent, store, weights, "--num_frames", "3") == 0
    shown = capsys.readouterr()
    assert "2 of 3 images embedded now" in shown.out
    assert f"unreadable: {clips}/broken.mp4: " in shown.err
    vectors, rows = read(store, "label", "time")
    video = f"{clips}/a.mp4"
    times = [0.0, pytest.approx(1.0, abs=0.11), pytest.approx(1.9)]
    assert [row[1:] for row in rows] == [("clips", time) for time in (None, *times, None)]
    assert (rows[0][0], rows[-1][0]) == (video, f"{clips}/b.png")
    model = vfm.load("test_vit", base=weights, device="cpu")
    frames = model.embed([open_stored(path) for path, *_ in rows[1:4]])
    np.testing.assert_allclose(vectors[1:4], frames, atol=1e-5)
    mean = frames.mean(0)
    np.testing.assert_allclose(vectors[0], mean / np.linalg.norm(mean), atol=1e-5)
    assert open_stored(video).shape == picture(0).shape
    # Fewer frames replace those that were; a video that is gone takes its frames with it.
    assert run(clips.parent, store, weights, "--num_frames", "2") == 0
    assert [row[2] for row in read(store, "label", "time")[1]] == [None, times[0], times[2], None]
    (clips / "a.mp4").unlink()
    assert run(clips.parent, store, weights, "--drop_gone", "true") == 0
    assert [row[0] for row in read(store)[1]] == [f"{clips}/b.png"]
    with pytest.raises(ImageError, match=r"a\.mp4"):
        open_stored(rows[1][0])


def test_videos_are_left_out_where_no_frame_is_asked_for(clips, weights, tmp_path, capsys):
    (clips / "broken.mp4").unlink()
    with pytest.warns(UserWarning, match=r"1 files of .* are left out .*: 1 x \.mp4"):
        assert run(clips.parent, tmp_path / "store", weights, "--num_frames", "0") == 0
    assert run(clips.parent, tmp_path / "store", weights, "--num_frames", "-1") == 1
    assert "--num_frames -1. Give at least 1, and 0." in capsys.readouterr().err


def test_images_in_shards(weights, tmp_path, monkeypatch):
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    for shard in range(2):
        with tarfile.open(tmp_path / f"{shard}.tar", "w") as tar:
            for number in (0, 1):
                file = io.BytesIO()
                Image.fromarray(picture(2 * shard + number)).save(file, "PNG")
                for ending, content in (("png", file.getvalue()), ("cls", b"cat")):
                    entry = tarfile.TarInfo(f"x{number}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    store = tmp_path / "store"
    assert run(tmp_path / "{0..1}.tar", store, weights) == 0
    vectors, rows = read(store, "label")
    expected = [f"{tmp_path}/{shard}.tar#x{number}" for shard in (0, 1) for number in (0, 1)]
    assert rows == [(path, "cat") for path in expected]
    pictures = [open_stored(path) for path in expected]
    assert [np.array_equal(p, picture(n)) for n, p in enumerate(pictures)] == [True] * 4
    model = vfm.load("test_vit", base=weights, device="cpu")
    np.testing.assert_allclose(vectors, model.embed(pictures), atol=1e-5)
    with pytest.raises(ImageError, match="not in the shard any more"):
        open_stored(f"{tmp_path}/0.tar#y")
    (tmp_path / "0.tar").unlink()
    with pytest.raises(ImageError, match="Embed the shards again"):
        open_stored(expected[0])

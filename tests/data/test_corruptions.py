"""Corruptions of pictures."""

import numpy as np
import pytest
from skimage import data

from vfm.data.corruptions import CORRUPTIONS, reencode

FACE = np.ascontiguousarray(data.astronaut()[:128, 150:278])


def apply(kind, level, seed=0):
    return CORRUPTIONS[kind].apply(FACE, level, np.random.default_rng(seed))


def distance(pixels):
    return float(((pixels.astype(float) - FACE) ** 2).mean())


@pytest.mark.parametrize("kind", ["jpeg", "blur", "noise", "h264"])
def test_each_level_takes_more_than_the_one_before(kind):
    losses = [distance(apply(kind, level)) for level in CORRUPTIONS[kind].levels]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1] / 4
    for level in CORRUPTIONS[kind].levels:
        pixels = apply(kind, level)
        assert pixels.dtype == np.uint8
        assert pixels.shape == FACE.shape


def test_the_picture_itself_stays_as_it_is():
    before = FACE.copy()
    for kind, corruption in CORRUPTIONS.items():
        for level in corruption.levels:
            apply(kind, level)
    np.testing.assert_array_equal(FACE, before)


def test_resize_shrinks_and_never_enlarges():
    assert apply("resize", 64).shape == (64, 64, 3)
    assert apply("resize", 112).shape == (112, 112, 3)
    np.testing.assert_array_equal(apply("resize", 224), FACE)


def test_resize_draws_its_filter():
    assert len({apply("resize", 64, seed).tobytes() for seed in range(20)}) >= 4


def test_noise_has_the_strength_that_it_says():
    grey = np.full((200, 200, 3), 128, np.uint8)
    noisy = CORRUPTIONS["noise"].apply(grey, 0.05, np.random.default_rng(0))
    assert (noisy.astype(float) - 128).std() == pytest.approx(0.05 * 255, rel=0.02)
    assert abs((noisy.astype(float) - 128).mean()) < 0.2


def test_blur_is_of_the_gaussian_that_it_says():
    point = np.zeros((41, 41, 3), np.uint8)
    point[20, 20] = 255
    blurred = CORRUPTIONS["blur"].apply(point, 1, np.random.default_rng(0))
    row = blurred[20, :, 0].astype(float)
    assert row[21] / row[20] == pytest.approx(np.exp(-0.5), rel=0.05)


def test_a_seed_reproduces_and_another_does_not():
    for kind in ("noise", "resize"):
        level = CORRUPTIONS[kind].levels[-1]
        np.testing.assert_array_equal(apply(kind, level, 1), apply(kind, level, 1))
    assert (apply("noise", 0.1, 1) != apply("noise", 0.1, 2)).any()


# H.264


def test_video_comes_back_whole_in_order_and_in_its_size():
    frames = [np.full((33, 47, 3), level, np.uint8) for level in range(0, 250, 10)]
    back = reencode(frames, 23)
    assert len(back) == len(frames)
    assert {frame.shape for frame in back} == {(33, 47, 3)}
    for before, after in zip(frames, back, strict=True):
        assert abs(before.astype(int) - after).mean() < 4


def test_lossless_is_near_and_colours_keep_their_order():
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    assert abs(reencode([red], 0)[0].astype(int) - red).max() < 4


def test_the_same_video_again():
    first, second = (reencode([FACE, FACE[::-1]], 28) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_frames_of_two_sizes_are_no_video():
    for frames, said in (([FACE, FACE[:64]], "2 frames of 2 sizes"), ([], "0 frames of 0 sizes")):
        with pytest.raises(ValueError, match=f"{said} cannot be a video"):
            reencode(frames, 23)

import cv2
import numpy as np
import pytest

from vfm.data.corruptions import compress_jpeg
from vfm.deepfake.data import augment
from vfm.deepfake.data.augment import (
    View,
    apply_benign_edit,
    apply_edit,
    change_colors,
    move_view,
)
from vfm.deepfake.data.portrait import draw_face

SIDE = 64


def view(known=True):
    mask = np.zeros((SIDE, SIDE), np.float32)
    mask[20:50, 10:30] = 1
    return View(draw_face(0, 0, SIDE).pixels, mask if known else np.full_like(mask, -1))


def edited(before, seed, **options):
    return apply_edit(before, np.random.default_rng(seed), **options)


def test_image_and_mask_keep_size_type_and_range():
    for seed in range(60):
        pixels, mask = edited(view(), seed)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (SIDE, SIDE, 3)
        assert mask.dtype == np.float32
        assert mask.shape == (SIDE, SIDE)
        assert np.isfinite(mask).all()
        assert 0 <= mask.min() <= mask.max() <= 1


def test_unknown_mask_stays_unknown():
    for seed in range(20):
        after = edited(view(known=False), seed)
        assert (after.mask == -1).all()
        assert not after.is_known
        assert (apply_benign_edit(view(known=False), np.random.default_rng(seed)).mask == -1).all()


def test_the_same_seed_does_the_same_to_two_images_and_another_another():
    one = view()
    images = [edited(one, seed).pixels for seed in range(60)]
    assert all((edited(one, seed).pixels == image).all() for seed, image in enumerate(images))
    assert len({image.tobytes() for image in images}) > 55


def test_trap_13_mask_moves_with_the_image():
    white = np.zeros((SIDE, SIDE, 3), np.uint8)
    white[20:50, 10:30] = 255
    before = View(white, white[..., 0].astype(np.float32) / 255)
    for seed in range(40):
        after = move_view(before, np.random.default_rng(seed))
        np.testing.assert_allclose(after.pixels[..., 0] / 255, after.mask, atol=0.03)
        # The edit moves the mask in this way too.
        assert (edited(before, seed).mask == after.mask).all()


def test_without_resampling_pixels_stay_whole():
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    before = View(noise, np.zeros((SIDE, SIDE), np.float32))
    for seed in range(60):
        after = move_view(before, np.random.default_rng(seed), resampling=False).pixels
        assert (after == noise).all() or (after == noise[:, ::-1]).all()
        # Blurred or shrunk, noise would lose most of its spread.
        assert edited(before, seed, resampling=False).pixels.std() > 0.5 * noise.std()
    assert min(edited(before, seed).pixels.std() for seed in range(60)) < 0.5 * noise.std()


def test_jpeg_of_low_quality_changes_more():
    pixels = view().pixels
    far, near = (np.abs(compress_jpeg(pixels, q).astype(int) - pixels).mean() for q in (20, 95))
    assert far > 1.5 * near > 0


def test_colours_change_brightness_and_saturation():
    pixels = view().pixels
    brighter = change_colors(pixels, offset=10)
    assert brighter.mean() - pixels.mean() == pytest.approx(10, abs=1.5)
    grey = change_colors(pixels, saturation=0)
    assert np.ptp(grey.astype(int), axis=2).max() <= 1


@pytest.mark.parametrize("kind", augment._BENIGN_EDITS, ids=lambda kind: kind.__name__)
def test_harmless_edit_changes_the_image_and_takes_from_the_mask(kind):
    before = view()
    changed = 0
    for seed in range(10):
        after = kind(before, np.random.default_rng(seed))
        assert after.pixels.dtype == np.uint8
        assert after.pixels.shape == before.pixels.shape
        assert after.mask.dtype == np.float32
        assert after.mask.sum() <= before.mask.sum() + 1e-3
        changed += (after.pixels != before.pixels).any()
    assert changed >= 8


def test_sticker_hides_the_forgery_below_it():
    before = view()._replace(mask=np.ones((SIDE, SIDE), np.float32))
    after = augment._add_stickers(before, np.random.default_rng(1))
    covered = after.mask < 0.5
    assert covered.any()
    moved = cv2.absdiff(after.pixels, before.pixels).max(axis=2) > 3
    assert moved[covered].mean() > 0.8


def test_trap_14_harmless_edit_depends_on_its_generator_alone():
    one, two, other = (apply_benign_edit(view(), np.random.default_rng(s)) for s in (3, 3, 4))
    assert (one.pixels == two.pixels).all()
    assert (one.pixels != other.pixels).any()

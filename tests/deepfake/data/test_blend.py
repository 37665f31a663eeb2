import functools

import cv2
import numpy as np
import pytest
from vfm_runtime.deepfake.faces.crop import CropSpec, scale_template
from vfm_runtime.media.image import open_image

from tests import fetch_assets
from vfm.deepfake.data import blend as blending
from vfm.deepfake.data.blend import VISIBLE, fit_affine, mask_face, self_blend
from vfm.deepfake.data.portrait import draw_face

SIDE = 96
PHOTOS = fetch_assets.FOLDER / "face-recognition"


@functools.cache
def drawn(identity=0, size=SIDE):
    return draw_face(identity, 0, size)


def blends(count, crop=None, landmarks=None, spec=None):
    for seed in range(count):
        pixels = drawn(seed % 4).pixels if crop is None else crop
        yield self_blend(pixels, np.random.default_rng(seed), landmarks, spec)


def visible(blend):
    """Mean difference in the blended part, in levels."""
    difference = cv2.absdiff(blend.real, blend.fake).mean(axis=2)
    return difference[blend.mask > 0.5].mean()


def points_68(spec=None):
    """Something like the 68 points of iBUG, from the template's outline."""
    spec = spec or CropSpec(size=SIDE)
    centre = scale_template(spec).mean(axis=0)
    angle = np.linspace(0, np.pi, 17)
    jaw = centre + np.stack([-np.cos(angle), np.sin(angle)], 1) * spec.size * 0.3
    inner = centre + np.random.default_rng(0).uniform(-0.2, 0.2, (51, 2)) * spec.size
    return np.concatenate([jaw, inner])


def test_every_blend_differs_visibly_within_a_soft_finite_mask():
    for blend in blends(150):
        assert blend.real.dtype == blend.fake.dtype == np.uint8
        assert blend.real.shape == blend.fake.shape == (SIDE, SIDE, 3)
        assert blend.mask.dtype == np.float32
        assert np.isfinite(blend.mask).all()
        assert blend.mask.min() == 0
        assert blend.mask.max() == pytest.approx(1, abs=0.02)
        assert ((blend.mask > 0.1) & (blend.mask < 0.9)).any()
        assert visible(blend) >= VISIBLE


def test_outside_of_the_mask_the_fake_is_the_real():
    for blend in blends(40):
        outside = blend.mask == 0
        assert outside.any()
        assert (blend.real[outside] == blend.fake[outside]).all()


def test_the_real_one_is_changed_as_often_as_the_blended_part():
    crop = drawn().pixels
    untouched = [(blend.real == crop).all() for blend in blends(200, crop)]
    assert 0.35 < np.mean(untouched) < 0.75


def test_same_generator_state_gives_the_same_blend_and_another_another():
    crop = drawn().pixels
    one, two, other = (self_blend(crop, np.random.default_rng(s)) for s in (5, 5, 6))
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    assert (one.mask != other.mask).any()


def test_parts_of_many_sizes_are_blended():
    areas = [blend.mask.mean() for blend in blends(150)]
    assert min(areas) < 0.05 < 0.15 < max(areas) < 0.6


@pytest.mark.parametrize("level", [0, 128, 255])
def test_blank_image_gets_a_visible_blend(level):
    crop = np.full((64, 64, 3), level, np.uint8)
    for blend in blends(10, crop):
        assert visible(blend) >= VISIBLE


def test_last_resort_is_visible_on_any_image(monkeypatch):
    monkeypatch.setattr(blending, "_draw_blend", lambda *_: None)
    noise = np.random.default_rng(0).choice([0, 255], (64, 64, 3)).astype(np.uint8)
    for crop in (noise, np.zeros_like(noise), np.full_like(noise, 255)):
        (blend,) = blends(1, crop)
        assert np.isfinite(blend.mask).all()
        assert visible(blend) >= VISIBLE


@pytest.mark.parametrize(
    "landmarks",
    [np.full((5, 2), 9e6), np.full((5, 2), -40.0), np.zeros((5, 2)), np.full((68, 2), 1e4)],
    ids=["far", "outside", "one point", "68 outside"],
)
def test_landmarks_outside_of_the_image_give_a_blend_all_the_same(landmarks):
    for blend in blends(20, drawn().pixels, landmarks):
        assert np.isfinite(blend.mask).all()
        assert visible(blend) >= VISIBLE


@pytest.mark.parametrize("count", [5, 68, 81, 12])
def test_trap_13_mask_follows_the_landmarks(count):
    spec = CropSpec(size=SIDE)
    points = {5: scale_template(spec), 68: points_68(), 81: points_68()[np.arange(81) % 68]}
    at = points.get(count, points_68()[:17])
    shift = np.array([20.0, 0.0])
    crop = drawn().pixels
    _, columns = np.mgrid[0:SIDE, 0:SIDE]

    def middle(landmarks):
        places = []
        for blend in blends(30, crop, landmarks, spec):
            places.append((columns * blend.mask).sum() / blend.mask.sum())
        return np.mean(places)

    assert middle(at - shift / 2) + 12 < middle(at + shift / 2)


def test_margin_of_the_crop_makes_the_mask_smaller():
    crop = drawn().pixels
    near, far = (
        np.mean([b.mask.mean() for b in blends(40, crop, None, CropSpec(size=SIDE, margin=m))])
        for m in (1.0, 2.0)
    )
    assert far < 0.5 * near


def test_crop_of_another_size_than_the_specified_one_is_scaled():
    for size in (32, 64, 128):
        crop = drawn(0, size).pixels
        (blend,) = blends(1, crop, None, CropSpec(size=256))
        assert blend.mask.shape == (size, size)
        assert 0.004 < blend.mask.mean() < 0.6


@pytest.mark.parametrize(
    ("crop", "said"),
    [
        (np.zeros((40, 50, 3), np.uint8), r"uint8 of shape \[40, 50, 3\]"),
        (np.zeros((40, 40, 3), np.float32), r"float32 of shape \[40, 40, 3\]"),
        (np.zeros((16, 16, 3), np.uint8), r"side of 32 pixels or more"),
    ],
)
def test_crop_that_is_no_square_of_bytes_is_refused(crop, said):
    with pytest.raises(ValueError, match=said):
        self_blend(crop, np.random.default_rng(0))


def test_affine_map_takes_points_to_points():
    points = np.random.default_rng(0).uniform(0, 9, (5, 2))
    matrix = np.array([[1.2, 0.1, 3], [-0.2, 0.9, 1]])
    matrix_found = fit_affine(points, points @ matrix[:, :2].T + matrix[:, 2])
    np.testing.assert_allclose(matrix_found, matrix, atol=1e-9)


def test_face_mask_covers_the_five_points():
    points = scale_template(CropSpec(size=SIDE))
    mask = mask_face(points, SIDE, 0.01)
    assert (mask[points[:, 1].astype(int), points[:, 0].astype(int)] > 0.9).all()
    assert mask[0].max() == mask[:, 0].max() == 0


@pytest.mark.assets
def test_every_blend_of_face_photos_differs_visibly():
    from vfm_runtime.deepfake.faces.crop import crop_face
    from vfm_runtime.deepfake.faces.detector import load_detector

    detector, spec = load_detector("mtcnn"), CropSpec()
    photos = sorted(PHOTOS.glob("**/tests/test_images/*.jpg"))
    assert len(photos) >= 6
    for number, path in enumerate(photos):
        image = open_image(path)
        faces = detector.detect(image)
        assert faces, path
        crop = crop_face(image, max(faces, key=lambda face: face.area).landmarks, spec).pixels
        for seed in range(10):
            blend = self_blend(crop, np.random.default_rng([number, seed]), None, spec)
            assert np.isfinite(blend.mask).all()
            assert visible(blend) >= VISIBLE

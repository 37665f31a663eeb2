import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from skimage import data
from vfm_runtime.deepfake.faces.crop import (
    TEMPLATE,
    CropSpec,
    choose_faces,
    choose_forged_face,
    crop_face,
    crop_whole,
    cut_crops,
    cut_tiles,
    scale_template,
)
from vfm_runtime.deepfake.faces.face import Face
from vfm_runtime.deepfake.faces.geometry import fit_similarity, invert_map, move_points, warp

PHOTO = data.astronaut()
# Eyes, nose and corners of the mouth, read off the photo by eye.
POINTS = np.array([(203, 102), (247, 103), (225, 128), (205, 140), (244, 141)], float)


def face(left, top, right, bottom, score=1.0):
    return Face(np.array([left, top, right, bottom], float), score, POINTS)


def test_a_specification_survives_json():
    spec = CropSpec(source="native", size=224, margin=2, policy="all", tiles=9, min_score=1)
    assert CropSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert json.dumps(CropSpec(margin=1).to_dict()) == json.dumps(CropSpec(margin=1.0).to_dict())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"source": "face"}, "source of the crop is 'face'. Choices: faces, cropped, native."),
        ({"policy": "first"}, "policy of the crop is 'first'. Choices: largest, all."),
        ({"detector": "dlib"}, "detector of the crop is 'dlib'. Choices: mtcnn, precomputed."),
        ({"size": 8}, "size of the crop is 8. Give a whole number from 16 to 2048."),
        ({"size": 224.0}, "size of the crop is 224.0. Give a whole number"),
        ({"size": True}, "size of the crop is True"),
        ({"margin": 0.2}, "margin of the crop is 0.2. Give a number from 0.5 to 4."),
        ({"margin": math.nan}, "margin of the crop is nan"),
        ({"min_score": "0.9"}, "min_score of the crop is '0.9'. Give a number from 0 to 1."),
        ({"tiles": 10}, "tiles of the crop is 10. Give a whole number from 1 to 9."),
        ({"scale": 1.3}, "wrong fields (unknown: scale). It needs exactly: source, size, margin"),
    ],
)
def test_a_wrong_field_is_refused(change, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        CropSpec.from_dict(CropSpec().to_dict() | change)


def test_a_missing_field_and_another_type_are_refused():
    values = CropSpec().to_dict()
    del values["margin"]
    with pytest.raises(ValueError, match=r"wrong fields \(missing: margin\)"):
        CropSpec.from_dict(values)
    with pytest.raises(ValueError, match="is a mapping, not list"):
        CropSpec.from_dict([1])


def test_the_template_shrinks_about_the_centre_with_the_margin():
    np.testing.assert_allclose(scale_template(CropSpec(margin=1.0, size=100)), TEMPLATE * 100)
    wide = scale_template(CropSpec(margin=2.0, size=100))
    np.testing.assert_allclose(wide - 50, (TEMPLATE * 100 - 50) / 2)


def test_similarity_finds_turn_scale_and_shift():
    generator = np.random.default_rng(0)
    for _ in range(50):
        angle, scale = generator.uniform(-3, 3), generator.uniform(0.1, 5)
        turn = scale * np.array(
            [(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))]
        )
        true = np.column_stack([turn, generator.normal(size=2) * 100])
        points = generator.normal(size=(5, 2)) * 40
        np.testing.assert_allclose(
            fit_similarity(points, move_points(points, true)), true, atol=1e-9
        )


def test_similarity_is_the_best_and_never_mirrors():
    generator = np.random.default_rng(1)
    start, end = generator.normal(size=(5, 2)), generator.normal(size=(5, 2))

    def loss(matrix):
        return ((move_points(start, matrix) - end) ** 2).sum()

    best = fit_similarity(start, end)
    a, b = best[0, 0], best[1, 0]
    np.testing.assert_allclose(best[:, :2], [(a, -b), (b, a)], atol=1e-12)
    for step in generator.normal(size=(100, 4)) * 0.01:
        a2, b2 = a + step[0], b + step[1]
        near = np.array([(a2, -b2, best[0, 2] + step[2]), (b2, a2, best[1, 2] + step[3])])
        assert loss(near) > loss(best)
    mirrored = fit_similarity(POINTS, POINTS * (-1, 1))
    assert np.linalg.det(mirrored[:, :2]) > 0


@pytest.mark.parametrize(
    ("points", "text"),
    [
        (np.ones((5, 2)), "All landmarks of a face coincide"),
        (np.full((5, 2), np.nan), "A landmark is NaN or infinite"),
        (np.ones((4, 2)), r"shape \[4, 2\] cannot be brought onto points of shape \[5, 2\]"),
    ],
)
def test_unusable_landmarks_are_refused(points, text):
    with pytest.raises(ValueError, match=text):
        crop_face(PHOTO, points, CropSpec())


@pytest.mark.parametrize("angle", [0, 30, -75, 180])
@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_crop_is_the_same_however_the_photo_is_turned_and_scaled(angle, scale):
    spec = CropSpec(size=64)
    plain = crop_face(PHOTO, POINTS, spec)
    radians = math.radians(angle)
    rotation = [(math.cos(radians), -math.sin(radians)), (math.sin(radians), math.cos(radians))]
    turn = np.array(rotation) * scale
    side = int(1.5 * 512 * scale)
    matrix = np.column_stack([turn, side / 2 - turn @ (225, 120)])
    turned = crop_face(warp(PHOTO, matrix, side), move_points(POINTS, matrix), spec)
    difference = np.abs(turned.pixels.astype(float) - plain.pixels)
    assert difference.mean() < (12 if scale < 1 else 4)
    np.testing.assert_allclose(
        move_points(POINTS, plain.matrix),
        move_points(move_points(POINTS, matrix), turned.matrix),
        atol=1e-6,
    )


def test_the_five_points_lie_near_the_template():
    spec = CropSpec(size=128, margin=1.5)
    crop = crop_face(PHOTO, POINTS, spec)
    assert crop.pixels.shape == (128, 128, 3)
    assert np.abs(move_points(POINTS, crop.matrix) - scale_template(spec)).max() < 6
    np.testing.assert_array_equal(crop.face.landmarks, POINTS)
    np.testing.assert_allclose(
        move_points(scale_template(spec), invert_map(crop.matrix)).mean(0), POINTS.mean(0)
    )


def test_warp_by_the_identity_gives_the_pixels_back():
    identity = np.eye(2, 3)
    np.testing.assert_array_equal(warp(PHOTO, identity, 512), PHOTO)
    np.testing.assert_array_equal(warp(PHOTO[..., 0], identity, 512), PHOTO[..., 0])


def test_warp_shifts_by_whole_pixels_and_is_black_outside():
    shift = np.array([(1.0, 0, 10), (0, 1.0, -20)])
    there = warp(PHOTO, shift, 512)
    np.testing.assert_array_equal(there[:492, 10:], PHOTO[20:, :502])
    assert not there[:, :10].any()
    assert not there[492:].any()
    away = np.array([(1.0, 0, 9000), (0, 1.0, 0)])
    assert not warp(PHOTO, away, 64).any()


def test_shrinking_averages_and_makes_no_pattern():
    board = (np.indices((600, 600)).sum(0) % 2 * 255).astype(np.uint8)
    small = warp(np.stack([board] * 3, 2), np.eye(2, 3) / 6, 100)
    assert np.abs(small[2:-2, 2:-2].astype(int) - 127).max() <= 2


def test_shrinking_keeps_places():
    # A step edge at x = 300 of 600 must lie at 50 of 100, whatever is averaged on the way.
    image = np.zeros((600, 600, 3), np.uint8)
    image[:, 300:] = 255
    row = warp(image, np.eye(2, 3) / 6, 100)[50, :, 0].astype(float) / 255
    assert abs((1 - row).sum() - 50) < 0.1


def test_a_mask_is_cut_as_the_image_is():
    mask = np.zeros(PHOTO.shape[:2], np.uint8)
    mask[110:130, 214:236] = 255
    spec = CropSpec()
    crop = crop_face(PHOTO, POINTS, spec)
    there = warp(mask, crop.matrix, spec.size, resample=Image.Resampling.NEAREST)
    assert set(np.unique(there)) == {0, 255}
    rows, columns = np.nonzero(there)
    centre = move_points([(225, 120)], crop.matrix)[0]
    np.testing.assert_allclose((columns.mean() + 0.5, rows.mean() + 0.5), centre, atol=0.6)


def test_a_whole_crop_keeps_its_pixels_or_its_central_square():
    spec = CropSpec(source="cropped", size=64)
    exact = PHOTO[:64, :64]
    crop = crop_whole(exact, spec)
    np.testing.assert_array_equal(crop.pixels, exact)
    assert crop.face is None
    wide = crop_whole(PHOTO[:200, :300], spec)
    np.testing.assert_allclose(move_points([(50, 0), (250, 200)], wide.matrix), [(0, 0), (64, 64)])
    assert np.abs(wide.pixels.mean((0, 1)) - PHOTO[:200, 50:250].mean((0, 1))).max() < 1


@pytest.mark.parametrize("num", range(1, 10))
def test_native_tiles_are_pixels_of_the_image(num):
    tiles = cut_tiles(PHOTO[:300, :400], 128, num)
    assert len(tiles) == num
    for tile in tiles:
        x, y = -tile.matrix[:, 2].astype(int)
        np.testing.assert_array_equal(tile.pixels, PHOTO[y : y + 128, x : x + 128])
    x, y = -tiles[0].matrix[:, 2]
    assert (x, y) == (136, 86)


def test_equal_tiles_are_cut_once():
    assert len(cut_tiles(PHOTO[:128, :128], 128, 9)) == 1
    assert len(cut_tiles(PHOTO[:128, :256], 128, 9)) == 3


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 90), (50, 300), (127, 127), (3, 2)])
def test_a_small_image_is_mirrored_not_enlarged(height, width):
    image = PHOTO[100 : 100 + height, 200 : 200 + width]
    for tile in cut_tiles(image, 128, 5):
        assert tile.pixels.shape == (128, 128, 3)
        colours = {tuple(colour) for colour in image.reshape(-1, 3).tolist()}
        assert {tuple(colour) for colour in tile.pixels.reshape(-1, 3).tolist()} <= colours


def test_native_tiles_of_nothing_are_refused():
    with pytest.raises(ValueError, match=r"0 tiles of 64 pixels cannot be cut. Give 1 to 9 tiles"):
        cut_tiles(PHOTO, 64, 0)


def test_the_policy_chooses_faces():
    small, half, large = face(0, 0, 10, 10), face(0, 0, 20, 15), face(5, 5, 25, 25)
    assert choose_faces([small, half, large], "largest") == [large]
    assert choose_faces([small, half, large], "all") == [large, half]
    assert choose_faces([], "largest") == choose_faces([], "all") == []
    with pytest.raises(ValueError, match="policy of the crop is 'one'"):
        choose_faces([], "one")


def test_trap_13_the_face_under_the_mask_is_chosen_not_the_largest():
    small, large = face(0, 0, 20, 20), face(40, 0, 90, 50)
    mask = np.zeros((100, 100), np.uint8)
    mask[5:15, 5:15] = 255
    assert choose_forged_face([large, small], mask) is small
    assert choose_forged_face([small, large], np.zeros((100, 100))) is large
    outside = face(-30, -30, -5, -5)
    assert choose_forged_face([outside, small], mask) is small
    with pytest.raises(ValueError, match="no face to choose from"):
        choose_forged_face([], mask)


def test_a_face_moves_with_its_image():
    moved = face(10, 20, 30, 60).move(np.array([(2.0, 0, 5), (0, 2.0, 0)]))
    np.testing.assert_array_equal(moved.box, (25, 40, 65, 120))
    np.testing.assert_array_equal(moved.landmarks, POINTS * 2 + (5, 0))
    assert moved.side == pytest.approx(math.sqrt(40 * 80))
    assert face(5, 5, 5, 9).area == 0


def test_cut_goes_by_the_source():
    assert len(cut_crops(PHOTO, CropSpec(source="native", size=128, tiles=5))) == 5
    assert cut_crops(PHOTO, CropSpec(source="cropped"))[0].pixels.shape == (256, 256, 3)
    with pytest.raises(ValueError, match="need a face detector"):
        cut_crops(PHOTO, CropSpec())

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import vfm_runtime.deepfake.faces
from PIL import Image, ImageFilter
from skimage import data
from vfm_runtime.deepfake.faces import (
    CropSpec,
    FaceDetector,
    Mtcnn,
    PrecomputedFaces,
    cut_crops,
    cut_tiles,
    load_detector,
    measure_quality,
    measure_sharpness,
)
from vfm_runtime.deepfake.faces.crop import crop_whole, scale_template
from vfm_runtime.deepfake.faces.detector import WEIGHTS, suppress
from vfm_runtime.deepfake.faces.geometry import move_points
from vfm_runtime.deepfake.faces.precomputed import build_face, read_landmarks, select_five_points
from vfm_runtime.media.image import open_image

from tests import fetch_assets
from tests.assets import missing

PHOTO = data.astronaut()
# Read off the photo by eye.
POINTS = np.array([(203, 102), (247, 103), (225, 128), (205, 140), (244, 141)], float)
# The eyes, by photo; looked at in the aligned crops.
PHOTOS = {
    "biden.jpg": [(532, 323), (654, 344)],
    "obama.jpg": [(444, 213), (551, 212)],
    "obama2.jpg": [(252, 366), (373, 380)],
    "obama3.jpg": [(738, 383), (860, 396)],
    "obama_partial_face.jpg": [(30, 211), (130, 210)],
    "obama_partial_face2.jpg": [(447, 213), (552, 215)],
}


@pytest.fixture(scope="module")
def detector():
    return Mtcnn()


@pytest.fixture(scope="session")
def face_photos():
    """The photos of `PHOTOS`."""
    found = {path.name: path for path in fetch_assets.FOLDER.rglob("tests/test_images/*.jpg")}
    if set(PHOTOS) <= set(found):
        return found
    return missing("The photos of faces are")


def boxes_of(faces):
    return np.array([face.box for face in faces])


def test_the_face_of_a_photo_is_found(detector):
    assert isinstance(detector, FaceDetector)
    (face,) = detector.detect(PHOTO)
    assert face.score > 0.99
    assert np.abs(face.landmarks - POINTS).max() < 6
    left, top, right, bottom = face.box
    assert ((left, top) < POINTS).all()
    assert ((right, bottom) > POINTS).all()
    assert 80 < face.side < 130


@pytest.mark.assets
@pytest.mark.parametrize("name", PHOTOS)
def test_faces_of_real_photos_are_aligned(name, face_photos, detector):
    image = open_image(face_photos[name])
    spec = CropSpec()
    (crop,) = cut_crops(image, spec, detector)
    distance = np.linalg.norm(np.subtract(*PHOTOS[name]))
    assert np.abs(crop.face.landmarks[:2] - PHOTOS[name]).max() < 0.1 * distance
    assert np.abs(move_points(crop.face.landmarks, crop.matrix) - scale_template(spec)).max() < 12
    quality = measure_quality(crop, spec)
    assert 2.2 * distance < quality.face_px < 3.8 * distance
    assert quality.sharpness > 100
    assert quality.score > 0.99


@pytest.mark.parametrize("scale", [0.35, 0.7, 1.6, 3.0])
def test_the_same_face_is_found_at_every_size(detector, scale):
    side = round(512 * scale)
    image = np.array(Image.fromarray(PHOTO).resize((side, side), Image.Resampling.BICUBIC))
    (face,) = detector.detect(image)
    assert np.abs(face.landmarks / scale - POINTS).max() < 8


def test_a_mirrored_photo_gives_mirrored_points_in_the_viewers_order(detector):
    (face,) = detector.detect(np.ascontiguousarray(PHOTO[:, ::-1]))
    mirrored = (512, 0) + POINTS[[1, 0, 2, 4, 3]] * (-1, 1)
    assert np.abs(face.landmarks - mirrored).max() < 6


def test_thirty_faces_are_found(detector):
    head = Image.fromarray(PHOTO[20:220, 120:320]).resize((128, 128), Image.Resampling.BICUBIC)
    crowd = Image.new("RGB", (6 * 128, 5 * 128))
    for number in range(30):
        crowd.paste(head, (number % 6 * 128, number // 6 * 128))
    image = np.array(crowd)
    faces = [face for face in detector.detect(image) if face.score >= 0.9]
    cells = {tuple(((face.box[:2] + face.box[2:]) // 256).astype(int)) for face in faces}
    assert len(faces) == len(cells) == 30
    assert len(cut_crops(image, CropSpec(policy="all"), detector)) == 30
    assert len(cut_crops(image, CropSpec(policy="largest"), detector)) == 1


@pytest.mark.parametrize(
    "image",
    [
        data.coffee(),
        np.zeros((300, 400, 3), np.uint8),
        np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8),
        PHOTO[:1, :1],
        PHOTO[:5, :],
        PHOTO[:, :24],
    ],
    ids=["coffee", "black", "noise", "pixel", "line", "column"],
)
def test_no_face_is_no_crop(detector, image):
    assert cut_crops(np.ascontiguousarray(image), CropSpec(), detector) == []


def test_a_face_under_the_least_size_is_not_found(detector):
    tiny = np.array(Image.fromarray(PHOTO).resize((70, 70), Image.Resampling.BICUBIC))
    assert cut_crops(tiny, CropSpec(), detector) == []
    assert cut_crops(tiny, CropSpec(), Mtcnn(min_face=12))


def test_an_unsure_face_is_left_out(detector):
    assert cut_crops(PHOTO, CropSpec(min_score=1.0), detector) == []


def test_the_number_of_threads_changes_nothing(detector):
    one, two = detector.detect(PHOTO), Mtcnn(num_threads=2).detect(PHOTO)
    np.testing.assert_allclose(boxes_of(one), boxes_of(two), atol=0.05)


def test_a_size_below_the_window_is_refused():
    with pytest.raises(ValueError, match=r"min_face 8\.0 pixels. Give at least 12"):
        Mtcnn(min_face=8.0)


def test_detectors_are_loaded_by_name():
    assert isinstance(load_detector("mtcnn"), Mtcnn)
    with pytest.raises(ValueError, match=r"no face detector 'dlib'. Detectors: mtcnn, precomputed"):
        load_detector("dlib")
    with pytest.raises(ValueError, match="come from a file of boxes and landmarks"):
        load_detector("precomputed")


def test_suppression_is_greedy_by_score():
    boxes = np.array(
        [(0, 0, 10, 10, 0.8), (1, 0, 11, 10, 0.9), (20, 20, 30, 30, 0.7), (22, 22, 26, 26, 0.6)],
        np.float32,
    )
    assert suppress(boxes, 0.5).tolist() == [1, 2, 3]
    assert suppress(boxes, 0.5, of_smaller=True).tolist() == [1, 2]
    assert suppress(boxes[:0], 0.5).tolist() == []


def test_the_notice_names_origin_licence_and_the_files_as_they_are():
    notice = (WEIGHTS / "NOTICE").read_text(encoding="utf-8")
    assert "mtcnn-runtime 1.0.0" in notice
    assert "Apache-2.0" in notice
    files = sorted(WEIGHTS.glob("*.onnx"))
    assert len(files) == 3
    for path in files:
        assert f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}" in notice


def test_import_loads_neither_onnxruntime_nor_torch():
    code = (
        "import sys, vfm_runtime.deepfake.faces as f; f.Mtcnn, f.CropSpec; "
        "assert not {'onnxruntime', 'torch', 'cv2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_faces_come_from_a_json_file(tmp_path):
    path = tmp_path / "faces.json"
    known = {"landmarks": POINTS.tolist(), "box": [178, 61, 268, 173], "score": 0.95}
    path.write_text(json.dumps({"a.png": [known], "none.png": []}))
    faces = PrecomputedFaces(path)
    (crop,) = cut_crops(PHOTO, CropSpec(detector="precomputed"), faces.get_detector("a.png"))
    assert crop.face.score == 0.95
    np.testing.assert_array_equal(crop.face.landmarks, POINTS)
    np.testing.assert_array_equal(crop.face.box, known["box"])
    assert cut_crops(PHOTO, CropSpec(), faces.get_detector("none.png")) == []
    with pytest.raises(ValueError, match=r"no image 'a.pgn'. Did you mean 'a.png'"):
        faces.get_faces("a.pgn")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[]", "holds a list"),
        ("{", "not a JSON file"),
        ('{"a": 1}', "a has no list of faces"),
        ('{"a": [{"box": [0, 0, 1, 1]}]}', "a has a face without landmarks"),
        ('{"a": [{"landmarks": [[0, 1]]}]}', r"a have the shape \[1, 2\]. Give \[N, 2\] with N of"),
    ],
)
def test_a_wrong_json_file_is_refused(tmp_path, content, text):
    path = tmp_path / "faces.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=text):
        PrecomputedFaces(path)


@pytest.mark.parametrize(
    ("change", "text"),
    [({"score": 2}, "score 2"), ({"box": [5, 0, 1, 9]}, "Give left, top, right, bottom")],
)
def test_a_wrong_box_or_score_is_refused(tmp_path, change, text):
    path = tmp_path / "faces.json"
    path.write_text(json.dumps({"a": [{"landmarks": POINTS.tolist()} | change]}))
    with pytest.raises(ValueError, match=text):
        PrecomputedFaces(path)


def test_landmarks_come_from_numpy_files(tmp_path):
    (tmp_path / "clip").mkdir()
    np.save(tmp_path / "clip" / "3.npy", POINTS.astype(np.uint32))
    faces = PrecomputedFaces(tmp_path)
    (face,) = faces.get_faces("clip/3.png")
    np.testing.assert_array_equal(face.landmarks, POINTS)
    with pytest.raises(ValueError, match=r"4\.npy cannot be read"):
        faces.get_faces("clip/4.png")
    (tmp_path / "5.npy").write_bytes(b"no numbers")
    with pytest.raises(ValueError, match="cannot be read"):
        read_landmarks(tmp_path / "5.npy")
    with pytest.raises(ValueError, match="neither a JSON file nor a folder"):
        PrecomputedFaces(tmp_path / "missing")


@pytest.mark.parametrize("count", [68, 81])
def test_dlibs_landmarks_become_five(count):
    points = np.zeros((count, 2))
    points[36:42], points[42:48] = POINTS[0], POINTS[1]
    points[[30, 48, 54]] = POINTS[2:]
    np.testing.assert_array_equal(select_five_points(points), POINTS)


def test_trap_13_swapped_landmarks_are_refused():
    with pytest.raises(ValueError, match=r"left and right swapped. The order is"):
        select_five_points(POINTS[[1, 0, 2, 4, 3]])
    turned = POINTS[:, ::-1] * (1, -1)
    np.testing.assert_array_equal(select_five_points(turned), turned)
    with pytest.raises(ValueError, match="NaN"):
        select_five_points(np.full((5, 2), np.nan))


def test_a_box_about_landmarks_is_like_the_detectors(detector):
    (face,) = detector.detect(PHOTO)
    box = build_face(face.landmarks).box
    low, high = np.maximum(box[:2], face.box[:2]), np.minimum(box[2:], face.box[2:])
    common = np.prod(high - low)
    total = np.prod(box[2:] - box[:2]) + face.area - common
    assert common / total > 0.7


def test_sharpness_falls_with_blur_and_hardly_depends_on_the_crop_size():
    crop = Image.fromarray(PHOTO[20:220, 120:320]).resize((256, 256), Image.Resampling.BICUBIC)
    figures = [
        measure_sharpness(np.array(crop.filter(ImageFilter.GaussianBlur(radius))))
        for radius in (0, 1, 2, 4, 8)
    ]
    assert figures == sorted(figures, reverse=True)
    assert figures[0] > 100
    assert figures[-1] < 10
    larger = measure_sharpness(np.array(crop.resize((380, 380), Image.Resampling.BICUBIC)))
    assert larger == pytest.approx(figures[0], rel=0.3)
    assert measure_sharpness(np.full((64, 64, 3), 77, np.uint8)) == 0


def test_the_size_of_the_face_is_in_pixels_of_the_image(detector):
    for scale in (1, 2):
        image = np.array(Image.fromarray(PHOTO).resize((512 * scale,) * 2))
        (crop,) = cut_crops(image, CropSpec(size=128), detector)
        assert measure_quality(crop, CropSpec(size=128)).face_px == pytest.approx(
            128 * scale, rel=0.1
        )
    declared = CropSpec(source="cropped", size=128, margin=1.25)
    assert measure_quality(crop_whole(PHOTO, declared), declared).face_px == pytest.approx(
        512 / 1.25
    )
    native = CropSpec(source="native", size=128)
    (tile,) = cut_tiles(PHOTO, 128, 1)
    assert measure_quality(tile, native)[::2] == (None, None)


def test_the_weights_go_into_the_wheel():
    project = (Path(vfm_runtime.deepfake.faces.__file__).parents[3] / "pyproject.toml").read_text()
    assert '"vfm_runtime.deepfake.faces" = ["weights/*"]' in project

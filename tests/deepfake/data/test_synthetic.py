import numpy as np
import pytest
from PIL import Image

from tests.deepfake.data.faces import write_faces
from vfm.deepfake.data.data import DeepfakeData
from vfm.deepfake.data.portrait import draw_face
from vfm.deepfake.data.record import LABELS
from vfm.deepfake.data.synthetic import METHODS, SyntheticDeepfakes, draw_faces, make_deepfake
from vfm.preprocess import Preprocess
from vfm.spec import build


def synthetic(**changes):
    data = SyntheticDeepfakes(
        **({"num_identities": 8, "num_frames": 2, "image_size": 32} | changes)
    )
    data.preprocess = Preprocess(size=(32, 32))
    return data


def test_a_face_is_the_same_every_time_and_its_five_points_lie_in_it():
    one, two = draw_face(3, 1, 64), draw_face(3, 1, 64)
    assert (one.pixels == two.pixels).all()
    left, right, nose, *mouth = one.landmarks
    assert left[0] < nose[0] < right[0]
    assert mouth[0][0] < mouth[1][0]
    assert max(left[1], right[1]) < nose[1] < min(mouth[0][1], mouth[1][1])
    assert (one.landmarks > 0).all()
    assert (one.landmarks < 64).all()


def test_frames_of_a_person_resemble_each_other_more_than_persons_do():
    faces = {(i, f): draw_face(i, f, 48).pixels.astype(float) for i in range(6) for f in range(2)}
    within = [np.abs(faces[i, 0] - faces[i, 1]).mean() for i in range(6)]
    between = [np.abs(faces[i, 0] - faces[(i + 1) % 6, 0]).mean() for i in range(6)]
    assert min(within) > 2
    assert np.mean(within) < 0.6 * np.mean(between)


@pytest.mark.parametrize("method", METHODS)
def test_a_fake_changes_the_face_and_nothing_else(method):
    target, donor = draw_face(0, 0, 64), draw_face(1, 0, 64)
    fake, mask = make_deepfake(method, target, donor, np.random.default_rng(0))
    difference = np.abs(fake.astype(int) - target.pixels)
    assert difference[mask > 0.9].mean() > 3
    assert difference[mask == 0].max() == 0


def test_a_swapped_video_names_both_persons_and_its_source():
    drawn = list(draw_faces(8, 1, 32))
    swap = next(one.item for one in drawn if one.item.method == "swap")
    assert swap.identities == ("person000", "person001")
    assert swap.source == "person000"
    assert swap.label == "fake"
    assert {one.item.method for one in drawn} == {"", *METHODS}
    assert all((one.mask is None) == (one.item.label == "real") for one in drawn)


def test_splits_share_no_person_and_hold_both_labels():
    data = synthetic()
    data.setup("fit")
    assert list(data.records) == ["train", "val", "test"]
    people = {s: {p for r in rs for p in r.item.identities} for s, rs in data.records.items()}
    assert not people["train"] & people["val"]
    assert not people["train"] & people["test"]
    assert not people["val"] & people["test"]
    for records in data.records.values():
        assert {LABELS[record.label] for record in records} == set(LABELS)


def test_spec_makes_equal_data():
    data = synthetic(seed=3)
    again = build(data.spec, base=SyntheticDeepfakes)
    assert again.fingerprint() == data.fingerprint() != synthetic(seed=4).fingerprint()


def test_predict_gives_the_test_images():
    (batch, *_) = synthetic().predict_dataloader()
    assert batch["image"].shape[1:] == (32, 32, 3)


def test_written_faces_are_read_as_they_were_drawn(tmp_path):
    items = write_faces(tmp_path, num_identities=8, num_frames=1, size=32)
    drawn = {one.item.video + one.item.method: one for one in draw_faces(8, 1, 32)}
    for item in items:
        one = drawn[item.video + item.method]
        assert (np.asarray(Image.open(item.path)) == one.source).all()
        np.testing.assert_allclose(np.load(item.landmarks), one.landmarks)
    data = DeepfakeData(tmp_path, val_fraction=0.25, test_fraction=0.25)
    data.setup("fit")
    assert data.crop.source == "cropped"
    assert data.crop.size == 32
    assert sum(map(len, data.records.values())) == len(items) == 24


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_identities": 9}, "num_identities is 9. Give an even number of at least 8"),
        ({"num_identities": 6}, "num_identities is 6. Give an even number of at least 8"),
        ({"num_frames": 0}, "num_frames is 0. Give 1 or more."),
        ({"image_size": 16}, "image_size is 16. Give 32 or more."),
    ],
)
def test_too_few_persons_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        synthetic(**arguments)


def test_only_images_that_never_change_can_be_stored():
    fixed = SyntheticDeepfakes(mode="plain", edits=False, benign_share=0.0)
    assert fixed.augment == "none"
    assert SyntheticDeepfakes(mode="sbi", edits=False, benign_share=0.0).augment != "none"

"""One record for each real or forged image."""

from dataclasses import replace

import pytest

from tests.deepfake.data.faces import write_faces
from tests.deepfake.data.test_data import SIDE, listed, rewritten
from vfm.deepfake.data.dataset import BLENDED


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    write_faces(folder, num_identities=8, num_frames=2, size=SIDE)
    return folder


def test_a_record_holds_all_that_is_known_of_its_image(faces):
    data = listed(faces)
    data.setup("fit")
    for record in data.list_records("train"):
        assert record.mask == (record.item.mask or None)
        assert record.landmarks == record.item.landmarks
        assert (record.tile, record.blend) == (0, -1)
    changed = replace(record, item=record.item._replace(method="other"))
    assert changed.groups == (record.item.dataset, "other", record.item.video, record.component)
    data.setup("predict")
    with pytest.raises(ValueError, match=r"has the groups \(\), but a forged or real image needs"):
        data.list_records("predict")
    assert data.list_records("nothing") == []


def test_blends_are_records_of_their_own(faces, tmp_path):
    root = rewritten(faces, tmp_path / "m", lambda i: i if i.label == "real" else None)
    data = listed(root, mode="sbi")
    with pytest.warns(UserWarning, match="has no fakes"):
        data.setup("validate")
    records = data.list_records("val")
    reals, deepfakes = records[: len(records) // 2], records[len(records) // 2 :]
    assert [record.blend for record in reals] == [record.blend for record in deepfakes]
    for real, fake in zip(reals, deepfakes, strict=True):
        assert (real.label, fake.label) == (0, 1)
        assert fake.item == real.item._replace(label="fake", method=BLENDED, source=real.item.video)
        assert fake.groups[1] == BLENDED
        assert fake.name == f"{real.name} ({BLENDED})"
        assert (fake.source, fake.landmarks) == (real.source, real.landmarks)

"""Licence and lineage of an audited model: what may not be done with it is said, and what is not known."""

from tests.tasks.tiny import vit
from vfm.audit.origins import describe_origins, list_warnings
from vfm.tasks.checkpoint import Checkpoint

ENTRY = {
    "weights": {
        "source": "/secret/place/weights.pth",
        "after": "1b563bb0052e4d21",
        "licenses": {"big model": "cc-by-nc-4.0"},
    },
    "fingerprint": "ab" * 16,
    "data": {"fingerprint": "cd" * 32, "spec": {}},
    "versions": {},
}


def test_a_teacher_that_may_not_be_sold_is_named(monkeypatch, tmp_path):
    task = vit()
    monkeypatch.setattr(task, "license", "apache-2.0", raising=False)
    checkpoint = Checkpoint(task, ENTRY)
    result = describe_origins(tmp_path, checkpoint)
    rows = {row["part"]: row for row in result["parts"]}
    assert (rows["pretrained weights"]["license"], rows["pretrained weights"]["hash_is"]) == (
        "Apache-2.0",
        "verified",
    )
    assert rows["teacher big model"]["license"] == "CC-BY-NC-4.0"
    assert rows["training images"]["hash"] == "cd" * 32
    assert result["uses"][0] == "Not cleared to be sold: teacher big model (CC-BY-NC-4.0)"
    assert "Nobody declared the licence of the training images" in list_warnings(result)[-1]

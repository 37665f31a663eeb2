"""`vfm doctor --detector`: boxes that a detector misses, sees elsewhere, or calls otherwise."""

import json
from pathlib import Path

import numpy as np
import pytest
from lightning import Trainer
from vfm_runtime.errors import OptionError

from tests.audit.doctor.conftest import draw_scene
from tests.audit.doctor.test_doctor_command import write_boxes
from tests.tasks.tiny import shapes, vit
from vfm import DenseHead, DetectionData, DetectionTask
from vfm.audit.doctor.box_errors import BoxErrors, find_box_errors
from vfm.audit.doctor.command import doctor
from vfm.audit.doctor.diagnosis import DoctorOptions
from vfm.metrics.detection import DetectedBoxes, TrueBoxes

BOX, OTHER, LAST = [10, 10, 50, 50], [60, 60, 90, 90], [100, 10, 140, 50]


def state(*boxes, labels, ignored=()):
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    hidden = np.isin(np.arange(len(corners)), ignored)
    return TrueBoxes(corners, np.array(labels, np.int64), hidden)


def find(*boxes, labels, scores):
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return DetectedBoxes(corners, np.array(labels, np.int64), np.array(scores, np.float32))


def test_each_problem_is_named_once_with_its_doubt():
    moved = [10, 35, 50, 75]  # 15 of 40 rows are shared
    truth = [
        state(BOX, OTHER, labels=[0, 1]),
        state(BOX, labels=[0]),
        state(moved, OTHER, labels=[0, 0], ignored=[1]),
    ]
    found = [
        find(
            BOX, OTHER, LAST, [101, 10, 141, 50], labels=[0, 1, 1, 0], scores=[0.8, 0.6, 0.7, 0.3]
        ),
        find(BOX, BOX, labels=[1, 0], scores=[0.9, 0.2]),
        find(BOX, OTHER, labels=[0, 1], scores=[0.8, 0.9]),
    ]
    suspects = find_box_errors(truth, found)
    # Of the ignored box nothing is said, nor a second time of what the first image lacks.
    assert [(s.position, s.problem, s.label, s.suggested_label) for s in suspects] == [
        (0, "missing", -1, 1),
        (1, "class", 0, 1),
        (2, "shifted", 0, 0),
    ]
    missing, confused, shifted = suspects
    assert missing.box == missing.suggested_box == tuple(LAST)
    assert (missing.doubt, confused.doubt) == pytest.approx((0.7, 0.9 - 0.2))
    overlap = 15 / 65
    assert shifted.doubt == pytest.approx(0.8 * (1 - overlap / 0.7))
    assert [s.describe(["cat", "dog"]) for s in suspects] == [
        "no box, looks like dog",
        "labelled cat, looks like dog",
        "labelled cat, looks like cat beside it",
    ]


def test_within_a_crowd_nothing_is_missing():
    crowd = [0, 0, 200, 200]
    truth = [state(crowd, BOX, labels=[0, 0], ignored=[0])]
    seen = find(BOX, LAST, [10, 40, 50, 80], labels=[1, 0, 0], scores=[0.7, 0.9, 0.6])
    (confused,) = find_box_errors(truth, [seen])
    assert (confused.problem, confused.box) == ("class", tuple(BOX))


def test_what_nearly_fits_is_doubted_little():
    truth = [state(BOX, labels=[0]), state(BOX, labels=[0]), state(labels=[])]
    found = [
        find(BOX, labels=[0], scores=[0.9]),
        find([10, 20, 50, 60], labels=[0], scores=[0.95]),  # 30 of 50 rows
        find(OTHER, LAST, labels=[0, 1], scores=[0.5, 0.99]),
    ]
    suspects = find_box_errors(truth, found)
    assert [s.problem for s in suspects] == ["missing", "missing", "shifted"]
    assert [s.problem for s in BoxErrors(suspects, 2, []).likely] == ["missing", "missing"]
    assert find_box_errors([state(labels=[])], [find(labels=[], scores=[])]) == []
    assert find_box_errors([state(BOX, labels=[0])], [find(labels=[], scores=[])]) == []


@pytest.fixture(scope="module")
def boxes(tmp_path_factory):
    """A table of red and green boxes, and a detector that took one step on them."""
    folder = tmp_path_factory.mktemp("detector")
    table = write_boxes(folder / "boxes", 8)
    task = DetectionTask("test_efficientnet", head=DenseHead(), pretrained=False, image_size=64)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False}
    trainer = Trainer(default_root_dir=folder, max_steps=1, limit_val_batches=0, **options)
    data = DetectionData(table, batch_size=4, num_workers=0, val_fraction=0.0)
    trainer.fit(task, datamodule=data)
    path = folder / "detector.ckpt"
    trainer.save_checkpoint(path)
    return table, path


def test_a_detector_adds_its_doubts_to_page_json_and_rules(boxes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table, path = boxes
    options = DoctorOptions(detector=path, label_errors=False, fail_on="box_errors<100000")
    doctor(table, options=options)
    seen = json.loads(Path("doctor/doctor.json").read_text(encoding="utf-8"))
    errors = seen["box_errors"]
    assert errors["num_judged"] == 11
    assert seen["values"]["box_errors"] == sum(one["doubt"] >= 0.5 for one in errors["suspects"])
    doubts = [one["doubt"] for one in errors["suspects"]]
    assert doubts == sorted(doubts, reverse=True)
    page = Path("doctor/doctor.html").read_text(encoding="utf-8")
    assert "Boxes that the detector sees otherwise" in page
    assert "name a detector of these classes" not in page
    out = capsys.readouterr().out
    assert "Boxes that the detector sees otherwise: " in out
    # The others are for the test.
    assert "The detector has learned from 6 of these 8 images, whose boxes it may doubt less" in out


def test_what_is_no_detector_of_these_boxes_is_refused(boxes, scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table, path = boxes
    options = DoctorOptions(detector=path, label_errors=False)
    with pytest.raises(OptionError, match=r"--detector is .*, but .* has no boxes to compare"):
        doctor(scenes({f"{name}/0.png": draw_scene(0) for name in "ab"}), options=options)
    text = table.read_text(encoding="utf-8").replace("red", "cat").replace("green", "dog")
    other = table.with_name("other.csv")
    other.write_text(text, encoding="utf-8")
    with pytest.raises(OptionError, match="which finds green, red, but the boxes are of cat, dog"):
        doctor(other, options=options)
    other.write_text(text.replace("cat", "red"), encoding="utf-8")
    doctor(other, options=options)
    seen = json.loads(Path("doctor/doctor.json").read_text(encoding="utf-8"))
    assert "The detector knows no dog: boxes of these classes it does not judge." in seen["notes"]
    assert seen["box_errors"]["num_judged"] < 11
    task = vit()
    trainer = Trainer(
        accelerator="cpu", logger=False, max_steps=1, enable_progress_bar=False, limit_val_batches=0
    )
    trainer.fit(task, datamodule=shapes())
    trainer.save_checkpoint("labels.ckpt")
    with pytest.raises(
        OptionError, match=r"--detector is labels.ckpt, which labels .* finds objects"
    ):
        doctor(table, options=DoctorOptions(detector=Path("labels.ckpt"), label_errors=False))

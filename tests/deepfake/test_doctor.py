"""`vfm doctor`."""

import json

import numpy as np
import pytest
from PIL import Image
from vfm_runtime.deepfake.decision import Decision
from vfm_runtime.deepfake.evidence import VERDICT_LABELS
from vfm_runtime.deepfake.faces.crop import CropSpec
from vfm_runtime.deepfake.task import DeepfakeType
from vfm_runtime.deepfake.verdict import Verdict
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.media.image import ImageError
from vfm_runtime.tasks.confidence import AbstainReason

from vfm.audit.doctor.command import doctor
from vfm.audit.doctor.diagnosis import DoctorOptions
from vfm.audit.doctor.extensions import register_extension
from vfm.cli.command import run
from vfm.deepfake.data.manifest import write_manifest
from vfm.deepfake.data.record import DeepfakeDataError, Item
from vfm.deepfake.shortcuts import command as command
from vfm.deepfake.shortcuts.known_reals import judge_known_reals

register_extension(command.DeepfakeDoctor())


@pytest.fixture(autouse=True)
def work_in_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Says:
    """A model that gives the answers that it was told to."""

    labels = ("real", "fake")

    def __init__(self, *answers, fpr=0.01):
        self.answers = answers
        rules = {"crop": CropSpec().to_dict(), "decision": Decision(fpr=fpr).to_dict()}
        self.task_type = DeepfakeType(VERDICT_LABELS, rules)

    def predict(self, sources, *, errors):
        assert errors == "return"
        return [self.answers[k % len(self.answers)] for k in range(len(sources))]


def verdict(label, score, reason=None):
    return Verdict(
        label=label,
        reason=reason,
        explanation="",
        score=score,
        logit=None if score is None else 0.0,
        threshold=0.5,
        temperature=1.0,
        calibrated=True,
        frames=(),
    )


FAKE, REAL = verdict("fake", 0.9), verdict("real", 0.1)
NO_FACE = verdict("undecided", None, AbstainReason.NO_FACE)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of 24 real JPEG and 24 fake PNG files."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for label, suffix in (("real", "jpg"), ("fake", "png")):
        (root / label).mkdir()
        for number in range(24):
            pixels = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number:03d}.{suffix}")
    return root


def paths(num=24):
    return [f"{number}.png" for number in range(num)]


def test_trap_11_a_model_that_calls_all_known_reals_fake_is_a_red_warning():
    found = judge_known_reals(Says(FAKE), paths(), 0.01)
    assert found.warning
    assert len(found.fake) == 24
    assert found.interval == pytest.approx((0.8575, 1.0), abs=1e-3)
    text = str(found)
    assert "24 of 24 known reals were called fake" in text
    assert "RED WARNING: it calls reals like these fake. The model promises at most 1.0%" in text
    assert "vfm calibrate CHECKPOINT DATA --fpr 0.01" in text


def test_trap_11_without_calibration_the_threshold_is_called_a_guess():
    text = str(judge_known_reals(Says(FAKE, REAL), paths(), None))
    assert "RED WARNING" in text
    assert "not calibrated, and its threshold is a guess" in text


def test_trap_11_one_false_alarm_is_within_chance():
    found = judge_known_reals(Says(*([REAL] * 23), FAKE), paths(), 0.01)
    assert len(found.fake) == 1
    assert not found.warning
    assert "No more false alarms than expected" in str(found)


def test_trap_11_undecided_and_unreadable_are_no_false_alarms():
    damaged = ImageError("x.png", "the file is empty", "Copy it again.")
    found = judge_known_reals(Says(REAL, NO_FACE, damaged), paths(), 0.01)
    assert not found.fake
    assert found.reasons == {"no_face": 8}
    assert len(found.failures) == 8
    assert found.num_answered == 16
    assert "Undecided: no_face 8." in str(found)
    assert "Not read: 8, the first: 2.png (the file is empty)" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["undecided"] == {"no_face": 8}


def test_fewer_than_twenty_known_reals_are_refused():
    with pytest.raises(
        DeepfakeDataError, match=r"There are 19 known reals, and with fewer than 20"
    ):
        judge_known_reals(Says(REAL), paths(19), 0.01)


def test_the_command_writes_what_gives_the_labels_away(pictures, tmp_path, capsys):
    run("doctor", doctor, [str(pictures), "--shortcuts", "-o", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "RED WARNING" in said
    assert "file format" in said
    written = json.loads((tmp_path / "out/shortcuts.json").read_text())
    assert written["metadata_auc"]["value"] > 0.99
    assert written["warning"] is True
    assert "RED WARNING" in (tmp_path / "out/doctor.html").read_text()


def test_by_default_the_result_lies_beside_the_manifest(pictures, tmp_path, capsys):
    items = [
        Item(str(path), label, path.name, method="" if label == "real" else "swap")
        for label in ("real", "fake")
        for path in sorted((pictures / label).iterdir())
    ]
    write_manifest(tmp_path / "manifest.csv", items)
    doctor(tmp_path / "manifest.csv", shortcuts=True)
    assert (tmp_path / "shortcuts.json").is_file()
    assert str(tmp_path / "shortcuts.json") in capsys.readouterr().out


def test_of_crops_the_videos_are_to_be_asked_too(pictures, tmp_path, capsys):
    items = [Item(str(pictures / "real/000.jpg"), "real", "a")]
    write_manifest(tmp_path / "manifest.csv", items)
    doctor(tmp_path / "manifest.csv")
    assert "These are crops" not in capsys.readouterr().out
    (tmp_path / "crop.json").write_text('{"source": "faces"}')
    doctor(tmp_path)
    assert "run vfm doctor --shortcuts on the videos, too" in capsys.readouterr().out
    with pytest.raises(
        DeepfakeDataError, match=r"holds crops of faces\. A model is asked of whole images"
    ):
        doctor(tmp_path, options=DoctorOptions(model="best.ckpt"))


def test_the_general_checks_are_on_the_same_page(pictures, tmp_path, capsys):
    doctor(pictures, shortcuts=True, out=tmp_path)
    written = json.loads((tmp_path / "doctor.json").read_text())
    assert written["num_images"] == 48
    assert written["sections"]["shortcuts"]["warning"] is True
    assert written["label_errors"] is None
    page = (tmp_path / "doctor.html").read_text()
    assert "Leaks and duplicates" in page
    assert "RED WARNING" in page


def test_one_video_in_two_splits_is_a_leak(pictures, tmp_path):
    files = sorted((pictures / "real").iterdir())
    items = [
        Item(str(f), "real", f"v{k // 2}", split="test" if k == 1 else "train")
        for k, f in enumerate(files)
    ]
    write_manifest(tmp_path / "manifest.csv", items)
    doctor(tmp_path / "manifest.csv", out=tmp_path / "out")
    written = json.loads((tmp_path / "out/doctor.json").read_text())
    assert len(written["key_leaks"]) == 1
    assert written["values"]["key_leaks"] == 1


def test_a_folder_of_other_classes_is_of_no_special_kind(pictures, tmp_path):
    (tmp_path / "cats").mkdir()
    (tmp_path / "dogs").mkdir()
    for k, file in enumerate(sorted((pictures / "real").iterdir())):
        (tmp_path / ("cats", "dogs")[k % 2] / file.name).write_bytes(file.read_bytes())
    assert command.DeepfakeDoctor().read(tmp_path, "auto") is None
    with pytest.raises(OptionError, match=r"--shortcuts goes with data of a special kind"):
        doctor(tmp_path, shortcuts=True)


def test_without_a_question_it_counts_and_says_what_to_ask(pictures, capsys):
    doctor(pictures)
    said = capsys.readouterr().out
    assert "24" in said
    assert "--shortcuts looks for what gives the labels away" in said
    assert not (pictures / "shortcuts.json").exists()


def test_the_command_asks_a_model_of_known_reals(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "load_model", lambda path, trust: Says(FAKE))
    words = [str(pictures / "real"), "--format", "reals", "--model", "best.ckpt", "-o", str(tmp_path)]  # fmt: skip
    run("doctor", doctor, words)
    assert "24 of 24 known reals were called fake" in capsys.readouterr().out
    written = json.loads((tmp_path / "known_reals.json").read_text())
    assert written["num_fake"] == 24
    assert written["warning"] is True


def test_of_data_with_fakes_only_the_reals_are_asked(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "load_model", lambda path, trust: Says(REAL))
    doctor(pictures, options=DoctorOptions(model="best.ckpt"), out=tmp_path)
    assert "0 of 24 known reals were called fake" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_names_the_option(pictures, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match=r"cannot be written .* Name another folder with --out"):
        doctor(pictures, shortcuts=True, out=tmp_path / "file")

"""An export with all that can be asked for: fewer bits under a budget, calibration, a reference, several heads."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import torch
import vfm_runtime
from vfm_runtime.bundle.manifest import hash_file
from vfm_runtime.cli import main as runtime_main

import vfm
from tests.bundle.in_memory import export_task
from tests.bundle.test_export import ORIGIN
from tests.image_folders import write_image_folder
from tests.tasks.tiny import fit, shapes, vit
from vfm.bundle import ExportError, ExportOptions, export as bundle_export, precisions
from vfm.bundle.accuracy import AccuracyMeter
from vfm.cli import main
from vfm.data import FolderData
from vfm.quantization.search import BudgetError
from vfm.tasks import BaseTask
from vfm.tasks.checkpoint import Checkpoint

pytestmark = pytest.mark.slow

SMALL = ["--num_images", "8"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A trained model, with its images and its checkpoint."""
    folder = tmp_path_factory.mktemp("formats")
    images = write_image_folder(folder / "images", images_per_class=70, size=(40, 30))
    data = FolderData(images, augment="none", batch_size=16, num_workers=0, val_fraction=0.3)
    torch.manual_seed(0)
    fit(folder, vit(), data, max_epochs=3)
    return folder


@pytest.fixture(scope="module")
def checkpoint(root):
    return root / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def whole(root, checkpoint):
    """A bundle with all formats; tests must not change it."""
    words = ["export", str(checkpoint), "--images", str(root / "images"), *SMALL]
    words += ["-o", str(root / "bundle"), "--int8", "--fp16", "--max-drop", "20"]
    words += ["--calibrate", "--reference", "--triton", str(root / "triton")]
    assert main(words) == 0
    return root / "bundle"


def parity(folder):
    return json.loads((folder / "parity.json").read_text())


def test_files(whole, root):
    names = {p.name for p in whole.iterdir()}
    assert {"model.onnx", "model.int8.onnx", "model.fp16.onnx", "reference.json"} <= names
    listed = json.loads((whole / "vfm.json").read_text())["files"]
    assert all(listed[name] == hash_file(whole / name) for name in names - {"vfm.json", "golden"})
    assert (whole / "model.fp16.onnx").stat().st_size < (whole / "model.onnx").stat().st_size
    # With --fp16 it is that graph which Triton gets.
    graphs = {hash_file(path) for path in (root / "triton").rglob("model.onnx")}
    assert hash_file(whole / "model.fp16.onnx") in graphs


def test_formats_are_measured(whole, root, checkpoint):
    stored = parity(whole)
    assert set(stored["precisions"]) == {"fp16", "int8"}
    images = Checkpoint.open(checkpoint).open_validation()
    for name, row in stored["precisions"].items():
        model = vfm_runtime.load(whole, device="cpu", precision=name)
        assert row["num_images"] == images.num_images > 50
        assert row["after"] == pytest.approx(images.measure(images.collect_outputs(model.run)))
        assert row["drop"] == pytest.approx(100 * (row["before"] - row["after"]))
        assert row["drop"] <= 20
        assert row["num_bytes"] == (whole / f"model.{name}.onnx").stat().st_size
        assert 0 < row["max_difference"] < 0.2
    assert stored["precisions"]["int8"]["how"]["max_drop"] == 20
    card = (whole / "card.md").read_text()
    assert re.search(r"^\| fp32 \| .* \| 0 \|", card, re.MULTILINE)
    assert re.search(r"^\| int8 \| ", card, re.MULTILINE)
    assert "- Temperature " in card
    assert "- Unsure beyond a distance of " in card


def test_each_format_replays_its_golden_answers(whole, capsys):
    assert runtime_main(["check", str(whole), "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    for name in ("fp32", "fp16", "int8"):
        assert f"OK: 3 golden answers, {name} on cpu" in out


def test_calibrated_scores_are_those_of_the_temperature(whole, root, checkpoint):
    model = vfm_runtime.load(whole, device="cpu", precision="fp32")
    temperature = model.task_type.heads[""].confidence.temperature
    assert temperature != 1
    path = next((root / "images").rglob("*.png"))
    logits = np.log(vfm.load(checkpoint, device="cpu").predict(path).scores)
    expected = np.exp(logits / temperature)
    found = model.predict(path)
    np.testing.assert_allclose(found.scores, expected / expected.sum(), atol=1e-5)
    assert found.distance is not None


def test_drift_is_watched(whole, root):
    model = vfm_runtime.load(whole, device="cpu", precision="fp32")
    model.monitor = vfm_runtime.DriftMonitor(model, window=60)
    noise = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    model.predict(noise)
    assert model.monitor.report().num_alerts == 1


def test_a_budget_that_cannot_be_held(root, checkpoint, monkeypatch, capsys):
    def worse(self, file):
        return {"": 0.9 if "int8" not in file.name else 0.5}

    monkeypatch.setattr(AccuracyMeter, "measure_heads", worse)
    words = ["export", str(checkpoint), "--images", str(root / "images"), *SMALL]
    assert main([*words, "-o", str(root / "none"), "--int8", "--max-drop", "1"]) == 1
    said = capsys.readouterr().err
    assert "8 bits lose 40.00 points of the metric (0.9000 to 0.5000)" in said
    assert "at most 1 may be lost" in said
    assert not (root / "none").exists()


def test_sixteen_bits_have_a_budget_too(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").touch()

    class Known:
        metric, num_images, baseline = "accuracy", 50, {"": 0.9}

        def measure_heads(self, file):
            return {"": 0.8}

        def combine(self, figures):
            return figures[""]

    monkeypatch.setattr(precisions, "write_fp16", lambda source, target: target.touch())
    text = "In fp16 the accuracy drops by 10.00 points, from 0.9000 to 0.8000; --max_drop is 0.5."
    with pytest.raises(BudgetError, match=re.escape(text)):
        precisions.write_precision("fp16", tmp_path, Known(), [], 0.5)
    assert not (tmp_path / "model.fp16.onnx").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--max-drop", "-1"], "--max_drop is -1. Give points from 0 up, such as 0.5."),
        (
            ["--min_precision", "0.9"],
            "--min_precision is 0.9, which calibration holds to. Add --cal",
        ),
        (["--opset", "99"], "--opset is 99; choices are 18 to 25."),
        (["--tolerance", "0"], "--tolerance is 0. Give a number above 0."),
        (["--num_images", "0"], "--num_images is 0. Give at least 1."),
        (
            ["--calibrate", "--min_precision", "95"],
            "--min_precision is 95. Give a share between 0 and 1, such as 0.95.",
        ),
        (["--data", "x"], "--data is x, but nothing is measured or fitted on it. Add --int8,"),
    ],
)
def test_options_without_sense(root, checkpoint, words, text, capsys):
    whole = ["export", str(checkpoint), "--images", str(root / "images"), "-o", str(root / "x")]
    assert main([*whole, *words]) == 1
    assert text in capsys.readouterr().err


def test_without_validation_images(checkpoint, root):
    task = BaseTask.load(checkpoint)
    photos = sorted((root / "images").rglob("*.png"))[:4]
    for option, text in [
        ("int8", "--int8 is measured on labelled validation images. Name them with --data."),
        ("calibrate", "--calibrate needs labelled validation images. Name them with --data."),
        ("reference", "--reference needs the checkpoint, which says what was trained on."),
    ]:
        with pytest.raises(ExportError, match=re.escape(text)):
            export_task(task, photos, root / "y", origin=ORIGIN, results={}, **{option: True})
    assert not (root / "y").exists()


def test_only_a_bundle_is_replaced(root, checkpoint, tmp_path, capsys):
    kept = tmp_path / "runs"
    kept.mkdir()
    (kept / "best.ckpt").write_bytes(b"weeks of work")
    file = tmp_path / "file"
    file.touch()
    words = ["export", str(checkpoint), "--images", str(root / "images"), "--overwrite"]
    for place in (kept, file):
        assert main([*words, "-o", str(place)]) == 1
        assert f"{place} is no bundle, so it is not replaced" in capsys.readouterr().err
    assert (kept / "best.ckpt").read_bytes() == b"weeks of work"


def test_triton_is_looked_at_before_any_work(root, checkpoint, tmp_path, capsys):
    words = ["export", str(checkpoint), "--images", str(root / "images")]
    out = tmp_path / "my bundle"
    assert main([*words, "-o", str(out), "--triton", str(tmp_path / "repo")]) == 1
    assert "my bundle" in capsys.readouterr().err
    assert not out.exists()


def test_the_reference_is_that_of_a_head_that_pools(root, heads):
    from vfm.bundle.multi_head import choose_ood_head
    from vfm.models.heads import AttentionPoolHead

    pools = BaseTask.load(heads[0])
    looks = vit(head=AttentionPoolHead(2))
    assert choose_ood_head({"looks": looks, "pools": pools}) == "pools"
    assert choose_ood_head({"looks": looks}) == "looks"


def test_from_python(root, checkpoint, tmp_path):
    model = vfm.load(checkpoint, device="cpu")
    found = model.export(
        tmp_path / "b", images=root / "images", calibrate=True, int8=True, max_drop=20
    )
    assert found.passed
    assert vfm.load(tmp_path / "b").precisions == ("fp32", "int8")


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Checkpoints of two heads on one frozen backbone."""
    folder = tmp_path_factory.mktemp("heads")
    made = []
    for name, data in {
        "shape": shapes(num_images=240),
        "more": shapes(num_images=240, seed=5),
    }.items():
        torch.manual_seed(0)
        fit(folder / name, vit(adapt="linear"), data, max_epochs=1)
        made.append(folder / name / "checkpoints" / "last.ckpt")
    return made


def test_several_checkpoints_become_one_bundle(heads, root, tmp_path, capsys):
    out = tmp_path / "bundle"
    words = [str(heads[0]), f"other={heads[1]}"]
    more = ["--images", str(root / "images"), *SMALL, "-o", str(out), "--int8", "--max_drop", "50"]
    assert main(["export", *words, *more, "--calibrate", "--reference", "--one_file"]) == 0
    model = vfm_runtime.load(out, device="cpu", precision="fp32")
    assert model.labels == ("shape", "other")
    path = next((root / "images").rglob("*.png"))
    answers = model.predict(path)
    for name, file in zip(model.labels, heads, strict=True):
        alone = vfm.load(file, device="cpu").predict(path)
        logits = np.log(alone.scores) / model.task_type.heads[name].confidence.temperature
        expected = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(answers[name].scores, expected, atol=1e-5)
    row = parity(out)["precisions"]["int8"]
    assert row["metric"] == "1 - largest drop"
    assert set(row["figures"]) == {"shape", "other"}
    assert runtime_main(["check", str(out), "--device", "cpu"]) == 0
    card = (out / "card.md").read_text()
    assert "## Head `shape`" in card
    assert "## Head `other`" in card


def test_several_checkpoints_have_data_of_their_own(heads, root, tmp_path, capsys):
    words = ["export", *map(str, heads), "--images", str(root / "images"), "--int8"]
    assert main([*words, "--data", str(root / "images"), "-o", str(tmp_path / "b")]) == 1
    assert (
        "there are 2 checkpoints with labels of their own. Leave it out" in capsys.readouterr().err
    )


def test_checkpoints_that_do_not_go_together(heads, checkpoint, root, tmp_path, capsys):
    words = ["export", str(heads[0]), f"b={checkpoint}", "--images", str(root / "images")]
    assert main([*words, "-o", str(tmp_path / "b")]) == 1
    assert "have other weights in their backbones" in capsys.readouterr().err


def sample(one, images, count=64, **options):
    """The images that the ranges of 8 bits are taken from."""
    chosen = ExportOptions(images="x", int8=True, **options)
    batches = bundle_export._use_training({"": one}, {"": images}, chosen)[1]
    assert sum(len(batch["pixels"]) for batch in batches) == count
    return {image.tobytes() for batch in batches for image in batch["pixels"]}


def test_ranges_come_from_training_images(root, checkpoint, caplog):
    one = Checkpoint.open(checkpoint)
    images = one.open_validation()
    held_out = {image.tobytes() for image in images.images.inputs["pixels"]}
    seen = sample(one, images)
    assert not held_out & seen
    # Those that are open already serve as well.
    assert sample(one, images, reference=True) == seen
    kept = shutil.copytree(root / "images", root / "kept")
    (root / "images").rename(root / "moved")
    try:
        gone = Checkpoint.open(checkpoint)
        with pytest.raises(ValueError, match="--data"):
            gone.open_validation()
        assert gone.open_validation(kept).num_images > 0
        assert sample(gone, images, count=63) <= held_out
    finally:
        (root / "moved").rename(root / "images")
        shutil.rmtree(kept)
    assert "The ranges of 8 bits are taken from validation images" in caplog.text


def test_options_say_what_needs_images():
    plain = ExportOptions(images="x")
    names = ("int8", "fp16", "calibrate", "reference")
    assert all(dataclasses.replace(plain, **{name: True}).needs_validation for name in names)
    assert not plain.needs_validation

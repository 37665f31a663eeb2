"""The bundle answers as the model does, and a bundle that does not is never written."""

import copy
import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
import vfm_runtime
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.cli import main as runtime_main
from vfm_runtime.media.image import open_image

from tests.bundle.in_memory import export_task
from tests.bundle.test_export import ORIGIN, one_model, save_checkpoint
from tests.conftest import LABELS
from vfm.bundle import Parity, ParityError, onnx_graphs
from vfm.bundle.parity import ImageParity, choose_images, compare
from vfm.cli import main
from vfm.preprocess import Preprocess
from vfm.tasks.predictor import TorchPredictor


def torch_scores(task, path):
    """The answer of torch, without vfm.bundle."""
    pixels = torch.from_numpy(task.preprocess.resize(open_image(path))[0])
    with torch.inference_mode():
        return task.answer(pixels[None])["scores"][0].numpy()


def test_runtime_answers_as_torch(exported, paths):
    model = vfm_runtime.load(exported.folder, device="cpu")
    expected = np.stack([torch_scores(exported.task, path) for path in paths])
    # The photos get answers that differ, or agreement would mean little.
    assert len(set(expected.argmax(1))) > 2
    assert expected.std(0).min() > 0.05
    alone = np.stack([model.predict(path).scores for path in paths])
    together = np.stack([p.scores for p in model.predict(paths, batch_size=len(paths))])
    np.testing.assert_allclose(alone, expected, atol=1e-4)
    np.testing.assert_allclose(together, expected, atol=1e-4)
    assert [LABELS[k] for k in expected.argmax(1)] == [model.predict(p).label for p in paths]


def test_onefile_answers_as_the_two_graphs(exported, paths):
    model = vfm_runtime.load(exported.folder, device="cpu")
    session = onnxruntime.InferenceSession(
        str(exported.folder / "onefile.onnx"), providers=["CPUExecutionProvider"]
    )
    for path in paths:
        scores = session.run(None, {"image": open_image(path)})[0]
        assert scores.shape == (1, len(LABELS))
        np.testing.assert_allclose(scores[0], model.predict(path).scores, atol=1e-6)


def test_parity_was_measured(exported, paths):
    parity = exported.parity
    assert parity.passed
    assert len(parity.images) == len(paths) >= 32
    assert {(1, 1), (2000, 3), (3, 2000)} <= {image.size for image in parity.images}
    assert parity.max_difference < 1e-4
    assert parity.num_changed == 0
    stored = json.loads((exported.folder / "parity.json").read_text())
    assert stored["passed"] is True
    assert stored["max_difference"] == parity.max_difference
    assert [image["name"] for image in stored["images"]] == [str(path) for path in paths]
    assert stored["tolerance"] == 1e-3


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
def test_preprocess_graph_gives_the_same_pixels(exported, paths, tmp_path, fit, interpolation):
    way = Preprocess(
        size=(47, 60), fit=fit, crop_fraction=0.9, interpolation=interpolation, mean=(0.2, 0.5, 0.8)
    )
    contract = Contract(
        task="classification",
        labels=LABELS,
        preprocess=way.to_dict(),
        backbone="none",
        license=None,
        versions={},
    )
    onnx_graphs.write_preprocess(tmp_path / "p.onnx", contract, way, 20)
    session = onnxruntime.InferenceSession(
        str(tmp_path / "p.onnx"), providers=["CPUExecutionProvider"]
    )
    for path in paths:
        image = open_image(path)
        expected = way.resize(image)[0].astype(int)
        pixels = session.run(None, {"image": image})[0]
        assert pixels.shape == (1, 47, 60, 3)
        difference = np.abs(pixels[0].astype(int) - expected)
        # Rounding may go the other way where a value lies half-way between two.
        assert difference.max() <= 1, path.name
        assert (difference > 0).mean() < 0.001, path.name


def test_check_passes_and_finds_a_changed_byte(exported, tmp_path, capsys):
    folder = shutil.copytree(exported.folder, tmp_path / "bundle")
    assert runtime_main(["check", str(folder), "--device", "cpu"]) == 0
    assert "OK: 6 golden answers" in capsys.readouterr().out
    content = bytearray((folder / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.onnx").write_bytes(content)
    assert runtime_main(["check", str(folder), "--device", "cpu"]) == 1
    assert "model.onnx is damaged" in capsys.readouterr().err


def tampered(exported, monkeypatch, change):
    """Let the weights change after the graphs were written."""

    def write_graphs(folder, contract, tasks, *_):
        for name in ("preprocess.onnx", "model.onnx"):
            shutil.copy(exported.folder / name, folder / name)
        change(tasks[""])

    monkeypatch.setattr("vfm.bundle.export._write_graphs", write_graphs)


def prefer_first(task):
    with torch.no_grad():
        task.head.linear.bias[0] += 20


@one_model
def test_bundle_that_disagrees_is_rejected(exported, photos, tmp_path, monkeypatch, capsys):
    checkpoint = save_checkpoint(exported.task, tmp_path / "best.ckpt")
    tampered(exported, monkeypatch, prefer_first)
    out = tmp_path / "out" / "b"
    words = ["export", str(checkpoint), "--images", str(photos), "-o", str(out)]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert "The bundle does not agree with the model on 36 images" in err
    assert "Traceback" not in err
    assert len(err[err.index("vfm: ") :].splitlines()) <= 12
    assert [p.name for p in out.parent.iterdir()] == ["b.rejected"]
    stored = json.loads((tmp_path / "out" / "b.rejected" / "parity.json").read_text())
    assert stored["passed"] is False
    assert stored["top1_changes"] > 0
    rows = stored["images"]
    rows.sort(key=lambda i: (i["torch_label"] != i["onnx_label"], i["difference"]), reverse=True)
    assert [row["name"] in err for row in rows] == [True] * 5 + [False] * (len(rows) - 5)
    assert str(out) + ".rejected" in err
    # A second try takes the place of the first.
    assert main(words) == 1
    assert [p.name for p in out.parent.iterdir()] == ["b.rejected"]


@one_model
def test_small_difference_is_rejected_by_the_tolerance(exported, tmp_path, monkeypatch):
    task = copy.deepcopy(exported.task)
    photo = Path(max(exported.parity.images, key=lambda i: i.size).name)
    best = int(torch_scores(task, photo).argmax())

    def nudge(task):
        with torch.no_grad():
            task.head.linear.bias[best] += 0.05

    tampered(exported, monkeypatch, nudge)
    with pytest.raises(ParityError, match="0 with another answer"):
        export_task(task, [photo] * 32, tmp_path / "b", origin=ORIGIN, results={})
    assert [p.name for p in tmp_path.iterdir()] == ["b.rejected"]
    task = copy.deepcopy(exported.task)
    parity = export_task(
        task, [photo] * 32, tmp_path / "b", origin=ORIGIN, results={}, tolerance=0.5
    )
    assert parity.passed
    assert 1e-3 < parity.max_difference < 0.5


@one_model
def test_a_failed_replacement_leaves_the_old_bundle(exported, paths, tmp_path, monkeypatch):
    old = shutil.copytree(exported.folder, tmp_path / "b")
    tampered(exported, monkeypatch, prefer_first)
    task = copy.deepcopy(exported.task)
    with pytest.raises(ParityError):
        export_task(task, paths, old, origin=ORIGIN, results={}, overwrite=True)
    assert runtime_main(["check", str(old), "--device", "cpu"]) == 0


@one_model
def test_a_model_that_answers_nan_is_refused(exported, paths):
    task = copy.deepcopy(exported.task)
    with torch.no_grad():
        task.head.linear.bias += float("nan")
    runtime = vfm_runtime.load(exported.folder, device="cpu")
    with pytest.raises(ValueError, match="answered with NaN"):
        compare(TorchPredictor(task), runtime, paths[:3], 1e-3)


def image(name, difference, onnx_label="a"):
    return ImageParity(name, (3, 4), difference, onnx_label != "a", "a", onnx_label)


def test_worst_images_come_first():
    images = (image("x", 1e-6), image("y", 0.2), image("z", 0.1, "b"))
    parity = Parity(images, 1e-3, {}, 1.0, 1.0, "cpu")
    assert [i.name for i in parity.rank_worst()][:2] == ["z", "y"]
    assert parity.max_difference == 0.2
    assert parity.num_changed == 1
    assert not parity.passed
    assert not dataclasses.replace(parity, tolerance=1.0).passed  # a label still changed
    assert dataclasses.replace(parity, images=images[:2], tolerance=0.2).passed
    assert not dataclasses.replace(parity, images=images[:2], tolerance=0.19).passed


def test_choice_is_spread_over_the_folder(photos, paths):
    chosen = choose_images(photos, 6)
    assert len(chosen) == len(set(chosen)) == 6
    assert (chosen[0], chosen[-1]) == (paths[0], paths[-1])
    assert choose_images(photos, 1000) == paths
    with pytest.raises(ParityError, match="There is no folder"):
        choose_images(photos / "nowhere", 6)

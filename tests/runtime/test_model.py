import json
import os
import select
import subprocess
import sys
import threading

import numpy as np
import onnxruntime
import pytest
import vfm_runtime
from PIL import Image
from vfm_runtime import BundleError, ImageError, Prediction, ProviderError, load
from vfm_runtime.bundle import predictor as predictor_module
from vfm_runtime.cpu_quota import choose_num_threads
from vfm_runtime.tasks.base import PredictionView
from vfm_runtime.tasks.classification import LabelPrediction

from tests.runtime import toy


def expected(bundle, photo):
    """The answer by ONNX Runtime and numpy alone."""
    session = onnxruntime.InferenceSession(
        str(bundle / "preprocess.onnx"), providers=["CPUExecutionProvider"]
    )
    return toy.expected_scores(session.run(None, {"image": photo})[0])[0]


def test_attributes(model, bundle):
    assert model.labels == toy.LABELS
    assert model.contract.backbone == "toy"
    assert model.device == "cpu"
    assert "model.onnx" in model.manifest.files
    assert repr(model) == f"Model({str(bundle)!r}, 3 classes, fp32 on cpu)"


def test_answers_are_right(model, bundle):
    photos = toy.photos()
    answers = model.predict(photos)
    for photo, answer in zip(photos, answers, strict=True):
        row = expected(bundle, photo)
        np.testing.assert_allclose(answer.scores, row, atol=1e-5)
        assert answer.label == toy.LABELS[int(row.argmax())]
        assert answer.score == pytest.approx(row.max(), abs=1e-5)
    # Else a model that ignores its input would pass.
    assert np.ptp([answer.scores for answer in answers], axis=0).max() > 0.01


def test_one_image_of_each_kind(model, tmp_path):
    photo = toy.photos()[0]
    path = tmp_path / "photo.png"
    Image.fromarray(photo).save(path)
    for source in (path, str(path), path.read_bytes(), photo, Image.fromarray(photo)):
        answer = model.predict(source)
        assert isinstance(answer, Prediction)
        assert answer == model.predict(photo)


def test_alone_and_in_a_batch(model):
    photos = toy.photos() * 3
    alone = [model.predict(photo) for photo in photos]
    for size in (1, 2, 9, 100):
        together = model.predict(photos, batch_size=size)
        assert [answer.label for answer in together] == [answer.label for answer in alone]
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one.scores, other.scores, atol=1e-6)


def test_containers(model):
    photo = toy.photos()[0]
    stack = np.stack([photo, photo[::-1]])
    answers = model.predict(stack)
    assert answers == model.predict(list(stack)) == model.predict(tuple(stack))
    assert len(answers) == 2
    assert answers[0] != answers[1]
    assert model.predict([]) == model.predict(()) == model.predict(stack[:0]) == []


def test_bad_images_raise_or_return(model):
    photo = toy.photos()[0]
    images = [photo, b"no image", photo, "missing.png"]
    answers = model.predict(images, batch_size=2, errors="return")
    assert [type(answer) for answer in answers] == [LabelPrediction, ImageError] * 2
    assert answers[0] == answers[2] == model.predict(photo)
    assert answers[3].source == "missing.png"
    assert isinstance(model.predict(b"", errors="return"), ImageError)
    assert len(model.predict([b"", b""], errors="return")) == 2
    with pytest.raises(ImageError, match="image of 8 bytes: not an image") as caught:
        model.predict(images)
    assert caught.value.__notes__ == ["It is number 2 of those given."]
    with pytest.raises(ImageError, match="missing"):
        model.predict("missing.png")


def test_only_one_batch_is_held(model, monkeypatch):
    opened, ran = [], []
    real_open, real_run = predictor_module.open_image, model.run
    monkeypatch.setattr(
        predictor_module, "open_image", lambda image, **more: opened.append(1) or real_open(image)
    )
    monkeypatch.setattr(
        model,
        "run",
        lambda inputs: ran.append((len(opened), len(inputs["pixels"]))) or real_run(inputs),
    )
    model.predict([toy.photos()[0]] * 7, batch_size=3)
    assert ran == [(3, 3), (6, 3), (7, 1)]


def test_threads_share_a_model(model):
    photos = toy.photos()
    expected_answers = model.predict(photos)
    wrong = []

    def work(index):
        for _ in range(20):
            if model.predict(photos[index % 3]).label != expected_answers[index % 3].label:
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_scores(model):
    pixels = model.preprocess(toy.photos()[0])
    assert pixels.shape == (1, 16, 16, 3)
    assert pixels.dtype == np.uint8
    scores = model.scores(np.concatenate([pixels, 255 - pixels]))
    assert scores.shape == (2, 3)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((1, 16, 17, 3), "uint8"),
        np.zeros((16, 16, 3), "uint8"),
        np.zeros((1, 16, 16, 3), "float32"),
    ],
)
def test_scores_refuses_other_pixels(model, pixels):
    text = r"the model takes uint8 of shape \[images, 16, 16, 3\]. Images of any other"
    with pytest.raises(ValueError, match=text):
        model.scores(pixels)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size is 0. Give at least 1"),
        ({"num_threads": 0}, "num_threads is 0. Give at least 1"),
        ({"device": "cudaa"}, "no device 'cudaa'. Did you mean 'cuda'"),
        ({"device": "tpu9"}, "Devices: auto, cpu, cuda"),
    ],
)
def test_bad_options_of_load(bundle, options, text):
    with pytest.raises(ValueError, match=text):
        load(bundle, **{"device": "cpu", **options})


def test_bad_options_of_predict(model):
    with pytest.raises(ValueError, match="Choices: 'raise', 'return'"):
        model.predict([], errors="ignore")
    with pytest.raises(ValueError, match="batch_size is -1"):
        model.predict([], batch_size=-1)


def test_num_threads_gives_the_same_answers(bundle, model):
    photo = toy.photos()[0]
    one = load(bundle, device="cpu", num_threads=1)
    np.testing.assert_allclose(one.predict(photo).scores, model.predict(photo).scores, atol=1e-6)


def test_swapped_files_are_refused(own_bundle):
    toy.save_onefile(own_bundle / "model.onnx", json.dumps(toy.CONTRACT))
    toy.write_vfm_json(own_bundle)
    with pytest.raises(BundleError, match=r"takes and gives \(image: tensor\(uint8\), scores"):
        load(own_bundle, device="cpu")


def test_file_that_onnx_runtime_cannot_load(own_bundle):
    (own_bundle / "model.onnx").write_bytes(b"not a protobuf")
    toy.write_vfm_json(own_bundle)
    with pytest.raises(BundleError, match=r"model.onnx cannot be loaded by ONNX Runtime \d"):
        load(own_bundle, device="cpu")


def test_labels_of_another_number_are_refused(own_bundle):
    toy.save_model(own_bundle / "model.onnx", json.dumps(toy.CONTRACT), weights=toy.WEIGHTS[:, :2])
    toy.write_vfm_json(own_bundle)
    with pytest.raises(BundleError, match="answers with 2 scores, the contract has 3 labels"):
        load(own_bundle, device="cpu")


def test_a_failing_run_names_file_and_remedy(model, monkeypatch):
    # A model whose input is not what it says cannot be made by hand, a wrong call can.
    with pytest.raises(
        ProviderError, match=r"model.onnx failed on cpu .* use a smaller batch_size"
    ):
        model._run(model._model, "model.onnx", {"pixels": np.zeros((1, 2, 2, 3), "float32")})


def test_nan_is_no_answer(own_bundle):
    toy.save_model(
        own_bundle / "model.onnx", json.dumps(toy.CONTRACT), weights=toy.WEIGHTS * np.float32("nan")
    )
    toy.write_vfm_json(own_bundle)
    with pytest.raises(ValueError, match=r"NaN or infinite scores. Check the bundle"):
        load(own_bundle, device="cpu").predict(toy.photos()[0])


def test_prediction():
    answer = LabelPrediction.from_scores([0.2, 0.5, 0.3], ["a", "b", "c"])
    assert (answer.label, answer.score, answer.labels) == ("b", 0.5, ("a", "b", "c"))
    assert answer.scores.dtype == np.float32
    assert answer.top(2) == [("b", 0.5), ("c", pytest.approx(0.3))]
    assert [label for label, _ in answer.top(9)] == ["b", "c", "a"]
    assert repr(answer) == "LabelPrediction('b', 0.500, 3 classes)"
    plain = answer.to_dict(PredictionView(top=1))
    assert json.loads(json.dumps(plain)) == {
        "task": "classification",
        "label": "b",
        "score": 0.5,
        "top": [{"label": "b", "score": 0.5}],
    }
    assert answer == LabelPrediction.from_scores(answer.scores, answer.labels)
    assert answer != LabelPrediction.from_scores([0.2, 0.4, 0.4], ["a", "b", "c"])
    assert answer != LabelPrediction.from_scores([0.2, 0.5, 0.3], ["a", "b", "d"])
    assert answer != "b"


def test_prediction_ties_keep_the_order_of_the_labels():
    answer = LabelPrediction.from_scores([0.25, 0.5, 0.25], ["a", "b", "c"])
    assert [label for label, _ in answer.top()] == ["b", "a", "c"]


def test_prediction_is_its_own_and_read_only():
    scores = np.array([0.2, 0.8], "float32")
    answer = LabelPrediction.from_scores(scores, ["a", "b"])
    scores[:] = 0
    assert answer.scores[1] == np.float32(0.8)
    with pytest.raises(ValueError, match="read-only"):
        answer.scores[0] = 1


@pytest.mark.parametrize(
    ("scores", "labels", "text"),
    [
        ([0.5, 0.5], ["a"], r"shape \[2\] but there are 1 labels"),
        ([], [], "0 labels"),
        ([[0.5]], ["a"], r"shape \[1, 1\]"),
        ([0.5, float("inf")], ["a", "b"], "NaN or infinite"),
    ],
)
def test_bad_predictions(scores, labels, text):
    with pytest.raises(ValueError, match=text):
        LabelPrediction.from_scores(scores, labels)


def test_top_needs_a_class():
    with pytest.raises(ValueError, match=r"k is 0. Ask for at least 1"):
        LabelPrediction.from_scores([1.0], ["a"]).top(0)


def run_python(code, *words):
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
    ).stdout


def test_a_prediction_needs_neither_torch_nor_vfm(bundle, tmp_path):
    Image.fromarray(toy.photos()[0]).save(tmp_path / "photo.jpg")
    code = (
        "import sys, vfm_runtime\n"
        "answer = vfm_runtime.load(sys.argv[1], device='cpu').predict(sys.argv[2])\n"
        "print(answer.label, 'onnxruntime' in sys.modules, *({'torch', 'vfm'} & set(sys.modules)))"
    )
    words = run_python(code, str(bundle), str(tmp_path / "photo.jpg")).split()
    assert words[0] in toy.LABELS
    assert words[1:] == ["True"]


def test_import_is_light():
    code = (
        "import sys, time\n"
        "start = time.perf_counter()\n"
        "import vfm_runtime\n"
        "print(time.perf_counter() - start)\n"
        "print(*({'numpy', 'PIL', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    seconds, modules = run_python(code).split("\n")[:2]
    assert float(seconds) < 0.3
    assert modules == ""


def test_public_names():
    assert set(vfm_runtime.__all__) <= set(dir(vfm_runtime))
    for name in vfm_runtime.__all__:
        assert getattr(vfm_runtime, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        vfm_runtime.laod  # noqa: B018


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_model_answers_after_a_fork(bundle):
    model = load(bundle, num_threads=2)
    photo = toy.photos()[0]
    expected = model.predict(photo).scores  # its threads run now, and stay behind
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, model.predict(photo).scores.tobytes())
        os._exit(0)
    assert select.select([reader], [], [], 60)[0], "the forked process hangs"
    assert os.read(reader, 10_000) == expected.tobytes()
    os.waitpid(child, 0)


def test_a_gpu_does_not_survive_a_fork(bundle, monkeypatch):
    model = load(bundle)
    monkeypatch.setattr(model, "device", "cuda")
    monkeypatch.setattr(model, "_process", -1)
    with pytest.raises(ProviderError, match=r"before this process was forked.*'spawn'"):
        model.predict(toy.photos()[0])


@pytest.mark.parametrize(("usable", "threads"), [(1, 1), (3, 3), (64, None)])
def test_threads_follow_the_quota_of_the_container(monkeypatch, usable, threads):
    monkeypatch.setattr("vfm_runtime.cpu_quota.count_usable_cores", lambda: usable)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert choose_num_threads(None) == threads
    assert choose_num_threads(7) == 7

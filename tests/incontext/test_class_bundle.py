"""`vfm classify --bundle`: class means are inputs of the graph with a default, which any client may replace."""

import numpy as np
import onnxruntime
import pytest
import vfm_runtime
from vfm_runtime.cli import main as runtime_main
from vfm_runtime.errors import OptionError
from vfm_runtime.heads_on_features import AffineHead, fit_nearest_mean

from tests.runtime import toy, toy_embedder
from vfm.cli import main
from vfm.incontext.class_bundle import write_class_bundle

COLORS = {"red": (200, 40, 40), "blue": (40, 40, 200)}
GREEN = (40, 200, 40)


def test_classes_are_inputs_with_a_default(tmp_path, capsys):
    source = toy_embedder.build(tmp_path / "embedder")
    examples, out = tmp_path / "examples", tmp_path / "out"
    for name, color in COLORS.items():
        toy_embedder.write_pictures(examples / name, color, 3)
    words = ["classify", examples, "--examples", examples, "--model", source, "--bundle", out]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    assert "labels by the nearest mean of each class" in capsys.readouterr().err
    assert runtime_main(["check", str(out), "--device", "cpu"]) == 0
    model = vfm_runtime.load(out, device="cpu")
    assert model.labels == ("blue", "red")
    pictures = [toy_embedder.paint(color, 1, seed=1)[0] for color in (*COLORS.values(), GREEN)]
    assert [one.label for one in model.predict(pictures[:2])] == ["red", "blue"]
    assert model.embed(pictures).shape == (3, toy_embedder.WIDTH)
    assert "blue (3), red (3)" in (out / "card.md").read_text()
    # A bare client of ONNX Runtime adds a class: a row of its own.
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    names = ["class_matrix", "class_bias", "class_center"]
    assert [one.name for one in session.get_inputs()] == ["pixels"]
    assert [one.name for one in session.get_overridable_initializers()] == names
    vectors = model.embed(
        [p for color in (*COLORS.values(), GREEN) for p in toy_embedder.paint(color, 3)]
    )
    head = fit_nearest_mean(vectors, np.repeat([0, 1, 2], 3))
    taught = dict(zip(names, (head.weight, head.bias, head.center), strict=True))
    taught = {name: values.astype(np.float32) for name, values in taught.items()}
    inputs = {"pixels": np.concatenate([model.preprocess(picture) for picture in pictures])}
    (scores,) = session.run(["scores"], {**inputs, **taught})
    assert scores.argmax(1).tolist() == [0, 1, 2]
    assert session.run(["scores"], inputs)[0].shape == (3, 2)


def test_words_of_a_sigmoid_pair_have_a_probability_each(tmp_path):
    source = toy_embedder.build(tmp_path / "embedder", text=True, bias=-2.0)
    images, out = tmp_path / "images", tmp_path / "out"
    toy_embedder.write_pictures(images, COLORS["red"], 2)
    words = ["classify", images, "--labels", "red,blue", "--model", source, "--bundle", out]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    assert runtime_main(["check", str(out), "--device", "cpu"]) == 0
    model = vfm_runtime.load(out, device="cpu")
    (pixels,) = toy_embedder.paint(COLORS["red"], 1, seed=1)
    vector = model.embed(pixels)
    logits = 20 * model.embed_text(["red", "blue"]) @ vector / np.linalg.norm(vector) - 2
    np.testing.assert_allclose(model.predict(pixels).scores, 1 / (1 + np.exp(-logits)), atol=1e-4)
    assert (
        "By the mean of the vectors of some prompts each: red (3)" in (out / "card.md").read_text()
    )


def test_what_cannot_be_written_is_refused(tmp_path):
    head = AffineHead(np.eye(2, toy_embedder.WIDTH), np.zeros(2))
    other = toy.build(tmp_path / "toy", onefile=False)
    with pytest.raises(OptionError, match="and has labels of its own"):
        write_class_bundle(other, head, ["a", "b"], tmp_path / "out", note="")
    source = toy_embedder.build(tmp_path / "embedder")
    with pytest.raises(OptionError, match=r"is there already\. Name a folder that is not"):
        write_class_bundle(source, head, ["a", "b"], other, note="")
    assert not list(tmp_path.glob(".out*"))

"""`vfm classify`: labels by a few examples, judged by leave-one-out, or not at all where nothing can judge."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from vfm_runtime.errors import DataError, OptionError

import vfm
from tests.image_folders import write_image_folder
from tests.runtime.toy_embedder import paint
from vfm.cli import main
from vfm.incontext.few_shot import fit_few_shot
from vfm.incontext.support_curve import format_points, measure_supports, write_curve
from vfm.models.backbone import Backbone
from vfm.training import frozen_heads


def draw(number, seed=0, spread=1.0):
    """Vectors of three classes around their own directions, [3 * number, 32]."""
    random = np.random.default_rng(seed)
    centers = 2 * np.random.default_rng(99).normal(size=(3, 32))
    labels = [name for name in "abc" for _ in range(number)]
    vectors = np.repeat(centers, number, 0) + spread * random.normal(size=(3 * number, 32))
    return vectors.astype(np.float32), labels


def write_weights(folder):
    torch.manual_seed(1)
    weights = folder / "vit.safetensors"
    save_file(Backbone("test_vit", pretrained=False).model.state_dict(), weights)
    return weights


@pytest.mark.parametrize("number", [1, 2, 8, 80])
def test_examples_teach_and_are_judged(number):
    classifier = fit_few_shot(*draw(number))
    vectors, labels = draw(30, seed=1)
    scores = classifier.score(vectors)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    answers = [classifier.labels[i] for i in scores.argmax(1)]
    right = np.mean([a == b for a, b in zip(answers, labels, strict=True)])
    assert right > (0.85 if number == 2 else 0.95)
    if number == 1:
        assert classifier.accuracy is None
        assert classifier.name == "nearest mean"
        assert "one example" in classifier.way
        return
    assert classifier.way == ("10 folds" if number == 80 else "leave-one-out of each class")
    low, high = classifier.accuracy.low, classifier.accuracy.high
    assert low < classifier.accuracy.value <= high
    # A few right answers prove little.
    assert low < 0.9 if number < 8 else low > 0.8


def test_the_heads_are_those_of_tune(monkeypatch):
    # Time stands still: on a busy machine it would end the repeats of one of the two sooner.
    clock = SimpleNamespace(perf_counter=lambda: 0.0)
    monkeypatch.setattr(frozen_heads, "time", clock)
    vectors, labels = draw(8, spread=2.0)
    classifier = fit_few_shot(vectors, labels)
    pool_heads = frozen_heads.FrozenHeads(
        {"pooled": vectors}, np.repeat([0, 1, 2], 8), 3, list(map(str, range(24)))
    )
    pool_heads.judge(240)
    assert classifier.name == pool_heads.best.name
    assert classifier.accuracy == pool_heads.choice.interval
    assert len({head.family for head in classifier.heads.heads}) == 5


def test_a_lone_example_counts_as_a_mistake_and_is_said():
    vectors, labels = draw(8)
    classifier = fit_few_shot(vectors[:17], labels[:17])
    assert "(1 of 3 classes have one example, which counts as a mistake)" in classifier.way
    assert 0.7 < classifier.accuracy.value < 0.99
    # Copies of one picture are one example.
    keys = ["a"] * 8 + ["b"] * 8 + ["c"]
    assert fit_few_shot(vectors[:17], labels[:17], keys=keys).accuracy is None


def test_noise_is_called_noise():
    vectors, labels = draw(20, spread=100.0)
    assert fit_few_shot(vectors, labels).accuracy.low < 0.5


def test_the_command_labels_images(tmp_path, capsys):
    weights = write_weights(tmp_path)
    examples = write_image_folder(tmp_path / "examples", num_classes=2, images_per_class=4)
    images = write_image_folder(tmp_path / "images", num_classes=2, images_per_class=3, seed=1)
    (images / "broken.png").write_bytes(b"none")
    words = ["classify", images, "--examples", examples, "--model", "test_vit", "--base", weights]
    words = [str(word) for word in words]
    assert main([*words, "--json", "true"]) == 0
    shown = capsys.readouterr()
    answers = [json.loads(line) for line in shown.out.splitlines()]
    assert len(answers) == 6
    assert {answer["label"] for answer in answers} <= {p.name for p in examples.iterdir()}
    assert "8 examples of 2 classes (4 to 4 each); " in shown.err
    assert "leave-one-out of each class: " in shown.err
    assert "unreadable: " in shown.err

    (examples / "loose.png").write_bytes((next(examples.glob("*/*.png"))).read_bytes())
    assert main(words) == 1
    assert "lies in no folder of a class" in capsys.readouterr().err
    (examples / "loose.png").unlink()
    (examples / "empty").mkdir()
    assert main(words) == 1
    assert "The class 'empty' in" in capsys.readouterr().err
    (examples / "empty" / "x.png").write_bytes(next(examples.glob("*/*.png")).read_bytes())
    assert main(words) == 1
    assert "are the same picture, as examples of two classes. Delete" in capsys.readouterr().err
    (examples / "empty" / "x.png").write_bytes(b"none")
    assert main(words) == 1
    assert "No example of 'empty'" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"of 1 class\. Give examples of two"):
        fit_few_shot(np.ones((2, 3), np.float32), ["a", "a"])


def test_a_curve_of_random_supports(tmp_path):
    vectors, labels = draw(5)
    points = measure_supports(vectors, labels, draws=3)
    assert [point.shots for point in points] == [1, 2, 4]
    assert all(len(point.accuracies) == 3 for point in points)
    assert points[-1].interval.value > 0.9
    assert points[0].heads == ("nearest mean",) * 3
    # Copies are never on both sides.
    keys = [f"{label}{i % 5 // 2}" for i, label in enumerate(labels)]
    assert [point.shots for point in measure_supports(vectors, labels, keys=keys)] == [1, 2]
    write_curve(tmp_path / "curve", points, "15 examples")
    rows = json.loads((tmp_path / "curve" / "curve.json").read_text())["points"]
    assert rows[1]["shots"] == 2
    assert rows[1]["low"] <= rows[1]["value"] <= rows[1]["high"]
    assert format_points(points).splitlines()[1].split()[0] == "1"
    assert "What more examples are worth" in (tmp_path / "curve" / "curve.html").read_text()
    with pytest.raises(DataError, match="The class 'c' has 1 example, and a curve"):
        measure_supports(vectors[:11], labels[:11])
    with pytest.raises(OptionError, match=r"draws is 1\. Give 2 or more"):
        measure_supports(vectors, labels, draws=1)


def test_a_checkpoint_is_taught_as_a_bundle_is(tmp_path):
    model = vfm.load("test_vit", base=write_weights(tmp_path))
    model.keep_state(tmp_path / "state")
    for name, color in (("red", (200, 30, 30)), ("blue", (30, 30, 200))):
        model.teach(name, paint(color, 2))
    assert model.why(paint((200, 30, 30), 1, seed=1)[0]).prediction.label == "red"
    # Another choice of vectors does not mix with what was taught.
    model.embed(paint((1, 2, 3), 1), source="patches")
    model.teach("green", paint((30, 200, 30), 1))
    assert model.why(paint((30, 200, 30), 1)[0]).evidence[0].similarity > 0.999

"""`vfm classify`: labels by a few examples, judged by leave-one-out, or not at all where nothing can judge."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from vfm_runtime.errors import DataError

from tests.image_folders import write_image_folder
from vfm.cli import main
from vfm.incontext.few_shot import fit_few_shot
from vfm.models.backbone import Backbone


def draw(number, seed=0, spread=1.0):
    """Vectors of three classes around their own directions, [3 * number, 32]."""
    random = np.random.default_rng(seed)
    centers = 2 * np.random.default_rng(99).normal(size=(3, 32))
    labels = [name for name in "abc" for _ in range(number)]
    vectors = np.repeat(centers, number, 0) + spread * random.normal(size=(3 * number, 32))
    return vectors.astype(np.float32), labels


@pytest.mark.parametrize("number", [1, 2, 8, 80])
def test_examples_teach_and_are_judged(number):
    classifier = fit_few_shot(*draw(number))
    vectors, labels = draw(30, seed=1)
    scores = classifier.score(vectors)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-9)
    answers = [classifier.labels[i] for i in scores.argmax(1)]
    assert np.mean([a == b for a, b in zip(answers, labels, strict=True)]) > 0.95
    if number == 1:
        assert classifier.accuracy is None
        assert classifier.name == "nearest mean"
        assert "one example" in classifier.way
        return
    assert classifier.way == ("10 folds" if number == 80 else "leave-one-out")
    low, high = classifier.accuracy.low, classifier.accuracy.high
    assert low < classifier.accuracy.value <= high
    # A few right answers prove little.
    assert low < 0.9 if number < 8 else low > 0.8


def test_noise_is_called_noise():
    vectors, labels = draw(20, spread=100.0)
    assert fit_few_shot(vectors, labels).accuracy.low < 0.5


def test_the_command_labels_images(tmp_path, capsys):
    torch.manual_seed(1)
    weights = tmp_path / "vit.safetensors"
    save_file(Backbone("test_vit", pretrained=False).model.state_dict(), weights)
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
    assert "leave-one-out: " in shown.err
    assert "unreadable: " in shown.err

    (examples / "loose.png").write_bytes((next(examples.glob("*/*.png"))).read_bytes())
    assert main(words) == 1
    assert "lies in no folder of a class" in capsys.readouterr().err
    (examples / "loose.png").unlink()
    (examples / "empty").mkdir()
    assert main(words) == 1
    assert "The class 'empty' in" in capsys.readouterr().err
    (examples / "empty" / "x.png").write_bytes(b"none")
    assert main(words) == 1
    assert "No example of 'empty'" in capsys.readouterr().err
    with pytest.raises(DataError, match=r"of 1 class\. Give examples of two"):
        fit_few_shot(np.ones((2, 3), np.float32), ["a", "a"])

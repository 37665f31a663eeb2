"""Tip-Adapter: classes as words and a few examples together, where neither alone is enough."""

import json

import numpy as np
import pytest
from vfm_runtime.zero_shot import ZeroShotClassifier

from tests.runtime import toy_embedder
from vfm.cli import main
from vfm.heads_on_features.tip_adapter import TipAdapter
from vfm.incontext.few_shot import fit_few_shot
from vfm.incontext.support_curve import measure_supports

LABELS = ("a", "b", "c", "d")


def draw(number, seed):
    """Vectors of four classes in much noise, with a direction that words know and one that examples alone show."""
    random = np.random.default_rng(seed)
    classes = np.repeat(np.arange(4), number)
    vectors = 0.4 * random.normal(size=(4 * number, 64))
    vectors[np.arange(4 * number), classes] += 0.6
    vectors[np.arange(4 * number), 8 + classes] += 0.8
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), [LABELS[i] for i in classes]


def read_words():
    """The classes as words, in another order than that of their names."""
    return ZeroShotClassifier(LABELS[::-1], np.eye(4, 64, dtype=np.float32)[::-1], 10.0, None)


def test_logits_are_those_of_the_paper():
    random = np.random.default_rng(0)
    words, examples, images = (random.normal(size=(n, 8)) for n in (3, 5, 2))
    words, examples, images = (
        v / np.linalg.norm(v, axis=1)[:, None] for v in (words, examples, images)
    )
    target = np.array([0, 1, 2, 2, 1])
    logits = TipAdapter(words, 100.0, alpha=2.0, beta=5.5).compute_logits(images, examples, target)
    for m in range(2):
        for c in range(3):
            cached = sum(np.exp(-5.5 * (1 - images[m] @ f)) for f in examples[target == c])
            assert logits[m, c] == pytest.approx(2 * cached + 100 * images[m] @ words[c])


def test_it_is_chosen_where_words_and_examples_complete_each_other():
    vectors, labels = draw(4, seed=5)
    others, truth = draw(300, seed=99)

    def judge(classifier):
        answers = np.array(classifier.labels)[classifier.score(others).argmax(1)]
        return (answers == np.array(truth)).mean()

    alone = fit_few_shot(vectors, labels)
    both = fit_few_shot(vectors, labels, words=read_words())
    names = {head.family for head in both.heads.heads}
    assert {"Tip-Adapter", "words alone"} <= names
    assert {"Tip-Adapter", "words alone"} & {head.family for head in alone.heads.heads} == set()
    assert both.name == "Tip-Adapter"
    assert both.accuracy.low < both.accuracy.value <= both.accuracy.high
    words = read_words().score(others).argmax(1)
    by_words = (np.array(LABELS[::-1])[words] == np.array(truth)).mean()
    assert judge(both) > max(judge(alone), by_words) + 0.02


def test_one_example_of_each_class_is_read_with_its_name():
    vectors, labels = draw(1, seed=0)
    classifier = fit_few_shot(vectors, labels, words=read_words())
    assert (classifier.name, classifier.accuracy) == ("Tip-Adapter, as published", None)
    others, _ = draw(50, seed=1)
    scores = classifier.score(others)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    expected = TipAdapter(read_words().vectors[::-1], 10.0).compute_logits(
        others, vectors, np.arange(4)
    )
    assert (scores.argmax(1) == expected.argmax(1)).all()


def test_the_command_reads_the_names_of_folders(tmp_path, capsys):
    bundle = toy_embedder.build(tmp_path / "bundle", text=True)
    for name in ("red", "blue"):
        toy_embedder.write_pictures(tmp_path / "examples" / name, toy_embedder.COLORS[name], 1)
        toy_embedder.write_pictures(tmp_path / "images", toy_embedder.COLORS[name], 1)
    words = ["classify", str(tmp_path / "examples"), "--examples", str(tmp_path / "examples")]
    words += ["--model", str(bundle), "--device", "cpu", "--templates", '["{}"]', "--json", "true"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert "Tip-Adapter, as published, not judged" in shown.err
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert [f"/{row['label']}/" in row["image"] for row in rows] == [True, True]
    plain = toy_embedder.build(tmp_path / "plain")
    assert main([*words[:5], str(plain), *words[6:]]) == 1
    assert "--templates is a text for words, and" in capsys.readouterr().err


@pytest.mark.slow
def test_a_curve_reads_names_too():
    vectors, labels = draw(6, seed=3)
    points = measure_supports(vectors, labels, draws=2, words=read_words())
    assert points[0].heads == ("Tip-Adapter, as published",) * 2

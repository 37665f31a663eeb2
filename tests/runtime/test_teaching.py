"""Teach, forget and why: kept with a version, refused with a cause, and nothing left of what was forgotten."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import vfm_runtime
from vfm_runtime.cli import main
from vfm_runtime.errors import DataError, OptionError, StateError
from vfm_runtime.heads_on_features import fit_lda, fit_nearest_mean, scale_features
from vfm_runtime.media.image import ImageError
from vfm_runtime.teaching import store as stores
from vfm_runtime.teaching.state import MOST_CLASSES, TaughtExample, TaughtState
from vfm_runtime.teaching.store import STATE_FILE

from tests.runtime import toy_embedder

RED, BLUE, GREEN = (200, 40, 40), (40, 40, 200), (40, 200, 40)


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return toy_embedder.build(tmp_path_factory.mktemp("embedder") / "bundle")


@pytest.fixture
def taught(embedder, tmp_path):
    """A model that was taught red and blue, in the folder `state`."""
    model = vfm_runtime.load(embedder, device="cpu", state=tmp_path / "state")
    model.teach("red", toy_embedder.paint(RED, 3))
    model.teach("blue", toy_embedder.write_pictures(tmp_path / "blue", BLUE, 2))
    return model


def list_answers(model, color):
    pictures = toy_embedder.paint(color, 4, seed=1)
    return [one.prediction.label for one in model.why(pictures)]


def test_classes_are_taught_explained_and_forgotten(taught, embedder, tmp_path):
    assert list_answers(taught, RED) == ["red"] * 4
    assert list_answers(taught, BLUE) == ["blue"] * 4
    before = {path: path.read_bytes() for path in embedder.rglob("*") if path.is_file()}
    assert taught.teach("green", toy_embedder.paint(GREEN, 5)).version == 3
    one = taught.why(toy_embedder.paint(GREEN, 1, seed=1)[0], num_nearest=2)
    assert one.prediction.label == "green"
    assert [evidence.example.label for evidence in one.evidence] == ["green"] * 2
    assert one.evidence[0].similarity >= one.evidence[1].similarity
    assert one.to_dict()["state_version"] == 3
    # Another process, or the next start, goes on from there; the bundle is as it was.
    again = vfm_runtime.load(embedder, device="cpu", state=tmp_path / "state")
    assert again.taught.state.counts == {"red": 3, "blue": 2, "green": 5}
    assert again.forget("green").version == 4
    assert "green" not in list_answers(taught, GREEN)
    assert before == {path: path.read_bytes() for path in embedder.rglob("*") if path.is_file()}
    # More of a class is added to it, and what it has already is not.
    assert taught.teach("red", toy_embedder.paint(RED, 4)).counts["red"] == 4
    assert taught.taught.state.version == 5
    assert taught.teach("red", toy_embedder.paint(RED, 4)).version == 5
    assert taught.predict(toy_embedder.paint(RED, 1)[0]).vector.shape == (toy_embedder.WIDTH,)


def test_pictures_are_kept_if_asked_and_nothing_of_the_forgotten_is_left(embedder, tmp_path):
    folder = tmp_path / "state"
    model = vfm_runtime.load(embedder, device="cpu", state=folder, keep_pictures=True)
    model.teach("red", toy_embedder.write_pictures(tmp_path / "red", RED, 2))
    model.teach("blue", toy_embedder.paint(BLUE, 2))
    evidence = model.why(toy_embedder.paint(RED, 1, seed=1)[0]).evidence[0]
    assert vfm_runtime.open_image(evidence.picture).shape == (24, 32, 3)
    assert evidence.example.name in ("0.png", "1.png")
    vectors = model.taught.state.vectors[:2].tobytes()
    assert vectors in (folder / STATE_FILE).read_bytes()
    model.forget("red")
    for path in folder.rglob("*"):
        data = path.read_bytes()
        assert vectors not in data
        assert evidence.picture not in data
        assert evidence.example.sha256.encode() not in data
    # By default vectors alone.
    bare = vfm_runtime.load(embedder, device="cpu", state=tmp_path / "bare")
    bare.teach("red", toy_embedder.paint(RED, 2))
    assert bare.taught.state.pictures == (b"", b"")


def test_two_processes_that_teach_at_once_lose_nothing(embedder, tmp_path):
    code = """if True:
        import sys, vfm_runtime
        from tests.runtime import toy_embedder
        model = vfm_runtime.load(sys.argv[1], device="cpu", state=sys.argv[2])
        for i in range(8):
            model.teach(f"{sys.argv[3]}{i}", toy_embedder.paint((int(sys.argv[3]), i, 7), 1))
    """
    words = [sys.executable, "-c", code, str(embedder), str(tmp_path)]
    processes = [subprocess.Popen([*words, str(number)], env=os.environ) for number in (1, 2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    state = vfm_runtime.load(embedder, device="cpu", state=tmp_path).taught.state
    assert state.version == len(state.labels) == len(state.examples) == 16


def test_bad_lessons_are_refused_and_change_nothing(taught, tmp_path):
    red = toy_embedder.paint(RED, 1)
    notes = tmp_path / "notes.png"
    notes.write_text("no picture")
    for label, images, kind, text in [
        ("  ", red, OptionError, "The label is '  '. Give a name of 1 to 200"),
        ("a\nb", red, OptionError, "characters that can be shown"),
        ("red", [], OptionError, "There are no images of 'red'. Give one or more of each class."),
        ("new", [*toy_embedder.paint(GREEN, 2), notes], ImageError, "not an image"),
        ("new", tmp_path / "none.png", ImageError, "no such file"),
        ("blue", red, DataError, "is an example of 'red' already, and cannot be one of 'blue' too"),
    ]:
        with pytest.raises(kind) as caught:
            taught.teach(label, images)
        assert text in str(caught.value)
    with pytest.raises(OptionError, match="The label 'x' stands twice"):
        taught.taught.teach({"x": red, " x ": red})
    with pytest.raises(OptionError, match="There are no images of 'none'"):
        taught.taught.teach({"green": toy_embedder.paint(GREEN, 1), "none": []})
    with pytest.raises(OptionError, match=r"no taught class 'green'\. Taught: 'red', 'blue'\."):
        taught.forget("green")
    assert taught.taught.state.version == 2
    taught.forget("red")
    with pytest.raises(StateError, match=r"1 class was taught\. Teach two or more"):
        taught.why(red)


def test_ten_thousand_classes_and_no_more(embedder):
    model = vfm_runtime.load(embedder, device="cpu")  # in memory alone
    vectors = np.random.default_rng(0).normal(size=(MOST_CLASSES, toy_embedder.WIDTH))
    examples = [TaughtExample(f"class {i}", f"{i:064x}", "") for i in range(MOST_CLASSES)]
    model.taught.add(examples, vectors.astype(np.float32), [b""] * MOST_CLASSES)
    (one,) = model.taught.explain(vectors[77:78].astype(np.float32))
    assert one.prediction.label == "class 77"
    with pytest.raises(OptionError, match="That would make 10,001 classes; a state holds 10,000"):
        model.teach("one more", toy_embedder.paint(RED, 1))
    assert len(model.taught.state.labels) == MOST_CLASSES


def test_a_full_disk_leaves_the_state_readable(taught, monkeypatch, tmp_path):
    def fail(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(stores.os, "fsync", fail)
        with pytest.raises(
            StateError, match=r"cannot be written \(No space left on device\)\. What was"
        ):
            taught.teach("green", toy_embedder.paint(GREEN, 1))
        with pytest.raises(StateError, match="Make room"):
            taught.forget("red")
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == [".lock", STATE_FILE]
    assert taught.taught.state.version == 2
    assert list_answers(taught, RED) == ["red"] * 4


def test_states_that_do_not_belong_are_refused(taught, embedder, tmp_path):
    other = toy_embedder.build(tmp_path / "other", "fedcba9876543210")
    with pytest.raises(DataError, match="was taught to another model: its vectors have the finger"):
        vfm_runtime.load(other, device="cpu", state=tmp_path / "state")
    path, store = tmp_path / "out.npz", taught.taught.store
    store.export(path)
    good = path.read_bytes()
    newer = TaughtState.read(path).to_bytes().replace(b'"format": 1', b'"format": 9')
    for data, text in [
        (b"", "not a zip file"),
        (good[:-100], "no state of taught classes"),
        (newer, "its format is 9"),
    ]:
        path.write_bytes(data)
        with pytest.raises(DataError) as caught:
            store.import_file(path)
        assert "that can be read" in str(caught.value)
        if "format" not in text:
            assert text.split()[0] in str(caught.value)
    with pytest.raises(DataError, match="There is no file"):
        store.import_file(tmp_path / "none.npz")
    path.write_bytes(good)
    replica = vfm_runtime.load(embedder, device="cpu", state=tmp_path / "replica")
    replica.teach("green", toy_embedder.paint(GREEN, 1))
    assert replica.taught.store.import_file(path).version == 3
    assert replica.taught.state.counts == {"red": 3, "blue": 2}
    assert list_answers(replica, BLUE) == ["blue"] * 4


def test_a_model_without_embeddings_is_refused(bundle, tmp_path):
    with pytest.raises(OptionError, match="gives no embeddings that say their fingerprint"):
        vfm_runtime.load(bundle, device="cpu", state=tmp_path / "state")
    with pytest.raises(OptionError, match="--embedding pooled"):
        vfm_runtime.load(bundle, device="cpu").teach("x", toy_embedder.paint(RED, 1))


def test_the_commands_teach_explain_and_forget(embedder, tmp_path, capsys):
    for name, color in (("red", RED), ("blue", BLUE)):
        toy_embedder.write_pictures(tmp_path / "examples" / name, color, 2)
    state = ["--state", str(tmp_path / "state"), "--device", "cpu"]

    def run(command, *words, code=0):
        assert main([command, str(embedder), *map(str, words), *state]) == code
        return capsys.readouterr()

    assert (
        run("teach", tmp_path / "examples").out.splitlines()[0].endswith("4 examples of 2 classes")
    )
    green = toy_embedder.write_pictures(tmp_path / "green", GREEN, 2)
    assert json.loads(run("teach", *green, "--label", "green", "--json").out) == {
        "version": 2,
        "classes": {"blue": 2, "red": 2, "green": 2},
    }
    assert "2 of 2 images were examples already" in run("teach", *green, "--label", "green").err
    shown = run("why", green[0], "--json")
    answer = json.loads(shown.out)
    assert (answer["label"], answer["nearest"][0]["name"]) == ("green", "0.png")
    (tmp_path / "bad.png").write_text("none")
    shown = run("why", tmp_path / "bad.png", green[1], code=1)
    assert "not an image" in shown.err
    assert ": green 1.0000, " in shown.out
    assert "; nearest: 1.png (green, " in shown.out
    run("taught", "--export", tmp_path / "out.npz")
    assert "4 examples of 2 classes" in run("forget", "green").out
    assert "6 examples of 3 classes" in run("taught", "--import", tmp_path / "out.npz").out
    assert "2 paths, and no class. Give --label" in run("teach", *green, code=1).err
    assert "Give one with a folder of images for each" in run("teach", green[0], code=1).err
    assert "nearest is -1. Give 0 or more." in run("why", green[0], "--nearest", "-1", code=1).err
    # A state that is not there, as of a mistyped folder, must not replace that of a replica.
    state[1] = str(tmp_path / "stat")
    shown = run("taught", "--export", tmp_path / "none.npz", code=1)
    assert f"Nothing was taught in {state[1]}, so that there is nothing to export." in shown.err
    assert not (tmp_path / "none.npz").exists()
    # The folder of a server has a state for each model and its weights.
    served = tmp_path / "served" / "cats" / "0123456789ab"
    served.mkdir(parents=True)
    (tmp_path / "state" / "taught.npz").rename(served / "taught.npz")
    for folder in (served.parents[1], served.parent):
        state[1] = str(folder)
        shown = run("taught", code=1)
        assert f"{folder} is the state of a server, which keeps one for each" in shown.err
        assert f"Give that of this model: {served}." in shown.err
    state[1] = str(served)
    assert "6 examples of 3 classes" in run("taught").out


def draw_examples(counts, width=24, seed=0):
    """Vectors of classes that differ in one direction and vary most in others, and their classes."""
    random = np.random.default_rng(seed)
    target = np.repeat(np.arange(len(counts)), counts)
    spread = np.diag(np.r_[0.2, np.full(width - 1, 2.0)])
    vectors = random.normal(size=(len(target), width)) @ spread
    vectors[:, 0] += target
    return vectors.astype(np.float32), target


def teach_vectors(model, vectors, target):
    examples = [TaughtExample(f"{k}", f"{i:064x}", "") for i, k in enumerate(target)]
    model.taught.add(examples, vectors, [b""] * len(examples))


@pytest.mark.parametrize(
    ("counts", "is_lda"), [((16, 16, 16), True), ((12, 20, 13), True), ((11, 16, 16), False)]
)
def test_twelve_examples_of_each_class_are_answered_by_lda(embedder, counts, is_lda):
    model = vfm_runtime.load(embedder, device="cpu")
    vectors, target = draw_examples(counts)
    teach_vectors(model, vectors, target)
    others, right = draw_examples((200, 200, 200), seed=1)
    answers = model.taught.explain(others)
    lda = fit_lda(scale_features(vectors, None, True), target)
    logits = scale_features(others, None, True) @ lda.weight.T + lda.bias - np.log(counts)
    expected = logits if is_lda else fit_nearest_mean(vectors, target).compute_logits(others)
    labels = [int(one.prediction.label) for one in answers]
    assert labels == expected.argmax(axis=1).tolist()
    if counts == (16, 16, 16):
        accuracy = np.mean(labels == right)
        mean = fit_nearest_mean(vectors, target).compute_logits(others).argmax(axis=1)
        assert accuracy > np.mean(mean == right) + 0.1
        # Its scores are of use: LDA alone is far too sure of itself where numbers are many.
        said = np.mean([one.prediction.score for one in answers])
        assert abs(said - accuracy) < 0.15
        assert np.exp(logits - logits.max(1, keepdims=True)).sum(1).mean() < 1.3

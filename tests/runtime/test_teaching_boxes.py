"""Classes of boxes: a detector is taught by a few, finds them from then on, and forgets them."""

import json

import numpy as np
import pytest
import vfm_runtime
from PIL import Image
from vfm_runtime.cli import main
from vfm_runtime.errors import ContractError, DataError, OptionError, StateError
from vfm_runtime.tasks.base import Opened
from vfm_runtime.tasks.detection import DetectionType, choose_classes
from vfm_runtime.tasks.tiling import Region, ScoredBoxes
from vfm_runtime.teaching.state import Surroundings, TaughtExample, TaughtState

from tests.runtime import toy
from tests.runtime.server import toy_finder

RED, BLUE = (220, 30, 30), (30, 30, 220)
HEIGHT, WIDTH = 80, 160
# What the toy finds in a picture of this size: two large boxes and a small one in the corner.
FIRST, SECOND, CORNER = (
    np.array(shares) * [WIDTH, HEIGHT, WIDTH, HEIGHT] for shares in toy_finder.SHARES
)


def paint(color, box, seed=0):
    """A gray picture of noise with one box of a color."""
    pixels = np.random.default_rng(seed).integers(90, 140, (HEIGHT, WIDTH, 3))
    left, top, right, bottom = box.astype(int)
    pixels[top:bottom, left:right] += np.array(color) - 115
    return pixels.clip(0, 255).astype(np.uint8)


def find(model, label, picture):
    """The boxes of a label that are shown."""
    shown = model.predict(picture).above()
    return [
        box.tolist() for box, name in zip(shown.boxes, shown.labels, strict=True) if name == label
    ]


@pytest.fixture(scope="module")
def finder(tmp_path_factory):
    return toy_finder.build(tmp_path_factory.mktemp("finder") / "bundle", embeds=True)


@pytest.fixture
def model(finder, tmp_path):
    return vfm_runtime.load(finder, device="cpu", state=tmp_path / "state")


@pytest.fixture
def coco(tmp_path):
    """A COCO file of red and blue boxes in two pictures."""
    folder = tmp_path / "coco"
    folder.mkdir()
    rows = []
    for number, (color, box) in enumerate(((RED, SECOND), (BLUE, FIRST))):
        Image.fromarray(paint(color, box, number)).save(folder / f"{number}.png")
        left, top, right, bottom = box.tolist()
        bbox = [left + 1, top, right - left, bottom - top]
        rows.append({"id": number, "image_id": number, "category_id": number + 7, "bbox": bbox})
    content = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(2)],
        "categories": [{"id": 7, "name": "red"}, {"id": 8, "name": "blue"}],
        "annotations": rows,
    }
    (folder / "boxes.json").write_text(json.dumps(content))
    return folder / "boxes.json"


def test_a_class_is_found_after_one_box_and_forgotten(model, finder, tmp_path):
    before = {path: path.read_bytes() for path in finder.rglob("*") if path.is_file()}
    plain = model.predict(paint(RED, SECOND, 5))
    state = model.teach("red", [(paint(RED, FIRST), [FIRST])])
    assert state.counts == {"red": 1}
    # Elsewhere in another picture, and by another process too.
    again = vfm_runtime.load(finder, device="cpu", state=tmp_path / "state")
    for one in (model, again):
        box, *_ = find(one, "red", paint(RED, SECOND, 5))
        np.testing.assert_allclose(box, SECOND, atol=1e-4)
        assert find(one, "red", paint(BLUE, SECOND, 5)) == []
    model.teach("blue", [(paint(BLUE, FIRST, 1), FIRST[None]), (paint(BLUE, SECOND), SECOND[None])])
    prediction = again.predict(paint(BLUE, SECOND, 5))
    assert prediction.names == (*toy.LABELS, "red", "blue")
    assert "blue" in prediction.above().labels
    assert "red" not in prediction.above().labels
    assert list(prediction.scores) == sorted(prediction.scores, reverse=True)
    assert prediction.to_coco(1)[0]["category_id"] == prediction.class_ids[0] + 1
    # The object that was taught has one box, and all others are as they were.
    assert prediction.above().labels == ["blue", "cat"]
    old = prediction.class_ids < len(toy.LABELS)
    assert prediction.scores[old].tolist() == [plain.scores[0], plain.scores[2]]
    again.forget("red")
    assert find(model, "red", paint(RED, SECOND, 5)) == []
    assert {one.label for one in again.taught.state.surroundings} == {"blue"}
    again.forget("blue")
    assert model.predict(paint(RED, SECOND, 5)) == plain
    assert before == {path: path.read_bytes() for path in finder.rglob("*") if path.is_file()}


def test_an_object_has_one_box_of_a_trained_and_a_taught_class():
    """Two trained classes, 0 and 1, and two taught ones."""
    one, same, other = [0, 0, 10, 10], [0, 0, 10, 9], [5, 0, 15, 10]
    rows = [
        (one, 0, 0.6),  # covered by the taught class of the higher score
        (same, 2, 0.8),
        (one, 3, 0.7),  # covered by the other taught class
        (one, 2, 0.5),  # of the class that covers it
        (one, 1, 0.4),  # not shown
        (other, 1, 0.6),  # overlaps by a third alone
        ([50, 0, 60, 10], 3, 0.6),  # as likely as the trained class, which stays
        ([50, 0, 60, 10], 1, 0.6),
        ([50, 0, 60, 10], 0, 0.5),  # two trained classes are as they were
    ]
    boxes, class_ids, scores = (np.array(column) for column in zip(*rows, strict=True))
    candidates = ScoredBoxes(boxes.astype(np.float32), class_ids, scores.astype(np.float32))
    remaining = choose_classes(candidates, scores >= 0.5, 2)
    expected = [row for index, row in enumerate(rows) if index not in (0, 2, 6)]
    assert remaining.boxes.tolist() == [box for box, _, _ in expected]
    assert remaining.class_ids.tolist() == [label for _, label, _ in expected]
    # Of what nothing was taught everything stays.
    assert len(choose_classes(candidates, scores >= 0.5, 4).scores) == len(rows)


def test_an_object_that_two_tiles_show_as_two_classes_has_one_box():
    task = DetectionType(toy.LABELS).add_classes(
        ["red"], 0.5, lambda row: ScoredBoxes(row["boxes"], row["labels"], row["scores"])
    )
    outputs = {
        "boxes": np.array([[[30, 0, 50, 20]], [[0, 0, 20, 20]]], np.float32),
        "labels": np.array([[0], [len(toy.LABELS)]]),
        "scores": np.array([[0.6], [0.7]], np.float32),
    }
    opened = Opened([], [Region(0, 0, 60, 60), Region(30, 0, 90, 60)])
    assert task.predict(opened, outputs).labels == ["red"]


def test_boxes_that_it_has_and_at_which_nothing_is_found(model):
    nowhere = np.array([100, 5, 140, 20])
    picture = paint(RED, SECOND)
    state = model.teach("red", [(picture, [SECOND, nowhere])])
    assert state.counts == {"red": 1}
    assert model.teach("red", [(picture, [SECOND])]).version == state.version
    assert len(model.taught.state.surroundings) == 1
    with pytest.raises(DataError, match=r"nothing at any box of 'blue', such as .100.0, 5.0, "):
        model.teach("blue", [(picture, [nowhere])])
    with pytest.raises(DataError, match="is an example of 'red' already"):
        model.teach("other", [(picture, [SECOND])])
    assert model.taught.state.counts == {"red": 1}


@pytest.mark.parametrize(
    ("label", "examples", "text"),
    [
        ("bee", [(None, [[0, 0, 9, 9]])], "'bee' is a class that this model was trained on"),
        ("red", [], "There are no boxes of 'red'. Give one or more of each class."),
        ("red", [7], "An example of 'red' is 7. A detector is taught by boxes: give a COCO file"),
        ("red", [(None, [[1, 2, 3]])], "The boxes of an image are .*Give a list of 1 to 500 boxes"),
        ("red", [(None, [])], "Give a list of 1 to 500 boxes, each left, top, right"),
        ("red", [(None, "none")], "The boxes of an image are 'none'"),
        ("red", [(None, [[9, 2, 9, 5]])], "is .9.0, 2.0, 9.0, 5.0., which has no area"),
    ],
)
def test_what_is_no_example_is_refused(model, label, examples, text):
    with pytest.raises((OptionError, DataError), match=text):
        model.teach(label, examples)
    with pytest.raises(StateError, match="No class was taught"):
        model.why(paint(RED, FIRST))


def test_the_commands_teach_predict_and_forget(finder, coco, tmp_path, capsys):
    state = f"--state={tmp_path / 'state'}"

    def run(*words):
        code = main([words[0], str(finder), *map(str, words[1:]), state])
        output = capsys.readouterr()
        return code, output.out + output.err

    assert run("teach", "--name", "red", "--examples", coco)[0] == 0
    code, text = run("teach", "--examples", coco)
    assert "1 of 2 boxes were examples already, or nothing is found there" in text
    assert "version 2: 2 examples of 2 classes" in text
    code, text = run("predict", coco.parent / "0.png", "--json")
    assert [box["label"] for box in json.loads(text)["boxes"]].count("red") == 1
    code, text = run("why", coco.parent / "0.png", "--nearest", "1", "--json")
    nearest = {box["label"]: box["nearest"] for box in json.loads(text)["boxes"]}
    assert (nearest["red"][0]["name"], nearest["cat"]) == ("0.png", [])
    code, text = run("why", coco.parent / "0.png", "--nearest", "1")
    assert "0.png: cat 0.9000 [16.0, 16.0, 80.0, 48.0]\n" in text
    assert "[96.0, 40.0, 144.0, 72.0]; nearest: 0.png (red, 1.000)" in text
    assert "1 class" in run("forget", "blue")[1]
    for words, expected in (
        (("teach", coco.parent), "is taught by boxes. Give --examples boxes.json"),
        (("teach",), "There are no examples. Give images or folders of them"),
        (("teach", coco.parent, "--examples", coco), "--examples names its images, and there is"),
        (("teach", "--label", "green", "--examples", coco), "has no category 'green', and several"),
    ):
        code, text = run(*words)
        assert code == 1
        assert expected in text
    code = main(["teach", str(tmp_path / "toy"), "--examples", str(coco), state])
    assert code == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"images": []}, "has a box of an image that it does not list"),
        (
            {"images": [{"id": 0, "file_name": "no.png"}]},
            "names the image no.png, which is neither",
        ),
        ({"categories": 3}, "cannot be read as a COCO file .TypeError"),
        (
            {"annotations": [{"image_id": 0, "category_id": 7, "bbox": [1, 2]}]},
            "has the bbox .1, 2.. Give left, top, width and height",
        ),
    ],
)
def test_coco_files_that_cannot_be_used(model, coco, change, text):
    coco.write_text(json.dumps(json.loads(coco.read_text()) | change))
    with pytest.raises(DataError, match=text):
        model.teach("red", str(coco))


def test_the_nearest_boxes_say_why(model):
    model.teach("red", [(paint(RED, FIRST, seed), [FIRST]) for seed in range(2)])
    model.teach("blue", [(paint(BLUE, FIRST), [FIRST])])
    answer, same = model.why([paint(RED, SECOND, 5)] * 2, num_nearest=3)
    assert answer.to_dict() == same.to_dict()
    assert answer.prediction.labels == ["red", "cat"]
    taught, trained = answer.evidence
    assert trained == ()
    assert [one.example.label for one in taught] == ["red", "red", "blue"]
    assert taught[0].similarity > 0.99 > taught[2].similarity
    assert answer.version == 2
    assert model.why(paint(RED, CORNER), num_nearest=0).evidence[0] == ()


def test_a_file_with_one_other_category_gives_the_class(model, coco):
    content = json.loads(coco.read_text())
    coco.write_text(json.dumps(content | {"annotations": content["annotations"][:1]}))
    assert model.teach("helmet", coco).counts == {"helmet": 1}


def test_boxes_of_tiles_lie_in_the_image(model):
    outputs = {
        "boxes": np.array([[[1, 2, 3, 4], [0, 0, 9, 9]], [[5, 6, 7, 8], [0, 0, 1, 1]]], np.float32),
        "scores": np.array([[0.2, 0.0], [0.7, 0.1]], np.float32),
        "box_embeddings": np.arange(12, dtype=np.float32).reshape(2, 2, 3),
    }
    regions = [Region(0, 0, 50, 50), Region(40, 10, 90, 60)]
    corners, vectors = model.taught.locate(regions, outputs)
    # The best first; what a better box covers has the score 0, and is left out.
    assert corners.tolist() == [[45, 16, 47, 18], [1, 2, 3, 4], [40, 10, 41, 11]]
    assert vectors[:, 0].tolist() == [6, 0, 9]


def test_a_state_of_boxes_is_read_as_it_was_written_and_damage_is_refused(tmp_path):
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    examples = [TaughtExample("red", "a" * 64, "a.png")]
    around = [Surroundings("red", "b" * 64, vectors), Surroundings("red", "c" * 64, vectors[:0])]
    state = TaughtState("0" * 32).add(examples, vectors[:1], [b""], around)
    path = tmp_path / "taught.npz"
    path.write_bytes(state.to_bytes())
    again = TaughtState.read(path)
    assert [(one.label, one.sha256) for one in again.surroundings] == [
        ("red", "b" * 64),
        ("red", "c" * 64),
    ]
    np.testing.assert_array_equal(again.surroundings[0].vectors, vectors)
    arrays = dict(np.load(path))
    for name, value in (
        ("surroundings", vectors[:1]),
        ("surroundings", vectors.astype(np.float64)),
        ("surroundings", vectors * np.nan),
        ("vectors", vectors[:1, :2]),
    ):
        np.savez(path, **{**arrays, name: value})
        with pytest.raises(DataError, match="its surroundings"):
            TaughtState.read(path)


def test_boxes_are_embedded_by_detectors_alone():
    task = vfm_runtime.Contract.from_dict(toy.CONTRACT).type
    with pytest.raises(OptionError, match="is taught no classes by boxes"):
        task.add_classes(["red"], 0.5, lambda row: None)
    values = {**toy.CONTRACT, "format": 2, "box_embedding": toy_finder.EMBEDDING}
    with pytest.raises(ContractError, match=r"'box_embedding' is .*none for 'classification'"):
        vfm_runtime.Contract.from_dict(values)
    values = {**toy_finder.contract(embeds=True), "box_embedding": {"output": "a b"}}
    with pytest.raises(
        ContractError, match=r"'box_embedding' is .*an output of a detector's graph"
    ):
        vfm_runtime.Contract.from_dict(values)

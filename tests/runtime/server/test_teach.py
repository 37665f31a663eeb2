"""Routes of taught classes: seen at once by every worker, tokens of their own, refusals that change nothing."""

import base64
import errno
import io
import json

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from vfm_runtime.server.app import create_app
from vfm_runtime.server.main import serve
from vfm_runtime.server.security import SecurityError
from vfm_runtime.server.settings import Settings
from vfm_runtime.teaching import store as stores

from tests.runtime import toy_embedder
from tests.runtime.server import toy_finder
from tests.runtime.server.conftest import LOCAL, encoded

RED, BLUE, GREEN = (200, 40, 40), (40, 40, 200), (40, 200, 40)
TOKEN, TEACH_TOKEN = "a-token-of-the-tests-0123456789", "another-token-to-teach-0123456789"
BYTES = {"Content-Type": "application/octet-stream"}


def paint(color, number, seed=0):
    return [encoded(pixels, "PNG") for pixels in toy_embedder.paint(color, number, seed)]


def form(images):
    return [("file", (f"{index}.png", image, "image/png")) for index, image in enumerate(images)]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return toy_embedder.build(tmp_path_factory.mktemp("served") / "colors")


@pytest.fixture
def make_settings(embedder, tmp_path):
    def make(*more, **values):
        values = {"state": tmp_path / "state", "reload_every": 0, **values}
        return Settings(
            bundles=(str(embedder), *map(str, more)), device="cpu", num_threads=1, **values
        )

    return make


@pytest.fixture
def workers(make_settings):
    """Two applications over one state folder, as two worker processes are, that were taught red and blue."""
    with (
        TestClient(create_app(make_settings(keep_pictures=True)), base_url=LOCAL) as one,
        TestClient(create_app(make_settings(keep_pictures=True)), base_url=LOCAL) as other,
    ):
        for label, color in (("red", RED), ("blue", BLUE)):
            assert one.post(f"/teach?label={label}", files=form(paint(color, 2))).status_code == 200
        yield one, other


def test_a_class_is_taught_and_forgotten_in_all_workers_at_once(workers):
    one, other = workers
    (green,) = paint(GREEN, 1, seed=1)
    for turn in range(4):
        taught = one.post("/teach?label=green", files=form(paint(GREEN, 5))).json()
        assert taught["state_version"] == 3 + 2 * turn
        assert taught["classes"] == {"red": 2, "blue": 2, "green": 5}
        answer = other.post("/classify", content=green, headers=BYTES).json()
        assert (answer["label"], answer["state_version"]) == ("green", 3 + 2 * turn)
        assert answer["nearest"] == []
        assert other.post("/forget?label=green").json()["state_version"] == 4 + 2 * turn
        answer = one.post("/classify", content=green, headers=BYTES).json()
        assert answer["label"] != "green"
        assert answer["state_version"] == 4 + 2 * turn
    assert one.get("/taught").json()["classes"] == {"red": 2, "blue": 2}


def test_the_nearest_examples_say_why(workers):
    answer = workers[1].post("/why?nearest=2", files=form(paint(RED, 1, seed=1))).json()
    assert answer["label"] == "red"
    assert [row["label"] for row in answer["nearest"]] == ["red", "red"]
    assert {row["name"] for row in answer["nearest"]} == {"0.png", "1.png"}
    kind, _, data = answer["nearest"][0]["picture"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert base64.b64decode(data).startswith(b"\xff\xd8")


def test_what_cannot_be_taught_is_refused(
    workers, refused, monkeypatch, embedder, folders, tmp_path
):
    one, other = workers
    (red,) = paint(RED, 1)

    def text(answer, status, code):
        return refused(answer, status, code)

    bad = one.post("/teach?label=x", files=form([*paint(GREEN, 2), b"none"]))
    assert "File 3 of 3 (2.png): The 4 bytes are no image" in text(bad, 400, "bad_image")
    assert "None of the files was learned." in bad.json()["error"]
    assert "The label is ' '" in text(
        one.post("/teach?label=%20", content=red, headers=BYTES), 422, "invalid"
    )
    both = one.post("/teach?label=blue", content=red, headers=BYTES)
    assert "is an example of 'red' already" in text(both, 422, "invalid")
    assert "no taught class 'x'" in text(other.post("/forget?label=x"), 422, "invalid")
    assert "no parameter 'names'" in text(one.post("/forget?label=x&names=1"), 422, "invalid")
    assert "1 to 32" in text(one.post("/teach?label=x", files={"other": red}), 400, "bad_request")
    with monkeypatch.context() as patch:

        def fail(handle):
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(stores.os, "fsync", fail)
        full = one.post("/teach?label=green", files=form(paint(GREEN, 1)))
        assert "(No space left on device). What was taught before" in text(full, 507, "not_stored")
    assert other.get("/taught").json()["state_version"] == 2
    assert other.post("/classify", content=red, headers=BYTES).json()["label"] == "red"
    one.post("/forget?label=red")
    few = other.post("/classify", content=red, headers=BYTES)
    assert "1 class was taught. Teach two" in text(few, 422, "invalid")


def test_a_detector_is_taught_by_boxes(make_settings, refused, tmp_path):
    finder = toy_finder.build(tmp_path / "finder", embeds=True)
    gray = np.full((80, 160, 3), 120, np.uint8)
    reds = [gray.copy(), gray.copy()]
    left, top, right, bottom = box = [96, 40, 144, 72]
    for image in reds:
        image[top:bottom, left:right] = RED
    reds[1][0, 0] = 0
    images = [encoded(image, "PNG") for image in reds]
    settings = make_settings(finder, keep_pictures=True)
    with TestClient(create_app(settings), base_url=LOCAL) as client:

        def teach(images=images, **names):
            return client.post(
                "/teach", files=form(images), params={"model": "finder", "label": "red", **names}
            )

        boxes = json.dumps([[box], [box]])
        answer = teach(boxes=boxes)
        assert (answer.json()["classes"], answer.json()["threshold"]) == ({"red": 2}, 0.5)
        found = client.post("/predict?model=finder", content=images[0], headers=BYTES).json()
        assert [row["label"] for row in found["answer"]["boxes"]].count("red") == 1
        for names, status, text in (
            ({}, 422, "boxes is None. A detector is taught by boxes: give JSON"),
            ({"boxes": "[["}, 422, "boxes is '[['. A detector is taught by boxes"),
            ({"boxes": json.dumps([[box]])}, 422, "boxes for 1 files, and 2 were sent"),
            (
                {"boxes": "[[[1, 2]], [[1, 2]]]"},
                422,
                "The boxes of 0.png are [[1, 2]]. Give a list",
            ),
            (
                {"boxes": boxes, "label": "bee"},
                422,
                "'bee' is a class that this model was trained on",
            ),
            (
                {"boxes": boxes, "model": "colors"},
                422,
                "is taught by whole images, and not by boxes",
            ),
        ):
            assert text in refused(teach(**names), status, "invalid")
        bad = teach([images[0], b"none"], boxes=boxes)
        assert "File 2 of 2 (1.png): The 4 bytes are no image" in refused(bad, 400, "bad_image")
        answer = client.post("/classify?model=finder", content=images[0], headers=BYTES)
        text = "what it was taught is among the answers of /predict"
        assert text in refused(answer, 422, "invalid")
        answer = client.post("/why?model=finder&nearest=1", content=images[0], headers=BYTES).json()
        assert answer["state_version"] == 1
        (red,) = [row for row in answer["boxes"] if row["label"] == "red"]
        assert red["box"] == pytest.approx(box)
        (nearest,) = red["nearest"]
        assert nearest["similarity"] == pytest.approx(1)
        # What the box showed, and no more of its picture.
        data = base64.b64decode(nearest["picture"].partition(",")[2])
        kept = np.asarray(Image.open(io.BytesIO(data)))
        assert kept.shape == (32, 48, 3)
        assert np.abs(kept.astype(int) - RED).max() < 12
        assert client.post("/forget?model=finder&label=red").json()["classes"] == {}
        found = client.post("/predict?model=finder", content=images[0], headers=BYTES).json()
        assert "red" not in [row["label"] for row in found["answer"]["boxes"]]


def test_models_without_embeddings_and_servers_without_a_state(make_settings, folders, refused):
    (red,) = paint(RED, 1)
    with TestClient(create_app(make_settings(folders / "toy")), base_url=LOCAL) as client:
        answer = client.post("/teach?label=x&model=toy", content=red, headers=BYTES)
        assert "'toy' gives no embeddings, by which" in refused(answer, 422, "invalid")
        assert client.get("/taught?model=colors").json()["classes"] == {}
    with TestClient(create_app(make_settings(state=None)), base_url=LOCAL) as client:
        refused(client.post("/teach?label=x", content=red, headers=BYTES), 404, "not_found")


def test_each_version_has_what_its_own_weights_were_taught(make_settings, tmp_path, caplog):
    for version, fingerprint in (("1", "0123456789abcdef"), ("2", "fedcba9876543210")):
        toy_embedder.build(tmp_path / "models" / version, fingerprint)
    red, blue = paint(RED, 1) + paint(BLUE, 1)
    for turn in range(2):
        settings = make_settings(tmp_path / "models")
        with TestClient(create_app(settings), base_url=LOCAL) as client:

            def ask(route, image=red, **names):
                names = {"model": "models", **names}
                return client.post(route, content=image, headers=BYTES, params=names)

            if turn == 0:
                ask("/teach", red, version="1", label="red")
                assert ask("/teach", blue, version="1", label="blue").json()["state_version"] == 2
                assert ask("/teach", red, label="old").json()["classes"] == {"old": 1}
            assert ask("/classify", version="1").json()["label"] == "red"
            assert "1 class was taught" in ask("/classify").json()["error"]
    toy_embedder.build(tmp_path / "models" / "3", "00000000000000ff")
    with TestClient(create_app(settings), base_url=LOCAL) as client:
        assert client.get("/taught?model=models").json()["classes"] == {}
    assert "Nothing was taught to the weights of models, version 3. What was" in caplog.text


def test_whoever_teaches_needs_a_token_of_its_own(make_settings, monkeypatch, refused, tmp_path):
    monkeypatch.setenv("VFM_TOKENS", TOKEN)
    for own in ("", TOKEN):
        monkeypatch.setenv("VFM_TEACH_TOKENS", own)
        with pytest.raises(SecurityError, match="whoever teaches needs a token of its own"):
            serve(make_settings())
    monkeypatch.delenv("VFM_TEACH_TOKENS")
    path = tmp_path / "tokens"
    path.write_text(TEACH_TOKEN + "\n")
    images = paint(RED, 1)
    with TestClient(create_app(make_settings(teach_token_file=path)), base_url=LOCAL) as client:

        def ask(route, token):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return client.post(route, files=form(images), headers=headers)

        for token in ("", TOKEN, TEACH_TOKEN[:-1]):
            for route in ("/teach?label=red", "/forget?label=red", "/why"):
                refused(ask(route, token), 401, "unauthorized")
        assert "is not one of those who may teach" in ask("/why", TOKEN).json()["error"]
        assert ask("/teach?label=red", TEACH_TOKEN).json()["classes"] == {"red": 1}
        # Whoever may teach may not ask all the rest, and the other way round.
        refused(ask("/classify", TEACH_TOKEN), 401, "unauthorized")
        assert ask("/classify", TOKEN).status_code == 422

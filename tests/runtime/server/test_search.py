"""The route of search, and which requests a drift monitor counts."""

import asyncio
import base64

import numpy as np
import pytest
import vfm_runtime
from starlette.testclient import TestClient
from vfm_runtime.bundle.manifest import read_manifest, write_manifest
from vfm_runtime.server.app import create_app
from vfm_runtime.server.batching import Batcher
from vfm_runtime.server.settings import Settings

from tests.runtime import toy_embedder
from tests.runtime.server.conftest import LOCAL, encoded
from tests.runtime.test_search import BLUE, RED, make_table, write_bundle

BYTES = {"Content-Type": "application/octet-stream"}
TOKEN = "a-token-of-the-tests-0123456789"


@pytest.fixture(scope="module")
def searchable(tmp_path_factory):
    return write_bundle(tmp_path_factory.mktemp("served") / "colors", make_table(50))


@pytest.fixture
def client(searchable, folders, tmp_path):
    bundles = (str(searchable), str(folders / "toy"))
    settings = Settings(
        bundles=bundles, device="cpu", num_threads=1, reload_every=0, state=tmp_path / "state"
    )
    with TestClient(create_app(settings), base_url=LOCAL) as client:
        yield client


def test_search_answers_as_the_model_does(client, searchable):
    (pixels,) = toy_embedder.paint(RED, 1)
    picture = encoded(pixels, "PNG")
    answer = client.post("/search?model=colors&k=3", content=picture, headers=BYTES)
    assert answer.status_code == 200
    values = answer.json()
    expected = vfm_runtime.load(searchable, device="cpu").search(pixels, 3)
    assert values["neighbors"] == [one.to_dict() for one in expected]
    assert (values["model"], values["version"], values["num_searched"]) == ("colors", "1", 50)
    sent = client.post("/search?model=colors", files={"file": ("a.png", picture, "image/png")})
    assert len(sent.json()["neighbors"]) == 10
    assert "/search" in client.get("/openapi.json").json()["paths"]


def test_words_are_searched_for(refused, tmp_path):
    folder = toy_embedder.build(tmp_path / "words", text=True)
    contract = read_manifest(folder).contract
    make_table(50).write(folder)
    write_manifest(folder, contract)
    settings = Settings(bundles=(str(folder),), device="cpu", num_threads=1, reload_every=0)
    with TestClient(create_app(settings), base_url=LOCAL) as client:
        values = client.post("/search?k=3", json={"text": "a red cup"}).json()
        expected = vfm_runtime.load(folder, device="cpu").search(text="a red cup", k=3)
        assert values["neighbors"] == [one.to_dict() for one in expected]
        picture = encoded(toy_embedder.paint(RED, 1)[0], "PNG")
        data = base64.b64encode(picture).decode()
        assert len(client.post("/search", json={"data": data}).json()["neighbors"]) == 10
        for body, text in [
            ({"text": " "}, "Give {'text': words to look for} alone, of at most 2000 characters"),
            ({"text": "a" * 2001}, "alone, of at most 2000 characters"),
            ({"text": "red", "k": 3}, "The JSON object is {'text': 'red', 'k': 3}. Give"),
            ({"text": 3}, "Give {'text': words to look for} alone"),
            ({"text": "red <end>"}, "a mark of the tokenizer"),
            ({"text": "unknown"}, "must not be 0"),
            ({"word": "red"}, "It takes 'data' alone"),
        ]:
            assert text in refused(client.post("/search", json=body), 422, "invalid")


def test_what_cannot_be_searched_is_refused(client, refused, searchable, monkeypatch):
    picture = encoded(toy_embedder.paint(RED, 1)[0], "PNG")
    words = refused(client.post("/search?model=colors", json={"text": "red"}), 422, "invalid")
    assert "has no text tower, so that words are no vectors to it" in words

    def ask(query, content=picture, media="application/octet-stream"):
        return client.post(f"/search?{query}", content=content, headers={"Content-Type": media})

    toy = refused(ask("model=toy"), 422, "invalid")
    assert "'toy' carries no vectors to search in" in toy
    assert "vfm index STORE --bundle BUNDLE -o OUT" in toy
    for query, text in [("k=0", "k"), ("k=1001", "k"), ("n=3", "no parameter 'n'. Choices: model")]:
        assert text in refused(ask(f"model=colors&{query}"), 422, "invalid")
    refused(ask("model=none"), 404, "unknown_model")
    refused(ask(""), 404, "unknown_model")
    assert "4 bytes are no image" in refused(ask("model=colors", b"none"), 400, "bad_image")
    video = refused(ask("model=colors", picture, "video/mp4"), 415, "unsupported_media_type")
    assert "A video was sent, and images are embedded here" in video
    monkeypatch.setenv("VFM_TOKENS", TOKEN)
    settings = Settings(bundles=(str(searchable),), device="cpu", num_threads=1, reload_every=0)
    with TestClient(create_app(settings), base_url=LOCAL) as guarded:
        refused(guarded.post("/search", content=picture, headers=BYTES), 401, "unauthorized")
        headers = {**BYTES, "Authorization": f"Bearer {TOKEN}"}
        assert guarded.post("/search", content=picture, headers=headers).status_code == 200


def test_examples_and_queries_are_no_traffic(client, searchable):
    """Only what is predicted or classified counts for the drift monitor."""
    served = client.app.state.service.repository.find_model("colors")
    rows = []
    served.batcher._observe = lambda outputs: rows.append(len(outputs["embedding"]))
    images = {
        label: encoded(toy_embedder.paint(color, 1)[0], "PNG")
        for label, color in (("red", RED), ("blue", BLUE))
    }
    for label, image in images.items():
        taught = client.post(f"/teach?model=colors&label={label}", content=image, headers=BYTES)
        assert taught.status_code == 200
    for route in ("why", "search"):
        answer = client.post(f"/{route}?model=colors", content=images["red"], headers=BYTES)
        assert answer.status_code == 200
    assert rows == []
    for route in ("classify", "predict"):
        client.post(f"/{route}?model=colors", content=images["red"], headers=BYTES)
    assert rows == [1, 1]

    class Monitor:
        def add(self, outputs):
            rows.append(len(outputs["embedding"]))

    model = vfm_runtime.load(searchable, device="cpu")
    model.monitor = Monitor()
    pixels = toy_embedder.paint(RED, 1)[0]
    model.teach("red", [pixels])
    model.search(pixels)
    assert rows == [1, 1]
    model.predict([pixels] * 3)
    assert rows == [1, 1, 3]


def test_a_batch_of_both_counts_its_traffic_alone():
    counted = []

    async def run():
        batcher = Batcher(
            lambda inputs: {"y": inputs["x"]},
            max_batch=4,
            max_wait_ms=2000,
            observe=lambda outputs: counted.extend(outputs["y"].tolist()),
        )
        batcher._crowd = 3.0
        rows = [batcher.submit({"x": np.full(1, i)}, is_traffic=i != 1) for i in range(3)]
        await asyncio.gather(*rows)
        await batcher.close()

    asyncio.run(run())
    assert sorted(counted) == [0, 2]

import base64
import dataclasses
import io
import json
import struct
import zlib
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter
from vfm_runtime import load
from vfm_runtime.errors import ProviderError
from vfm_runtime.server.app import create_app
from vfm_runtime.server.batching import ClosedError, DeadlineError, QueueFullError
from vfm_runtime.tasks import registry
from vfm_runtime.tasks.base import PredictionView
from vfm_runtime.tasks.classification import LabelPrediction

from tests.runtime import toy_deepfake
from tests.runtime.server import toy_finder
from tests.runtime.server.conftest import encoded

IMAGE = {"Content-Type": "image/jpeg"}
BYTES = {"Content-Type": "application/octet-stream"}


def ask(client, content, headers=BYTES, **parameters):
    return client.post(
        "/predict", content=content, headers=headers, params={"model": "toy", **parameters}
    )


def huge_png(width, height):
    """A whole PNG whose header says so; its pixels are missing."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(10**5)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def test_every_way_to_send_a_file(client, jpeg, folders):
    expected = load(folders / "toy", device="cpu").predict(jpeg).to_dict()
    text = base64.b64encode(jpeg).decode()
    answers = [
        ask(client, jpeg, IMAGE),
        ask(client, jpeg, {"Content-Type": "IMAGE/*; q=1"}),
        ask(client, jpeg),
        ask(client, json.dumps({"data": text}), {"Content-Type": "application/json"}),
        client.post("/predict?model=toy", files={"file": ("a.jpg", jpeg, "image/jpeg")}),
        client.post("/predict?model=toy", files={"file": jpeg}, data={"note": "x"}),
    ]
    for answer in answers:
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert set(body["answer"]) == set(expected)
        assert body["answer"]["label"] == expected["label"]
        assert body["answer"]["score"] == pytest.approx(expected["score"], abs=1e-6)
        assert len(body["answer"]["top"]) == 3
        assert (body["model"], body["version"], body["task"]) == ("toy", "1", "classification")
        assert (body["width"], body["height"], body["drawn"]) == (300, 200, None)
        assert set(body["ms"]) == {"open", "queue", "compute", "total"}
        assert body["request_id"] == answer.headers["x-request-id"]


def test_answers_are_as_the_document_says(client, jpeg, face):
    for name, content in (("toy", jpeg), ("finder", jpeg), ("fake", face)):
        answer = ask(client, content, model=name).json()["answer"]
        kind = client.app.state.service.repository.find_model(name).model.task_type.answer_type
        assert set(answer) <= {field.name for field in dataclasses.fields(kind)}
        TypeAdapter(kind).validate_python(answer)


@dataclasses.dataclass
class Depth:
    """What a task of another package answers."""

    task: Literal["depth"]
    meters: list[float]


@pytest.mark.parametrize("kind", [Depth, dict[str, Any]])
def test_tasks_of_other_packages_say_what_they_answer(settings_for, monkeypatch, kind):
    monkeypatch.setitem(registry._registered, "depth", SimpleNamespace(answer_type=kind))
    schemas = create_app(settings_for("toy")).openapi()["components"]["schemas"]
    choices = schemas["Answer"]["anyOf"]
    if kind is Depth:
        assert {"$ref": "#/components/schemas/Depth"} in choices
        assert schemas["Depth"]["required"] == ["task", "meters"]
    else:
        assert {"additionalProperties": True, "type": "object"} in choices


def test_top(client, jpeg):
    assert len(ask(client, jpeg, top=2).json()["answer"]["top"]) == 2


def test_several_heads(client, jpeg):
    answer = ask(client, jpeg, model="several").json()["answer"]
    assert set(answer) == {"scene", "things"}
    assert answer["scene"]["label"] == "outdoor"
    assert [box["label"] for box in answer["things"]["boxes"]] == ["cat", "ant"]


def test_boxes(client, jpeg):
    """In pixels of the picture that was sent, upright."""
    body = ask(client, jpeg, model="finder", threshold=0.05, draw=True).json()
    boxes = body["answer"]["boxes"]
    assert [box["score"] for box in boxes] == pytest.approx(toy_finder.SCORES)
    assert boxes[0]["box"] == pytest.approx([30, 40, 150, 120])
    drawn = Image.open(io.BytesIO(base64.b64decode(body["drawn"].partition(",")[2])))
    assert drawn.size == (body["width"], body["height"])
    assert ask(client, jpeg, model="finder").json()["drawn"] is None
    turned = Image.open(io.BytesIO(jpeg))
    turned.getexif()[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "JPEG", exif=turned.getexif())
    body = ask(client, file.getvalue(), model="finder").json()
    assert (body["width"], body["height"]) == (200, 300)
    assert body["answer"]["boxes"][0]["box"] == pytest.approx([20, 60, 100, 180])


def test_the_threshold_of_several_labels():
    answer = LabelPrediction.from_scores([0.9, 0.4, 0.1], ["a", "b", "c"], multilabel=True)

    def labels(threshold):
        return answer.to_dict(PredictionView(top=1, threshold=threshold))["labels"]

    assert labels(None) == ["a"]
    assert labels(0.3) == ["a", "b"]
    assert labels(1.0) == []


def test_a_face(client, face, folders):
    expected = load(folders / "fake", device="cpu").predict(face).to_dict()
    body = ask(client, face, model="fake", draw=True).json()
    assert body["answer"]["score"] == pytest.approx(expected["score"], abs=1e-6)
    assert body["answer"]["frames"][0]["box"] == pytest.approx(expected["frames"][0]["box"])
    head, _, data = body["drawn"].partition(",")
    assert head == "data:image/jpeg;base64"
    drawn = Image.open(io.BytesIO(base64.b64decode(data)))
    # As wide as the picture; below it stands the answer.
    assert drawn.width == body["width"] == 200
    assert drawn.height > body["height"]


def test_a_large_picture_is_drawn_small(client):
    large = Image.fromarray(toy_deepfake.face_photo()).resize((2000, 2000))
    body = ask(client, encoded(np.asarray(large), "JPEG"), model="fake", draw=True).json()
    assert body["answer"]["frames"][0]["face_px"] > 800
    data = base64.b64decode(body["drawn"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).width == 1280


def test_a_picture_without_a_face(client, jpeg):
    sea = encoded(np.full((90, 90, 3), 90, np.uint8), "PNG")
    body = ask(client, sea, model="fake", draw=True).json()
    assert body["answer"]["reason"] == "no_face"
    assert body["answer"]["score"] is None
    assert body["drawn"] is not None


def test_a_video(client, mp4):
    body = ask(client, mp4, {"Content-Type": "video/mp4"}, model="fake").json()
    assert body["answer"]["is_video"]
    assert body["answer"]["num_asked"] == toy_deepfake.DECISION["num_frames"]
    assert (body["width"], body["height"]) == (None, None)


def test_a_video_for_a_model_of_images(client, mp4, refused):
    for headers in (BYTES, {"Content-Type": "video/mp4"}):
        text = refused(ask(client, mp4, headers), 415, "unsupported_media_type")
        assert text.startswith("A video was sent, and the model 'toy' (classification) takes")


def test_bad_videos(client, refused, started, mp4, jpeg):
    video = {"Content-Type": "video/mp4"}
    text = refused(ask(client, jpeg, video, model="fake"), 400, "bad_image")
    assert "were sent as a video, and do not begin as one does" in text
    text = refused(ask(client, mp4[:200], video, model="fake"), 400, "bad_image")
    assert "not a video, damaged at its start, or cut" in text
    short = started("fake", max_frames=59)
    text = refused(ask(short, mp4, video, model="fake"), 413, "too_large")
    assert text == "The video has 60 frames; the limit is 59. Cut it."
    brief = started("fake", max_seconds=1)
    text = refused(ask(brief, mp4, video, model="fake"), 400, "bad_image")
    assert "the limit is 1 s" in text


def test_images_that_are_refused(client, refused):
    def text_of(content):
        return refused(ask(client, content), 400, "bad_image")

    whole = encoded(np.zeros((50, 50, 3), np.uint8), "PNG")
    assert "are no image, damaged at their start, or of a format" in text_of(b"hello")
    assert "the end of the PNG is missing" in text_of(whole[:-4])
    assert "damaged" in text_of(huge_png(1000, 1000))
    # Pillow would call another program for it.
    assert "Formats: PNG, JPEG" in text_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        ((30_000, 30_000), "The image has far more than 25000000 pixels, the limit."),
        ((10_000, 9_000), "The image has 10000x9000 pixels; the limit is 25000000 pixels."),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels(client, refused, size, text):
    for model in ("toy", "fake"):
        answer = ask(client, huge_png(*size), model=model)
        assert refused(answer, 413, "too_large").startswith(text)


def test_what_is_no_file(client, refused):
    text = refused(ask(client, b""), 400, "bad_request")
    assert text.startswith("The file is empty. Send multipart/form-data with the field 'file'")
    text = refused(ask(client, b"x", {}), 415, "unsupported_media_type")
    assert text.startswith("There is no Content-Type. Send multipart/form-data")
    text = refused(ask(client, b"x", {"Content-Type": "text/html"}), 415, "unsupported_media_type")
    assert text.startswith("Content-Type is 'text/html'. Send multipart/form-data")


def test_parameters(client, refused, jpeg):
    for name, value in (("top", 0), ("top", "x"), ("threshold", "nan"), ("threshold", 2)):
        text = refused(ask(client, jpeg, **{name: value}), 422, "invalid")
        assert text.startswith(f"'{name}' is '{value}': Input should be")
    text = refused(ask(client, jpeg, draw="maybe"), 422, "invalid")
    assert text.startswith("'draw' is 'maybe': Input should be a valid boolean")
    text = refused(ask(client, jpeg, treshold=1), 422, "invalid")
    assert text.startswith("There is no parameter 'treshold'. Choices: model, version, top,")


def test_which_model(client, refused, jpeg, started):
    text = refused(client.post("/predict", content=jpeg), 404, "unknown_model")
    assert text == "There are several models: toy, fake, finder, several. Name one."
    assert refused(ask(client, jpeg, model="dog"), 404, "unknown_model")
    only = started("toy")
    answer = only.post("/predict", content=jpeg, headers=IMAGE)
    assert answer.json()["model"] == "toy"


@pytest.fixture
def failing(started, monkeypatch):
    """A client whose model raises."""
    client = started("toy")
    service = client.app.state.service

    def make(error):
        async def submit(inputs, deadline, *, is_traffic):
            raise error

        monkeypatch.setattr(service.repository.find_model("toy").batcher, "submit", submit)
        return client

    return make


def test_a_full_queue(failing, refused, jpeg):
    answer = ask(failing(QueueFullError("The queue is full.", 2.6)), jpeg)
    assert refused(answer, 429, "queue_full") == "The queue is full."
    assert answer.headers["retry-after"] == "3"
    answer = ask(failing(QueueFullError("The queue is full.", 0.1)), jpeg)
    assert answer.headers["retry-after"] == "1"


def test_a_deadline(failing, refused, jpeg):
    answer = ask(failing(DeadlineError("Its time was up.")), jpeg)
    assert refused(answer, 504, "deadline").startswith("No answer within 30 s.")


def test_a_model_that_is_closed(failing, refused, jpeg):
    answer = ask(failing(ClosedError("The model is being closed.")), jpeg)
    assert refused(answer, 503, "draining") == "The model is being closed."


def test_a_model_that_fails(failing, refused, jpeg, caplog):
    answer = ask(failing(ProviderError("out of memory at 0x1234")), jpeg)
    text = refused(answer, 500, "model_failed")
    assert text == "The model failed; the server's log says why."
    assert "out of memory" in caplog.text


def test_a_mistake_of_the_server(failing, refused, jpeg, caplog):
    answer = ask(failing(KeyError("secret")), jpeg)
    text = refused(answer, 500, "internal")
    assert text == "The server made a mistake; its log says which."
    assert "secret" in caplog.text


def test_timeout_header(client, refused, jpeg, mp4):
    for value in ("0", "-1", "1.5", "x", "9" * 10):
        text = refused(ask(client, jpeg, {**IMAGE, "X-Timeout-Ms": value}), 400, "bad_request")
        assert text == f"X-Timeout-Ms is '{value}'. Give whole milliseconds from 1 up."
    answer = ask(client, mp4, {"Content-Type": "video/mp4", "X-Timeout-Ms": "1"}, model="fake")
    text = refused(answer, 504, "deadline")
    assert text.startswith("No answer within 0.001 s. Ask again later, or raise X-Timeout-Ms")

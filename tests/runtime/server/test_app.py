import asyncio
import json
import logging
import re
import subprocess
import sys
import threading
import time

import pytest
from vfm_runtime.server import pages
from vfm_runtime.server.app import create_app
from vfm_runtime.server.errors import CODES
from vfm_runtime.server.logs import REQUEST_LOGGER, JsonFormatter, TextFormatter

IMAGE = {"Content-Type": "image/jpeg"}


def test_importing_the_command_is_cheap():
    code = (
        "import sys; import vfm_runtime.server.main; "
        "heavy = {'fastapi', 'uvicorn', 'onnxruntime', 'prometheus_client'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_unknown_routes_and_methods(client, refused):
    text = refused(client.get("/nope"), 404, "not_found")
    assert text == "There is no such route. GET /openapi.json lists them."
    refused(client.get("/v2/"), 404, "not_found")
    answer = client.put("/predict")
    text = refused(answer, 405, "method_not_allowed")
    assert text == "The route does not take this method. It takes: POST."
    assert answer.headers["allow"] == "POST"


def test_request_ids(client):
    given = client.get("/v2", headers={"X-Request-Id": "Ab_1.-"})
    assert given.headers["x-request-id"] == "Ab_1.-"
    for value in ("", "a b", "a" * 65, "a/b", "\xe9", 'a"b'):
        made = client.get("/v2", headers={"X-Request-Id": value.encode("latin-1")})
        assert len(made.headers["x-request-id"]) == 32
        int(made.headers["x-request-id"], 16)


def test_head_of_every_get(client):
    for path in ("/v2", "/", "/v2/models"):
        answer = client.head(path)
        assert answer.status_code == 200
        assert int(answer.headers["content-length"]) > 0


def test_metrics(started, jpeg):
    client = started("toy")
    client.post("/predict", content=jpeg, headers=IMAGE)
    client.post("/predict", content=b"x", headers=IMAGE)
    client.get("/v2/models/toy/versions/1")
    client.get("/nope/123")
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    lines = answer.text.splitlines()

    def value(text):
        return [line.rpartition(" ")[2] for line in lines if line.startswith(text)]

    head = 'vfm_requests_total{model="toy",route="/predict",status='
    assert value(f'{head}"200",version="1"}}') == ["1.0"]
    assert value(f'{head}"400",version="1"}}') == ["1.0"]
    assert value('vfm_rejected_total{reason="bad_image"}') == ["1.0"]
    assert value('vfm_requests_total{model="",route="/v2/models/{model}",status="200"') == ["1.0"]
    assert "/nope" not in answer.text


def test_the_page(client):
    parts = [path for path in pages.FOLDER.glob("*") if path.suffix != ".html"]
    assert len(parts) > 3
    for file in ("/", *(f"/static/{path.name}" for path in parts)):
        assert client.get(file).status_code == 200, file
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"


def test_files_beside_the_page(client, refused):
    for name in ("nope.js", "..%2fapp.py", "%2e%2e/app.py", "..\\app.py", "/etc/passwd", "."):
        answer = client.get(f"/static/{name}")
        assert refused(answer, 404, "not_found"), name


def test_without_the_page(started, refused):
    client = started("toy", page=False)
    refused(client.get("/"), 404, "not_found")
    refused(client.get("/static/index.html"), 404, "not_found")
    assert client.get("/openapi.json").status_code == 200


def test_the_page_loads_nothing_from_elsewhere(client):
    text = client.get("/").text
    links = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert "static/page.js" in links
    assert not [link for link in links if "//" in link and not link.startswith("data:")]


def test_the_document_of_the_api(client, started, monkeypatch):
    document = client.get("/openapi.json").json()
    paths = document["paths"]
    predict = paths["/predict"]["post"]
    assert {"multipart/form-data", "application/json", "image/*"} <= set(
        predict["requestBody"]["content"]
    )
    names = {entry["name"] for entry in predict["parameters"]}
    assert names == {
        *("model", "version", "top", "threshold", "group", "draw"),
        "X-Timeout-Ms",
        "X-Request-Id",
    }
    codes = document["components"]["schemas"]["ErrorResponse"]["properties"]["code"]["enum"]
    assert set(codes) == {code for several in CODES.values() for code in several}
    for methods in paths.values():
        for route in methods.values():
            # Not FastAPI's own form of it.
            assert "HTTPValidationError" not in json.dumps(route)
            assert "security" not in route
            assert "401" not in route["responses"]
    monkeypatch.setenv("VFM_TOKENS", "0123456789abcdef")
    guarded = started("toy", base_url="http://a.example", host="0.0.0.0")
    paths = guarded.get("/openapi.json").json()["paths"]
    assert paths["/predict"]["post"]["security"] == [{"bearer": []}]
    assert "401" in paths["/v2/models"]["get"]["responses"]
    assert "security" not in paths["/v2"]["get"]


def test_a_bundle_that_is_broken(settings_for):
    app = create_app(settings_for(bundles=("/nowhere/at/all",)))
    messages = []

    async def run():
        async def receive():
            return {"type": "lifespan.startup"}

        async def send(message):
            messages.append(message)

        with pytest.raises(ValueError, match="/nowhere/at/all"):
            await app({"type": "lifespan", "state": {}}, receive, send)

    asyncio.run(run())
    (message,) = messages
    assert message["type"] == "lifespan.startup.failed"
    assert "/nowhere/at/all" in message["message"]
    assert "Traceback" not in message["message"]


def test_before_the_models_are_loaded(settings_for, refused):
    from starlette.testclient import TestClient

    client = TestClient(create_app(settings_for("toy")), base_url="http://127.0.0.1")
    text = refused(client.get("/v2/health/ready"), 503, "not_ready")
    assert text == "The models are not loaded yet. Ask again soon."
    for answer in (client.get("/v2/models"), client.post("/predict"), client.get("/v2/models/toy")):
        refused(answer, 503, "not_ready")
    assert client.get("/v2/health/live").status_code == 200


def test_while_draining(started, refused, jpeg):
    client = started("toy")
    client.app.state.service.draining = True
    answer = client.post("/predict", content=jpeg, headers=IMAGE)
    text = refused(answer, 503, "draining")
    assert text == "The server is stopping. Ask another one."
    assert answer.headers["connection"] == "close"
    refused(client.get("/v2/health/ready"), 503, "draining")
    refused(client.get("/v2/models/toy/ready"), 503, "draining")
    assert client.get("/v2/health/live").status_code == 200


def test_more_requests_than_are_held(started, refused, jpeg, monkeypatch):
    client = started("toy", max_queue=1, max_batch=1)
    batcher = client.app.state.service.repository.find_model("toy").batcher
    run, begun, free = batcher._run, threading.Event(), threading.Event()

    def slow(inputs):
        begun.set()
        assert free.wait(20)
        return run(inputs)

    monkeypatch.setattr(batcher, "_run", slow)
    answers = []
    askers = [
        threading.Thread(
            target=lambda: answers.append(client.post("/predict", content=jpeg, headers=IMAGE))
        )
        for _ in range(2)
    ]
    try:
        for asker in askers:
            asker.start()
            assert begun.wait(20)  # the first has left the queue, whose one place is for the second
        deadline = time.monotonic() + 20
        while client.app.state.service._in_flight < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        answer = client.post("/predict", content=jpeg, headers=IMAGE)
        text = refused(answer, 429, "queue_full")
        assert text.startswith("2 requests are being answered already, the limit.")
        assert answer.headers["retry-after"] == "1"
    finally:
        free.set()
        for asker in askers:
            asker.join(20)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert client.post("/predict", content=jpeg, headers=IMAGE).status_code == 200


def test_a_client_that_leaves(started, jpeg, monkeypatch, caplog):
    """Its question leaves the queue, and nothing is sent."""
    client = started("toy")
    service = client.app.state.service
    cancelled, sent = [], []

    async def submit(inputs, deadline, *, is_traffic):
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    monkeypatch.setattr(service.repository.find_model("toy").batcher, "submit", submit)
    messages = [{"type": "http.request", "body": jpeg, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop(0)
        await asyncio.sleep(0.3)
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/predict",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"image/jpeg")],
    }
    with caplog.at_level(logging.INFO, REQUEST_LOGGER):
        client.portal.call(client.app, scope, receive, send)
    assert cancelled == [True]
    assert sent == []
    assert caplog.records[-1].facts["status"] == 499
    assert service._in_flight == 0


def test_a_line_a_request(client, jpeg, caplog):
    with caplog.at_level(logging.INFO, REQUEST_LOGGER):
        headers = {**IMAGE, "X-Request-Id": "mine"}
        client.post("/predict?model=toy", content=jpeg, headers=headers)
        client.get("/no%0Asuch")
    first, second = caplog.records
    line = json.loads(JsonFormatter().format(first))
    assert set(line) == {
        *("time", "level", "request_id", "method", "route", "status", "ms", "model", "version"),
        *("bytes_in", "client"),
    }
    assert (line["request_id"], line["method"], line["route"]) == ("mine", "POST", "/predict")
    assert (line["status"], line["model"], line["version"]) == (200, "toy", "1")
    assert line["bytes_in"] == len(jpeg)
    assert line["time"].endswith("+00:00")
    assert json.loads(JsonFormatter().format(second))["route"] == "unmatched"
    text = TextFormatter().format(first)
    assert "POST /predict 200 request_id=mine ms=" in text
    assert "\n" not in TextFormatter().format(second)


def test_a_line_of_an_error():
    record = logging.LogRecord("a.b", logging.ERROR, "", 1, "It %s.", ("broke",), None)
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["logger"], line["message"]) == ("error", "a.b", "It broke.")
    try:
        raise ValueError("why")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert "ValueError: why" in json.loads(JsonFormatter().format(record))["traceback"]
    assert "ValueError: why" in TextFormatter().format(record)

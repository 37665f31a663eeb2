"""What the server says of itself, held against what it does: requests made from its own document."""

import base64

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies as st
from schemathesis import GenerationMode
from vfm_runtime.server.settings import Settings

from tests.runtime import toy, toy_embedder
from tests.runtime.server.live import PATIENCE_S, Live

pytestmark = pytest.mark.slow

DOCUMENT = ("/openapi.json", "GET")
OPERATIONS = [
    DOCUMENT,
    ("/", "GET"),
    ("/metrics", "GET"),
    ("/predict", "POST"),
    ("/static/{file}", "GET"),
    ("/v2", "GET"),
    ("/v2/health/live", "GET"),
    ("/v2/health/ready", "GET"),
    ("/v2/models", "GET"),
    *((f"/v2/models/{{model}}{path}", "GET") for path in ("", "/ready", "/versions/{version}")),
    ("/v2/models/{model}/versions/{version}/ready", "GET"),
    ("/v2/models/{model}/infer", "POST"),
    ("/v2/models/{model}/versions/{version}/infer", "POST"),
]
# 504: a question whose own X-Timeout-Ms is too short. 404: no model has a name that was made up.
ACCEPTED = ["2xx", 400, 404, 413, 504]
REFUSED_TOO = {"positive_data_acceptance": {"expected-statuses": [*ACCEPTED, 422]}}
CONFIG = {
    "checks": {
        "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", 504]},
        "positive_data_acceptance": {"expected-statuses": ACCEPTED},
    },
    # No model has rules for a group that was made up.
    "operations": [{"include-path": "/predict", "checks": REFUSED_TOO}],
}


@pytest.fixture(scope="module")
def live(settings_for):
    server = Live(settings_for("toy", "fake", "finder", "several", reload_every=0))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def schema(live):
    config = schemathesis.Config.from_dict(CONFIG)
    return schemathesis.openapi.from_url(f"{live.url}/openapi.json", config=config, timeout=10)


@pytest.fixture(scope="module")
def session():
    with requests.Session() as session:
        yield session


def test_every_operation_is_asked(schema):
    found = [result.ok() for result in schema.get_all_operations()]
    # It leaves out the document itself, which is none of the API's.
    asked = {*OPERATIONS, ("/search", "POST")} - {DOCUMENT}  # see test_requests_of_embedders
    assert {(one.path, one.method.upper()) for one in found} == asked


def strategies(operation):
    """Requests that hold to the document and such that do not; of models that there are, and of made-up ones."""
    chosen = [{}]
    names = {part.name for part in operation.path_parameters}
    for model in ("toy", "finder"):
        if "model" in names:
            values = {"model": model, "version": "1"}
            known = {name: value for name, value in values.items() if name in names}
            chosen.append({"path_parameters": known})
        elif operation.path == "/predict":
            chosen.append({"query": {"model": model}})
    for fixed in chosen:
        for mode in GenerationMode:
            yield operation.as_strategy(generation_mode=mode, **fixed)


@pytest.mark.parametrize(("path", "method"), OPERATIONS, ids=[" ".join(one) for one in OPERATIONS])
def test_requests_made_from_the_document(schema, session, live, path, method):
    operation = schema[path][method]
    statuses = set()

    @settings(
        max_examples=250 if method == "POST" else 30,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(list(strategies(operation))))
    def check(case):
        answer = case.call_and_validate(session=session, timeout=PATIENCE_S)
        statuses.add(answer.status_code)

    check()
    # Not all of them fail at the door.
    assert statuses & ({400, 422} if method == "POST" else {200, 404})
    assert live.ask("/v2/health/ready")[0] == 200


@pytest.mark.parametrize("path", [path for path, method in OPERATIONS if method == "GET"])
def test_good_questions(schema, session, path):
    values = {"model": "several", "version": "1", "file": "page.js"}
    names = [name for name in values if f"{{{name}}}" in path]
    case = schema[path]["GET"].Case(path_parameters={name: values[name] for name in names})
    answer = case.call_and_validate(session=session, timeout=PATIENCE_S)
    assert answer.status_code == 200


@pytest.mark.parametrize("model", ["toy", "fake", "finder", "several"])
def test_good_files(schema, session, face, model):
    query = {"model": model, "top": 2, "threshold": 0.5, "draw": True}
    text = base64.b64encode(face).decode()
    for media, body in (
        ("application/octet-stream", face),
        ("application/json", {"data": text}),
        ("multipart/form-data", {"file": face}),
    ):
        case = schema["/predict"]["POST"].Case(query=query, body=body, media_type=media)
        answer = case.call_and_validate(session=session, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text


def test_good_tensors(schema, session):
    shape = [2, toy.SIDE, toy.SIDE, 3]
    pixels = np.zeros(shape, np.uint8).tolist()
    entry = {"name": "pixels", "shape": shape, "datatype": "UINT8", "data": pixels}
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer"):
        case = schema[path]["POST"].Case(
            path_parameters={"model": "toy", "version": "1"},
            body={"inputs": [entry]},
            media_type="application/json",
        )
        answer = case.call_and_validate(session=session, timeout=PATIENCE_S)
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ["/taught", "/teach", "/forget", "/classify", "/why", "/search"])
def test_requests_of_embedders(session, tmp_path, path):
    """422 also says that a class was not taught, or is only one, or that there are no vectors to search in."""
    bundle = toy_embedder.build(tmp_path / "colors")
    server = Live(Settings(bundles=(str(bundle),), device="cpu", state=tmp_path / "state"))
    config = schemathesis.Config.from_dict({"checks": {**CONFIG["checks"], **REFUSED_TOO}})
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=config, timeout=10)
    operation = schema[path]["GET" if path == "/taught" else "POST"]
    names = {part.name for part in operation.query}
    query = {k: v for k, v in {"model": "colors", "label": "x"}.items() if k in names}
    modes = [
        operation.as_strategy(generation_mode=mode, **fixed)
        for mode in GenerationMode
        for fixed in ({}, {"query": query})
    ]

    @settings(
        max_examples=100,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(modes))
    def check(case):
        case.call_and_validate(session=session, timeout=PATIENCE_S)

    try:
        check()
        assert server.ask("/v2/health/ready")[0] == 200
    finally:
        server.stop()

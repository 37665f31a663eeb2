import gc
import io
import threading
import time

import pytest
from PIL import Image
from starlette.testclient import TestClient
from vfm_runtime.server.app import create_app
from vfm_runtime.server.settings import Settings

from tests.runtime import toy, toy_deepfake
from tests.runtime.server import toy_finder
from tests.runtime.server.browsing import Windows, launched

LOCAL = "http://127.0.0.1"


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """A bundle of each kind: `toy`, `fake`, `finder`, and `several` with two heads."""
    root = tmp_path_factory.mktemp("served")
    toy.build(root / "toy", onefile=False)
    toy_deepfake.build(root / "fake")
    toy_finder.build(root / "finder")
    toy_finder.build(root / "several", heads=True)
    return root


@pytest.fixture(scope="session")
def settings_for(folders):
    def make(*names, **values):
        bundles = tuple(str(folders / name) for name in names or ("toy",))
        return Settings(**{"bundles": bundles, "device": "cpu", "num_threads": 1, **values})

    return make


def ask_server(bundle, path, group):
    """Answer of a server with one bundle to an image of a group, sent as a form; None for no group."""
    settings = Settings(bundles=(str(bundle),), device="cpu", num_threads=1)
    with TestClient(create_app(settings), base_url=LOCAL) as client:
        form = {} if group is None else {"group": group}
        answer = client.post("/predict", files={"file": path.read_bytes()}, data=form)
    assert answer.status_code == 200, answer.text
    return answer.json()["answer"]


@pytest.fixture
def started(settings_for):
    """Starts an application and gives a client of it, which is closed at the end of the test."""
    clients = []

    def start(*names, base_url=LOCAL, **values):
        app = create_app(settings_for(*names, **values))
        client = TestClient(app, base_url=base_url, raise_server_exceptions=False)
        clients.append(client)
        return client.__enter__()

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def client(settings_for):
    """Of one server with a bundle of each kind; tests must leave it as it is."""
    app = create_app(settings_for("toy", "fake", "finder", "several", reload_every=0))
    with TestClient(app, base_url=LOCAL, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="session")
def jpeg():
    return encoded(toy.photos()[0], "JPEG")


@pytest.fixture(scope="session")
def face():
    return encoded(toy_deepfake.face_photo(), "PNG")


def encoded(pixels, kind):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@pytest.fixture(scope="session")
def refused():
    """Checks that an answer is an error in the one form of all errors, and gives its text."""

    def check(answer, status, code):
        body = answer.json()
        assert (answer.status_code, body["code"]) == (status, code), body
        assert set(body) == {"error", "code", "request_id"}
        assert body["request_id"] == answer.headers["x-request-id"]
        return body["error"]

    return check


@pytest.fixture
def threads_end():
    """Fails where the thread of a batcher that the test has made does not end."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    deadline = time.monotonic() + 60
    while any(t.name == "batcher" for t in set(threading.enumerate()) - before):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def browser():
    with launched() as browser:
        yield browser


@pytest.fixture
def opened(browser):
    """Open an address in a window of its own."""
    with Windows(browser) as windows:
        yield windows.open

"""Bad luck and bad will over real connections: nothing of it is answered with 500, stops the server or holds it up."""

import contextlib
import http.client
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
from prometheus_client import values
from vfm_runtime.server import metrics

from tests.runtime.server.live import (
    PATIENCE_S,
    Live,
    ask,
    code_of,
    connect,
    head,
    read_answer,
    reset,
    wait_until,
)
from tests.runtime.server.test_main import Server, workers_of

pytestmark = pytest.mark.slow

BODY_TIMEOUT_S = 1.0
MIB = 2**20
TOKEN = "0123456789abcdef"
JPEG, VIDEO = "image/jpeg", "video/mp4"


@pytest.fixture(scope="module")
def live(settings_for):
    server = Live(settings_for("toy", "fake", reload_every=0, body_timeout=BODY_TIMEOUT_S))
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def _still_there(request):
    """After each fault the server answers, and holds nothing of it."""
    yield
    if "live" in request.fixturenames:
        live = request.getfixturevalue("live")
        wait_until(lambda: live.service._in_flight == 0)
        assert live.ask("/v2/health/ready")[0] == 200


def predict(live, content, kind="application/octet-stream", model="toy", **headers):
    return live.ask(f"/predict?model={model}", content, kind, **headers)


# Bodies that do not come as they should.


@pytest.mark.parametrize("leave", ["goodbye", "reset"])
@pytest.mark.parametrize("length", [100_000, None])
def test_a_truncated_upload(live, jpeg, leave, length):
    connection = connect(live.port)
    connection.sendall(head("/predict?model=toy", length))
    part = jpeg[:5000]
    connection.sendall(part if length else b"%x\r\n%s\r\n" % (len(part), part))
    wait_until(lambda: live.service._in_flight == 1)
    connection.close() if leave == "goodbye" else reset(connection)
    wait_until(lambda: live.service._in_flight == 0, BODY_TIMEOUT_S)


def test_a_form_that_is_cut(live, jpeg):
    """All bytes that were promised are there; the form has no end."""
    form = b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + jpeg
    answer = predict(live, form, "multipart/form-data; boundary=x")
    assert code_of(answer) == (400, "bad_request")


def test_a_slow_upload(live, jpeg):
    """Its time is limited as a whole, not from byte to byte; meanwhile others are answered."""
    with connect(live.port) as connection:
        connection.sendall(head("/predict?model=toy", len(jpeg)))
        start = time.monotonic()
        others = []
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - start < BODY_TIMEOUT_S + 0.5:
                connection.sendall(jpeg[:10])
                asked = time.monotonic()
                assert predict(live, jpeg)[0] == 200
                others.append(time.monotonic() - asked)
                time.sleep(0.05)
        assert code_of(read_answer(connection)) == (408, "slow_body")
    assert len(others) > 3
    assert statistics.median(others) < BODY_TIMEOUT_S / 2


def test_chunks_that_are_none(live):
    with connect(live.port) as connection:
        connection.sendall(head("/predict?model=toy") + b"xyz\r\nabc\r\n")
        assert read_answer(connection)[0] == 400


@pytest.mark.parametrize("length", [60 * MIB, None])
def test_a_body_without_end(live, length):
    """It is refused by its head where that says enough, and else as soon as it is too large."""
    sent = 0
    with connect(live.port) as connection:
        connection.sendall(head("/predict?model=toy", length))
        piece = b"%x\r\n%s\r\n" % (MIB, bytes(MIB))
        with contextlib.suppress(ConnectionError):
            while length is None and sent <= 50:
                connection.sendall(piece)
                sent += 1
        assert code_of(read_answer(connection)) == (413, "too_large")


def test_fifty_mib_of_zeros(live):
    start = time.monotonic()
    assert code_of(predict(live, bytes(50 * MIB))) == (400, "bad_image")
    assert code_of(predict(live, bytes(50 * MIB + 1))) == (413, "too_large")
    assert code_of(predict(live, bytes(50 * MIB), "application/json")) == (400, "bad_request")
    assert time.monotonic() - start < PATIENCE_S


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data", "image", "", "a;" * 5000])
def test_a_wrong_content_type(live, jpeg, kind):
    status, code = code_of(predict(live, jpeg, kind))
    assert (status, code) in {(415, "unsupported_media_type"), (400, "bad_request")}


def test_a_wrong_token_is_refused_before_the_body(settings_for, monkeypatch, jpeg):
    monkeypatch.setenv("VFM_TOKENS", TOKEN)
    server = Live(settings_for("toy", reload_every=0))
    try:
        with connect(server.port) as connection:
            wrong = f"Authorization: Bearer {TOKEN[::-1]}\r\n"
            connection.sendall(head("/predict", 50 * MIB, more=wrong))
            assert code_of(read_answer(connection)) == (401, "unauthorized")
        answer = server.ask("/predict", jpeg, JPEG, Authorization=f"Bearer {TOKEN}")
        assert answer[0] == 200
    finally:
        server.stop()


# Clients that leave.


@pytest.fixture
def held(live, monkeypatch):
    """The batcher of the toy, whose model waits until it is let go."""
    batcher = live.service.repository.find_model("toy").batcher
    run, begun, free = batcher._run, threading.Event(), threading.Event()

    def slow(inputs):
        begun.set()
        assert free.wait(PATIENCE_S)
        return run(inputs)

    monkeypatch.setattr(batcher, "_run", slow)
    yield SimpleNamespace(batcher=batcher, begun=begun, free=free)
    free.set()


def test_clients_that_leave_while_they_wait_and_while_they_are_answered(live, jpeg, held):
    question = head("/predict?model=toy", len(jpeg)) + jpeg
    running = connect(live.port)
    running.sendall(question)
    assert held.begun.wait(PATIENCE_S)
    waiting = [connect(live.port) for _ in range(5)]
    for connection in waiting:
        connection.sendall(question)
    wait_until(lambda: held.batcher.waiting == 5)
    for connection in waiting[:4]:
        reset(connection)
    # Their places are free while the model is still busy.
    wait_until(lambda: held.batcher.waiting == 1)
    running.close()
    wait_until(lambda: live.service._in_flight == 1)
    held.free.set()
    with waiting[4] as stays:
        assert read_answer(stays)[0] == 200


def test_a_full_queue_is_told_at_once(live, jpeg, held):
    limit = live.service.settings.max_queue + live.service.settings.max_batch
    question = head("/predict?model=toy", len(jpeg)) + jpeg
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(live.port)) for _ in range(limit)]
        for connection in connections:
            connection.sendall(question)
        wait_until(lambda: live.service._in_flight == limit)
        start = time.monotonic()
        answer = predict(live, jpeg)
        assert code_of(answer) == (429, "queue_full")
        assert time.monotonic() - start < 2
        held.free.set()
        statuses = [read_answer(connection)[0] for connection in connections]
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) > live.service.settings.max_queue // 2


# Processes.


@pytest.fixture
def server(tmp_path):
    made = []

    def start(*words, folder=tmp_path, **options):
        made.append(Server(folder, *words, **options))
        return made[-1]

    yield start
    for server in made:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait(PATIENCE_S)


class Load:
    """Clients that ask without a pause, a new connection each time, and note what came of it."""

    def __init__(self, port, content, clients=6):
        self.outcomes: list[tuple[float, int | str]] = []
        self._port, self._content, self._end = port, content, threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self):
        while not self._end.is_set():
            begun = time.monotonic()
            try:
                outcome = ask(self._port, "/predict", self._content, JPEG)[0]
            # A worker that is killed between the head and the body of its answer leaves half of it.
            except (OSError, http.client.IncompleteRead) as error:
                outcome = type(error).__name__
            except Exception as error:
                outcome = f"unexpected {type(error).__name__}"
            self.outcomes.append((begun, outcome))

    def count(self, outcome):
        return sum(found == outcome for _, found in self.outcomes)

    def stop(self):
        self._end.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


def port_of(server):
    return int(server.address.rpartition(":")[2])


@pytest.mark.slow
def test_a_worker_that_is_killed_under_load(server, folders, jpeg):
    """Only what it held is lost; the other goes on, it comes back, and SIGTERM ends all well."""
    started = server(folders / "toy", "--workers", 2, "--num-threads", 1)
    started.wait_for("Ready", 2)
    load = Load(port_of(started), jpeg)
    try:
        wait_until(lambda: load.count(200) > 50)
        victim = workers_of(started.process.pid)[0]
        os.kill(victim, signal.SIGKILL)
        after = load.count(200)
        wait_until(lambda: load.count(200) > after + 50)
        started.wait_for(f"Worker {victim} ended (exit code -9) and is replaced.")
        started.wait_for("Ready", 3)
        assert len(workers_of(started.process.pid)) == 2
        signalled = time.monotonic()
        assert started.stop() == 0
    finally:
        load.stop()
    before = [outcome for begun, outcome in load.outcomes if begun < signalled - 0.5]
    lost = [outcome for outcome in before if outcome not in (200, 503)]
    assert len(lost) <= 6, lost
    assert all(isinstance(outcome, str) and "unexpected" not in outcome for outcome in lost), lost
    assert "Traceback" not in started.log.read_text()
    assert 500 not in {line.get("status") for line in started.lines}


def test_counts_that_have_no_room(tmp_path, monkeypatch, caplog):
    """The worker counts for itself; one whose folder is tidied away gives what it has."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    assert metrics.reserve_room(str(tmp_path)) == str(tmp_path)
    sizes = {path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {metrics._FILE_BYTES}
    assert metrics.reserve_room(str(tmp_path / "away")) is None
    assert "The counts have no room in" in caplog.text
    assert values.ValueClass is values.MutexValue
    made = metrics.Metrics()
    made._folder = str(tmp_path / "away")
    made.record_request("/predict", 413, 0.1, error_code="too_large")
    assert b'vfm_rejected_total{reason="too_large"} 1.0' in made.render()[0]


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 16 MiB; only root can make one."""
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=PATIENCE_S)


def fill(place):
    with (place / "filling").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(place).free == 0


@pytest.mark.slow
def test_a_disk_that_is_full(server, folders, jpeg, full_disk):
    """Its log, its temporary files and its counts are there; a worker starts while it is full."""
    started = server(folders / "toy", "--workers", 2, "--num-threads", 1, folder=full_disk)
    started.wait_for("Ready", 2)
    port = port_of(started)
    fill(full_disk)
    workers = workers_of(started.process.pid)
    for _ in range(20):
        assert ask(port, "/predict", jpeg, JPEG)[0] == 200
    for path in ("/metrics", "/v2/models", "/nope", "/"):
        assert ask(port, path)[0] < 500
    assert set(workers_of(started.process.pid)) == set(workers)
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: len(set(workers_of(started.process.pid)) - set(workers)) == 1)
    for _ in range(200):
        assert ask(port, "/predict", jpeg, JPEG)[0] == 200
        time.sleep(0.02)
    assert workers[1] in workers_of(started.process.pid)
    assert ask(port, "/metrics")[0] == 200
    (full_disk / "filling").unlink()
    assert started.stop() == 0

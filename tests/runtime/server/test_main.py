import argparse
import json
import os
import pickle
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from vfm_runtime.cpu_quota import count_usable_cores, read_cgroup_quota
from vfm_runtime.server import main
from vfm_runtime.server.main import add_arguments, check_tls, divide_cores, serve
from vfm_runtime.server.settings import Settings
from vfm_runtime.server.supervisor import STARTUP_FAILURE, Supervisor

from tests.runtime import toy_embedder
from tests.runtime.server.conftest import encoded

TOKEN = "0123456789abcdef"
COMMAND = """
import argparse, sys
from vfm_runtime.server.main import add_arguments, serve
from vfm_runtime.server.settings import Settings
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    sys.exit(serve(Settings.from_mapping(vars(parser.parse_args()))))
"""


def settings(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return Settings.from_mapping(vars(parser.parse_args(list(words))))


def test_defaults_of_the_command_are_those_of_the_settings():
    assert settings("a", "B=b") == Settings(bundles=("a", "B=b"))


def test_every_setting_has_an_option(tmp_path):
    words = (
        "a --host 0.0.0.0 --port 1 --workers 2 --device cuda --precision int8 --num-threads 3 "
        "--max-batch 4 --max-wait-ms 5.5 --max-queue 6 --timeout 7 --body-timeout 8 --max-body-mb 9 "
        "--max-pixels 10 --max-open-pixels 14 --max-frames 11 --max-seconds 12 --token-file t --allow-origin x "
        "--allow-origin y --certfile c --keyfile k --reload-every 0 --drain 13 --no-page "
        "--log-format text --state s --keep-pictures --teach-token-file u"
    )
    made = settings(*words.split())
    default = Settings(bundles=("a",))
    same = [name for name in vars(made) if getattr(made, name) == getattr(default, name)]
    assert same == ["bundles"]
    assert pickle.loads(pickle.dumps(made)) == made  # as it travels to the workers


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--port 65536", "port is 65536. Give 0 to 65535; 0 is any that is free."),
        ("--workers 0", "workers is 0. Give more than 0."),
        ("--timeout nan", "timeout is nan. Give more than 0."),
        ("--max-wait-ms -1", "max_wait_ms is -1.0. Give 0 or more."),
        ("--num-threads 0", "num_threads is 0. Give 1 or more, or leave it out."),
        ("--certfile a", "TLS needs both certfile and keyfile. Give both, or neither."),
    ],
)
def test_settings_that_make_no_sense(words, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        settings("a", *words.split())


def test_no_bundle_and_an_unknown_format():
    with pytest.raises(ValueError, match="There is no bundle to serve"):
        Settings(bundles=())
    with pytest.raises(ValueError, match=re.escape("log_format is 'xml'. Choices: json, text.")):
        Settings(bundles=("a",), log_format="xml")


def test_threads_of_a_worker():
    assert divide_cores(settings("a", "--workers", "3"), 8).num_threads == 2
    assert divide_cores(settings("a", "--workers", "3"), 2).num_threads == 1
    assert divide_cores(settings("a", "--num-threads", "5"), 2).num_threads == 5


def test_cores(monkeypatch, tmp_path):
    assert 1 <= count_usable_cores() <= (os.cpu_count() or 1)
    nothing = tmp_path / "nothing"
    assert read_cgroup_quota(nothing, nothing) is None
    new, old = tmp_path / "new", tmp_path / "old"
    new.mkdir()
    old.mkdir()
    (new / "cpu.max").write_text("max 100000\n")
    assert read_cgroup_quota(new, nothing) is None
    (new / "cpu.max").write_text("250000 100000\n")
    assert read_cgroup_quota(new, nothing) == 2.5
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    assert read_cgroup_quota(nothing, old) is None
    (old / "cpu.cfs_quota_us").write_text("150000\n")
    assert read_cgroup_quota(new, old) == 1.5
    monkeypatch.setattr("vfm_runtime.cpu_quota.read_cgroup_quota", lambda: 0.5)
    assert count_usable_cores() == 1


def test_a_certificate_that_cannot_be_used(tmp_path):
    files = {"certfile": tmp_path / "c", "keyfile": tmp_path / "k"}
    with pytest.raises(ValueError, match=r"TLS cannot be set up with .* No such file"):
        check_tls(Settings(bundles=("a",), **files))
    for path in files.values():
        path.write_text("x")
    with pytest.raises(ValueError, match="the key without a password"):
        check_tls(Settings(bundles=("a",), **files))


def test_strangers(monkeypatch):
    monkeypatch.delenv("VFM_TOKENS", raising=False)
    with pytest.raises(
        ValueError, match="Host :: can be reached from other machines, and no token"
    ):
        serve(settings("a", "--host", "::"))


def test_a_port_that_is_taken():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"Cannot listen on 127.0.0.1, port {port} .Address alr"):
            serve(settings("a", "--port", str(port)))


class Server:
    """A server in a process of its own."""

    def __init__(self, folder, *words, tokens=None):
        script = folder / "serve.py"
        script.write_text(COMMAND)
        environ = {k: v for k, v in os.environ.items() if k != "VFM_TOKENS"}
        environ |= {"TMPDIR": str(folder)} | ({"VFM_TOKENS": tokens} if tokens else {})
        command = [sys.executable, str(script), *map(str, words), "--port", "0", "--device", "cpu"]
        self.log = folder / "log"
        with self.log.open("wb") as file:
            self.process = subprocess.Popen(command, stderr=file, env=environ)

    @property
    def lines(self):
        # The last line can be half written; a line is whole once its end stands there.
        written = self.log.read_text().split("\n")[:-1]
        return [json.loads(line) for line in written if line]

    def messages(self, text):
        return [line["message"] for line in self.lines if text in line.get("message", "")]

    def wait_for(self, text, count=1):
        deadline = time.monotonic() + 300
        while len(self.messages(text)) < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    @property
    def address(self):
        return re.search(r"https?://[^ ]*:\d+", self.messages("Starting at")[0])[0]

    def ask(self, path, data=None, headers=None, **options):
        request = urllib.request.Request(self.address + path, data, headers or {})
        with urllib.request.urlopen(request, timeout=120, **options) as answer:
            return answer.status, answer.read()

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(300)


@pytest.fixture
def server(tmp_path):
    made = []

    def start(*words, **options):
        made.append(Server(tmp_path, *words, **options))
        return made[-1]

    yield start
    for server in made:
        if server.process.poll() is None:
            server.stop(signal.SIGTERM)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_bundle_ends_the_start(server, tmp_path, workers):
    (tmp_path / "none").mkdir()
    started = server(tmp_path / "none", "--workers", workers)
    assert started.process.wait(300) == main.FAILED
    assert "Traceback" not in started.log.read_text()
    assert started.messages(f"{tmp_path / 'none'} is not a bundle")
    assert not list(tmp_path.glob("vfm-metrics-*"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load(server, folders, jpeg, number):
    """Whoever asked before the signal is answered; the process ends well."""
    started = server(folders / "toy", "--num-threads", "1")
    started.wait_for("Ready")
    signalled: list[float] = []
    outcomes = []

    def ask():
        while not signalled:
            begun = time.monotonic()
            try:
                status, _ = started.ask("/predict", jpeg, {"Content-Type": "image/jpeg"})
            except urllib.error.HTTPError as error:
                status = error.code
            except OSError as error:
                status = error
            outcomes.append((begun, status))

    askers = [threading.Thread(target=ask) for _ in range(8)]
    for asker in askers:
        asker.start()
    patience = time.monotonic() + 20
    while len(outcomes) <= 2 * len(askers) and time.monotonic() < patience:
        time.sleep(0.05)
    before = time.monotonic()
    code = started.stop(number)
    signalled.append(before)
    for asker in askers:
        asker.join(30)
    assert code == 0
    assert sum(status == 200 for _, status in outcomes) > 8
    # One that was on its way when the signal came may have been read after it; one that had just looked at the clock
    # may not even have connected.
    assert {status for begun, status in outcomes if begun < before - 0.1} <= {200, 503}
    statuses = {line["status"] for line in started.lines if line.get("route") == "/predict"}
    assert statuses <= {200, 503}
    assert "Traceback" not in started.log.read_text()


def test_workers(server, folders, jpeg, tmp_path):
    """They share tokens and metrics; one that is killed is replaced, and all end well."""
    started = server(folders / "toy", "--workers", 2, "--host", "0.0.0.0", tokens=TOKEN)
    started.wait_for("Ready", 2)
    assert "Workers: 2;" in started.messages("Starting at")[0]
    assert TOKEN not in started.log.read_text()
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "image/jpeg"}
    with pytest.raises(urllib.error.HTTPError, match="401"):
        started.ask("/v2/models")
    for _ in range(10):
        assert started.ask("/predict", jpeg, headers)[0] == 200
    _, counts = started.ask("/metrics", headers=headers)
    total = re.search(rb'vfm_requests_total{.*"/predict",status="200".*} (.*)', counts)
    assert float(total[1]) == 10
    victim = workers_of(started.process.pid)[-1]
    os.kill(victim, signal.SIGKILL)
    started.wait_for(f"Worker {victim} ended (exit code -9) and is replaced.")
    started.wait_for("Ready", 3)
    assert started.ask("/predict", jpeg, headers)[0] == 200
    assert list(tmp_path.glob("vfm-metrics-*"))
    assert started.stop() == 0
    assert not list(tmp_path.glob("vfm-metrics-*"))


def test_workers_answer_by_what_was_taught_last(server, tmp_path):
    """Answers that are asked for after the reply to a change are none of the state before it, from any worker."""
    bundle = toy_embedder.build(tmp_path / "colors")
    started = server(bundle, "--workers", 2, "--state", tmp_path / "state")
    started.wait_for("Ready", 2)
    kind = {"Content-Type": "image/png"}
    pictures = {
        name: [encoded(pixels, "PNG") for pixels in toy_embedder.paint(color, 2)]
        for name, color in {
            "red": (200, 40, 40),
            "blue": (40, 40, 200),
            "green": (40, 200, 40),
        }.items()
    }
    for name in ("red", "blue"):
        started.ask(f"/teach?label={name}", pictures[name][0], kind)
    answers = []
    with ThreadPoolExecutor(6) as pool:
        for turn in range(8):
            change = "/teach?label=green" if turn % 2 == 0 else "/forget?label=green"
            reply = json.loads(started.ask(change, pictures["green"][0], kind)[1])
            asked = [
                pool.submit(started.ask, "/classify", pictures["green"][1], kind) for _ in range(12)
            ]
            for future in asked:
                answer = json.loads(future.result()[1])
                is_green = answer["label"] == "green"
                answers.append((answer["state_version"], is_green))
                assert answers[-1] == (reply["state_version"], turn % 2 == 0)
    assert len(answers) == 96
    assert started.stop() == 0


def workers_of(parent):
    """The numbers of the worker processes."""
    shown = subprocess.run(
        ["ps", "-ww", "--ppid", str(parent), "-o", "pid=,args="],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split(maxsplit=1) for line in shown.stdout.splitlines()]
    return [int(pid) for pid, command in lines if "spawn_main" in command]


@pytest.mark.slow
def test_workers_end_with_their_parent(server, folders):
    started = server(folders / "toy", "--workers", 2)
    started.wait_for("Ready", 2)
    workers = workers_of(started.process.pid)
    assert len(workers) == 2
    started.stop(signal.SIGKILL)
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{pid}/cwd").exists() for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls(server, folders, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    started = server(folders / "toy", "--certfile", certificate, "--keyfile", key)
    started.wait_for("Ready")
    assert started.address.startswith("https://")
    context = ssl.create_default_context(cafile=str(certificate))
    assert started.ask("/v2/health/ready", context=context)[0] == 200
    assert started.stop() == 0


def test_a_signal_before_the_server_listens_for_it():
    server = argparse.Namespace(should_exit=False)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        main._stop_on_signals(server)
        signal.raise_signal(signal.SIGTERM)
        assert server.should_exit
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Worker:
    """Stands for a process of the supervisor."""

    def __init__(self, code):
        self.pid, self.exitcode = 1, code
        self.process = self

    def is_alive(self):
        return False

    def kill(self):
        pass

    join = kill


@pytest.fixture
def supervisor(monkeypatch):
    from vfm_runtime.server import supervisor as module

    monkeypatch.setattr(module.signal, "signal", lambda *_: None)
    monkeypatch.setattr("uvicorn.supervisors.multiprocess.signal.signal", lambda *_: None)
    import uvicorn

    supervisor = Supervisor(uvicorn.Config("a:b", workers=1, log_config=None), [])
    started = []

    class Started(Worker):
        def __init__(self, config, sockets):
            super().__init__(None)

        def start(self):
            started.append(self)

    monkeypatch.setattr(module, "Process", Started)
    return supervisor, started


def test_a_first_start_that_fails(supervisor):
    supervisor, started = supervisor
    supervisor.processes = [Worker(STARTUP_FAILURE)]
    supervisor.keep_subprocess_alive()
    assert supervisor.failed
    assert supervisor.should_exit.is_set()
    assert started == []


def test_a_replacement_that_cannot_start(supervisor, monkeypatch, caplog):
    """The workers that still answer go on, others that die are replaced meanwhile, and it is tried again."""
    supervisor, started = supervisor
    now = [100.0]
    monkeypatch.setattr("vfm_runtime.server.supervisor.time.monotonic", lambda: now[0])
    supervisor._has_served = True
    failed = Worker(STARTUP_FAILURE)
    supervisor.processes = [failed, Worker(-9)]
    supervisor.keep_subprocess_alive()
    assert "Worker 1 could not start; again in 5 s." in caplog.text
    assert supervisor.processes == [failed, started[0]]
    now[0] += 4.9
    supervisor.processes = [failed]
    supervisor.keep_subprocess_alive()
    assert supervisor.processes == [failed]
    now[0] += 0.2
    supervisor.keep_subprocess_alive()
    assert supervisor.processes == started[1:]
    assert not supervisor.should_exit.is_set()
    assert not supervisor.failed


def test_a_worker_that_dies(supervisor, caplog):
    supervisor, started = supervisor
    supervisor.processes = [Worker(-9)]
    supervisor.keep_subprocess_alive()
    assert supervisor.processes == started
    assert "Worker 1 ended (exit code -9) and is replaced." in caplog.text

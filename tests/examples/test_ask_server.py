"""The client of the server: tokens, waiting while it is busy, and a limit of time."""

import http.server
import json
import re
import subprocess
import sys
import threading
import time

import pytest

from tests import fetch_assets
from tests.runtime import toy

SCRIPT = fetch_assets.EXAMPLES / "python" / "ask_server.py"
TOKEN = "a-token-of-the-test"


class Answers(http.server.BaseHTTPRequestHandler):
    """Gives the answers that the test has listed, one after another, and keeps what was asked."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, dict(self.headers), body))
        status, headers, text, pause = self.server.answers.pop(0)
        time.sleep(pause)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    made.asked, made.answers = [], []
    made.url = f"http://127.0.0.1:{made.server_port}"
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(b"not looked at by this server")
    return path


def ask(*words, token=TOKEN):
    environment = {"VFM_TOKEN": token} if token else {}
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )
    return done.returncode, done.stdout, done.stderr


def answer(status=200, text='{"answer": {"label": "cat"}}', pause=0.0, **headers):
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, text, pause


BUSY = '{"error": "The queue is full.", "code": "queue_full"}'


def test_an_answer(server, picture):
    server.answers = [answer()]
    code, said, errors = ask(server.url, picture, "--model", "pets", "--timeout", "9")
    assert (code, errors) == (0, "")
    assert json.loads(said) == {"file": str(picture), "answer": {"label": "cat"}}
    ((path, headers, body),) = server.asked
    assert path == "/predict?model=pets"
    assert headers["Authorization"] == f"Bearer {TOKEN}"
    assert headers["Content-Type"] == "image/png"
    assert 8000 < int(headers["X-Timeout-Ms"]) <= 9000
    assert body == picture.read_bytes()


def test_the_token_of_a_file(server, picture, tmp_path):
    (tmp_path / "token").write_text("the-token-of-a-file\n")
    server.answers = [answer()]
    assert ask(server.url, picture, "--token-file", tmp_path / "token")[0] == 0
    assert server.asked[0][1]["Authorization"] == "Bearer the-token-of-a-file"


def test_without_a_token_none_is_sent(server, picture):
    server.answers = [answer()]
    assert ask(server.url, picture, token=None)[0] == 0
    assert "Authorization" not in server.asked[0][1]


def test_a_busy_server_is_asked_again_when_it_says(server, picture):
    server.answers = [
        answer(429, BUSY, Retry_After="0.4"),
        answer(429, BUSY, Retry_After="0"),
        answer(),
    ]
    begun = time.monotonic()
    assert ask(server.url, picture)[0] == 0
    assert time.monotonic() - begun > 0.4
    assert len(server.asked) == 3


def test_a_wait_beyond_the_time_is_not_begun(server, picture):
    server.answers = [answer(429, BUSY, Retry_After="60")]
    code, _, errors = ask(server.url, picture, "--timeout", "5")
    assert code == 1
    assert "cat.png: The server is busy: it asks to wait 60 s, and 5 s are given" in errors
    assert len(server.asked) == 1


def test_a_silent_server(server, picture):
    server.answers = [answer(pause=3)]
    code, _, errors = ask(server.url, picture, "--timeout", "0.5")
    assert code == 1
    assert "The server has not answered within 0.5 s." in errors


def test_other_answers_are_final(server, picture):
    refusal = '{"error": "The token is unknown.", "code": "unauthorized"}'
    server.answers = [answer(401, refusal), answer()]
    code, said, errors = ask(server.url, picture, picture)
    assert code == 1
    assert "The server answers 401: The token is unknown." in errors
    assert len(said.splitlines()) == 1  # the next file is asked about all the same


def test_a_redirection_is_not_followed(server, picture):
    server.answers = [answer(307, "", Location="http://127.0.0.1:9/predict")]
    code, _, errors = ask(server.url, picture)
    assert code == 1
    assert "The server answers 307" in errors


@pytest.mark.parametrize("text", ["<html>", "[1]"])
def test_another_kind_of_server(server, picture, text):
    server.answers = [answer(text=text)]
    code, _, errors = ask(server.url, picture)
    assert code == 1
    assert "is this a server of vfm-runtime?" in errors


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("127.0.0.1:8000", "Give its address with http:// or https:// before it."),
        ("ftp://there", "Give its address with http:// or https:// before it."),
        ("http://there:port", "Give its address with http:// or https:// before it."),
        ("http://vision.example", "A token would cross the network in the clear"),
        ("http://127.0.0.1:9", "http://127.0.0.1:9 cannot be asked ("),
    ],
)
def test_addresses(picture, url, message):
    code, _, errors = ask(url, picture)
    assert code == 1
    assert message in errors
    assert "Traceback" not in errors


def test_a_missing_file(server, tmp_path):
    code, _, errors = ask(server.url, tmp_path / "none.png")
    assert code == 1
    assert "none.png" in errors
    assert server.asked == []


def test_the_real_server(tmp_path):
    bundle = toy.build(tmp_path / "pets", onefile=False)
    (tmp_path / "tokens").write_text(TOKEN)
    words = ["--port", "0", "--token-file", tmp_path / "tokens", "--log-format", "text", bundle]
    command = [sys.executable, "-m", "vfm_runtime.cli", "serve", *map(str, words)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = iter(server.stdout.readline, "")
        url = next(found[0] for line in said if (found := re.search(r"http://[\d.]+:\d+", line)))
        next(line for line in said if "Serving pets" in line)
        photo = bundle / "golden" / "000.png"
        code, told, errors = ask(url, photo)
        assert (code, errors) == (0, "")
        golden = json.loads((bundle / "golden" / "golden.json").read_text())["images"][0]
        assert json.loads(told)["answer"]["label"] == golden["label"]
        code, _, errors = ask(url, photo, token="another-token-altogether")
        assert code == 1
        assert "The server answers 401" in errors
    finally:
        server.terminate()
        server.communicate(timeout=300)
    assert server.returncode == 0

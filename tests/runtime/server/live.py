"""A server in a thread, talked to over real connections."""

import contextlib
import http.client
import json
import socket
import struct
import threading
import time

import uvicorn
from vfm_runtime.server.app import create_app

PATIENCE_S = 120.0


class Live:
    """A server in a thread of this process: its models can be held up."""

    def __init__(self, settings):
        self.app = create_app(settings)
        config = uvicorn.Config(
            self.app,
            port=0,
            lifespan="on",
            ws="none",
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started or not self._thread.is_alive())
        assert self._server.started
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    @property
    def service(self):
        return self.app.state.service

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path, body=None, kind=None, timeout=PATIENCE_S, **headers):
        """Status, headers and body of an answer; body and headers as a client sends them."""
        return ask(self.port, path, body, kind, timeout, **headers)

    def stop(self):
        self._server.should_exit = True
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def ask(port, path, body=None, kind=None, timeout=PATIENCE_S, **headers):
    """Ask a server of this machine once."""
    made = {name.replace("_", "-"): value for name, value in headers.items()}
    if kind is not None:
        made["Content-Type"] = kind
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body, made)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def code_of(answer):
    """The status and the code of an answer that is an error, in the one form of all errors."""
    status, headers, body = answer
    values = json.loads(body)
    assert set(values) == {"error", "code", "request_id"}
    assert values["request_id"] == headers["x-request-id"]
    return status, values["code"]


def connect(port):
    """A bare connection, none of whose waits is without an end."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def head(path, length=None, kind="image/jpeg", more=""):
    """The head of a POST; without a length the body comes in chunks."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n{size}\r\n{more}"
    return f"{lines}\r\n".encode()


def reset(connection):
    """Close without a goodbye, as a client that was killed behind a router."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def read_answer(connection):
    """Status, headers and body of the answer on a bare connection."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.headers, answer.read()


def wait_until(is_so, seconds=PATIENCE_S):
    """Wait for something, and fail where it does not come."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)

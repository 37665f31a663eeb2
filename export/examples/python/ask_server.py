"""Ask a server of `vfm-runtime serve` about images or videos, with Python's standard library alone.

    VFM_TOKEN=... python ask_server.py http://127.0.0.1:8000 cat.jpg dog.png

Prints one JSON object a file; exits with 1 where one was not answered. A server that is busy says when to ask again:
that is kept to, as long as the time for the file lasts.
"""

import argparse
import http.client
import json
import mimetypes
import os
import sys
import time
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import SplitResult, urlencode, urlsplit

LOCAL = ("127.0.0.1", "localhost", "::1")
BUSY = 429
PAUSE = 1.0  # seconds, where a busy server names none


class AskError(RuntimeError):
    """The server gave no answer."""


class Client:
    """Asks one server.

    Args:
        url: Of the server, such as `https://vision.example`.
        token: One of those that it knows; None where it needs none.
        timeout: Seconds for one file, with every new try.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 30.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or not _has_port(parts):
            raise AskError(
                f"The server is {url!r}. Give its address with http:// or https:// before it."
            )
        if token and parts.scheme == "http" and parts.hostname not in LOCAL:
            raise AskError(
                f"A token would cross the network in the clear to {parts.hostname}. Use https://."
            )
        self.parts, self.token, self.timeout = parts, token, timeout

    def predict(self, data: bytes, kind: str, **options: str) -> dict[str, Any]:
        """Return the server's answer to one image or video.

        Args:
            data: The bytes of the file.
            kind: Its media type, such as `image/jpeg`.
            options: Of the address: `model`, `version`, `top`, `threshold`, `draw`.

        Raises:
            AskError: The server refuses, cannot be reached or has not answered in time.
        """
        deadline = time.monotonic() + self.timeout
        path = f"{self.parts.path.rstrip('/')}/predict?{urlencode(options)}"
        while True:
            left = deadline - time.monotonic()
            status, pause, body = self._send(path, data, kind, left)
            if status == http.client.OK:
                return _answer(body)
            if status != BUSY:
                raise AskError(f"The server answers {status}: {_reason(body)}")
            if time.monotonic() + pause >= deadline:
                raise AskError(
                    f"The server is busy: it asks to wait {pause:g} s, and {self.timeout:g} s are given for a file."
                )
            time.sleep(pause)

    def _send(self, path: str, data: bytes, kind: str, left: float) -> tuple[int, float, bytes]:
        # The server gives up when this client does, and computes nothing that nobody waits for.
        headers = {"Content-Type": kind, "X-Timeout-Ms": str(max(1, int(left * 1000)))}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        link = self._connect(max(left, 0.001))
        try:
            # http.client follows no redirection: neither token nor image goes elsewhere.
            link.request("POST", path, body=data, headers=headers)
            reply = link.getresponse()
            return reply.status, _pause(reply.getheader("Retry-After")), _read(reply, left)
        except TimeoutError as error:
            raise AskError(f"The server has not answered within {self.timeout:g} s.") from error
        except (OSError, http.client.HTTPException) as error:
            self._unreachable(error)
        finally:
            link.close()

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        secure = self.parts.scheme == "https"
        way = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        return way(self.parts.hostname or "", self.parts.port, timeout=timeout)

    def _unreachable(self, error: Exception) -> NoReturn:
        place = f"{self.parts.scheme}://{self.parts.netloc}"
        raise AskError(f"{place} cannot be asked ({error or type(error).__name__}).") from error


def _has_port(parts: SplitResult) -> bool:
    try:
        return parts.port != 0
    except ValueError:
        return False


def _read(reply: http.client.HTTPResponse, seconds: float) -> bytes:
    # The socket's own limit starts anew with every byte that comes.
    deadline, body = time.monotonic() + seconds, b""
    while piece := reply.read1():
        body += piece
        if time.monotonic() > deadline:
            raise TimeoutError
    return body


def _pause(value: str | None) -> float:
    try:
        return max(0.0, float(value)) if value else PAUSE
    except ValueError:  # a date, which this server never sends
        return PAUSE


def _answer(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError as error:
        raise AskError("The answer is no JSON: is this a server of vfm-runtime?") from error
    if not isinstance(answer, dict):
        raise AskError("The answer is no object: is this a server of vfm-runtime?")
    return answer


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")


def main() -> int:
    """Ask about each file; 1 where one was not answered."""
    parser = argparse.ArgumentParser(description="Ask a server about images or videos.")
    parser.add_argument("server", help="its address, such as http://127.0.0.1:8000")
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--model", help="its name, where the server has several")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds a file (30)")
    parser.add_argument(
        "--token-file", type=Path, help="a file with the token; else the environment's VFM_TOKEN"
    )
    words = parser.parse_args()
    options = {"model": words.model} if words.model else {}
    failed = False
    try:
        token = words.token_file.read_text().strip() if words.token_file else None
        client = Client(words.server, token or os.environ.get("VFM_TOKEN"), words.timeout)
    except (AskError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path in words.files:
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        try:
            answer = client.predict(path.read_bytes(), kind, **options)
            print(json.dumps({"file": str(path), **answer}))
        except (AskError, OSError) as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

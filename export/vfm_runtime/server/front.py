"""Around every request: its id, the gate, the form of errors, headers, its line in the log and its count."""

import asyncio
import logging
import re
import time
import uuid
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vfm_runtime.server.errors import (
    CLIENT_GONE,
    ApiError,
    ClientGoneError,
    api_error,
    error_response,
)
from vfm_runtime.server.logs import REQUEST_LOGGER
from vfm_runtime.server.security import Gate
from vfm_runtime.server.service import Note, Service

UNMATCHED = "unmatched"
"""Stands for the route where there is none, so that clients cannot invent names in logs and metrics."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
_VERSION = "/versions/{version}"
_log = logging.getLogger(__name__)
_request_log = logging.getLogger(REQUEST_LOGGER)


class Front:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, *, service: Service, gate: Gate) -> None:
        self._app = app
        self._service = service
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle what the server hands over.

        Args:
            scope: As ASGI has it.
            receive: As ASGI has it.
            send: As ASGI has it.
        """
        if scope["type"] == "http":
            await self._request(scope, receive, send)
        else:
            await self._app(scope, receive, self._told_briefly(send))

    def _told_briefly(self, send: Send) -> Send:
        async def send_brief(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and self._service.failure:
                # The text of the error instead of its traceback.
                message = {**message, "message": self._service.failure}
            await send(message)

        return send_brief

    async def _request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"")
        request_id = given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        note = Note(request_id, time.monotonic())
        method = scope["method"]
        # Every GET answers HEAD too; what is sent of it is then the server's business.
        inner = {**scope, "method": "GET" if method == "HEAD" else method}
        inner["state"] = {**scope.get("state", {}), "note": note}
        sender = _Sender(send, note, self._gate, headers.get(b"origin"))
        try:
            await self._answer(inner, receive, sender, headers)
        except asyncio.CancelledError:
            sender.status = sender.status or CLIENT_GONE
            raise
        finally:
            self._record(scope, inner, note, sender.status, sender.code)

    async def _answer(
        self, scope: Scope, receive: Receive, sender: "_Sender", headers: dict[bytes, bytes]
    ) -> None:
        try:
            allowed = self._preflight(scope, headers)
            # A browser that asks whether it may ask sends no token with that.
            self._gate.check(scope, headers, needs_token=allowed is None)
            if allowed is None:
                await self._app(scope, receive, sender)
            else:
                await Response(status_code=204, headers=allowed)(scope, receive, sender)
        except ClientGoneError:
            sender.status = CLIENT_GONE
        except Exception as error:
            told = self._told(error)
            if sender.status:
                raise  # half an answer is out already; the connection is closed
            sender.code = told.code
            response = error_response(told, scope["state"]["note"].request_id)
            await response(scope, receive, sender)

    def _preflight(self, scope: Scope, headers: dict[bytes, bytes]) -> dict[str, str] | None:
        if scope["method"] != "OPTIONS" or b"access-control-request-method" not in headers:
            return None
        return self._gate.preflight(headers.get(b"origin"))

    def _told(self, error: Exception) -> ApiError:
        told = api_error(error)
        if told is None or told.status == 500:
            _log.error("A request failed.", exc_info=error)
        return told or ApiError(500, "The server made a mistake; its log says which.")

    def _record(
        self, scope: Scope, inner: Scope, note: Note, status: int, code: str | None
    ) -> None:
        seconds = time.monotonic() - note.started
        route = getattr(inner.get("route"), "path", UNMATCHED)
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        metrics = self._service.metrics
        named = {"model": note.model or "", "version": note.version or ""}
        metrics.answered(route.replace(_VERSION, ""), status, seconds, **named)
        if code is not None:
            metrics.rejected(code)
        client = scope.get("client")
        facts: dict[str, Any] = {
            "request_id": note.request_id,
            "method": method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "model": note.model,
            "version": note.version,
            "bytes_in": note.bytes_in,
            "client": client[0] if client else None,
        }
        _request_log.info("%s %s %d", method, route, status, extra={"facts": facts})


class _Sender:
    """Sends an answer with the headers that all have, and remembers what became of it."""

    def __init__(self, send: Send, note: Note, gate: Gate, origin: bytes | None) -> None:
        self.status = 0
        self.code: str | None = None
        self._send = send
        self._note = note
        self._gate = gate
        self._origin = origin

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(raw=list(message.get("headers", [])))
            is_page = headers.get("content-type", "").startswith("text/html")
            raw = headers.raw
            raw.append((b"x-request-id", self._note.request_id.encode()))
            raw += self._gate.headers(self._origin, is_page=is_page)
            message = {**message, "headers": raw}
        await self._send(message)

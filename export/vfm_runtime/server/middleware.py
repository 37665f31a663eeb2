"""Request middleware around every route: request id, access policy, errors, headers, log and metrics."""

import asyncio
import logging
import re
import time
import uuid
from functools import partial

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vfm_runtime.server.errors import respond_to_error
from vfm_runtime.server.logs import REQUEST_LOGGER
from vfm_runtime.server.security import BARE_POLICY, PAGE_POLICY, AccessPolicy
from vfm_runtime.server.service import RequestContext, Service
from vfm_runtime.server.uploads import LimitedReceive

UNMATCHED = "unmatched"
"""Stands for the route where there is none, so that clients cannot invent names in logs and metrics."""

CLIENT_GONE = 499
"""Stands in logs and metrics for a request whose client left; nobody gets it."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT")
_request_log = logging.getLogger(REQUEST_LOGGER)


class RequestMiddleware:
    """ASGI middleware that every request goes through; its errors are answered here, in the form of all others."""

    def __init__(self, app: ASGIApp, *, service: Service, policy: AccessPolicy) -> None:
        self._app = app
        self._service = service
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle what the server hands over, as ASGI has it."""
        if scope["type"] == "http":
            await self._handle_request(scope, receive, send)
            return

        async def send_briefly(message: Message) -> None:
            if message["type"] == "lifespan.startup.failed" and self._service.failure:
                # The text of the error instead of its traceback.
                message = {**message, "message": self._service.failure}
            await send(message)

        await self._app(scope, receive, send_briefly)

    async def _handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        request_id = headers.get("x-request-id", "")
        if not _REQUEST_ID.fullmatch(request_id):
            request_id = uuid.uuid4().hex
        context = RequestContext(request_id, time.monotonic())
        method = scope["method"]
        # Every GET answers HEAD too; what is sent of it is then the server's business.
        inner = {**scope, "method": "GET" if method == "HEAD" else method}
        inner["state"] = {**scope.get("state", {}), "context": context}
        limited = LimitedReceive(receive, headers, self._service.settings)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                context.status = message["status"]
                message = {**message, "headers": _add_headers(message, request_id)}
            await send(message)

        try:
            self._policy.check_source(method, dict(scope["headers"]))
            await self._app(inner, limited, send_with_headers)
        except ClientDisconnect:
            context.status = context.status or CLIENT_GONE
        except asyncio.CancelledError:
            context.status = context.status or CLIENT_GONE
            raise
        except Exception as error:  # whatever it is, the client gets an answer that says it
            if context.status:
                raise  # half an answer is out already; the connection is closed
            response = await respond_to_error(Request(inner), error)
            reply: Send = send_with_headers
            if isinstance(self._app, CORSMiddleware):
                # Else pages of the allowed sites could not read why they are refused.
                reply = partial(self._app.send, send=send_with_headers, request_headers=headers)
            await response(inner, limited, reply)
        finally:
            context.bytes_in = limited.size
            self._record(scope, inner, context)

    def _record(self, scope: Scope, inner: Scope, context: RequestContext) -> None:
        seconds = time.monotonic() - context.started
        route = getattr(inner.get("route"), "path", UNMATCHED)
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        self._service.metrics.record_request(
            route,
            context.status,
            seconds,
            model=context.model,
            version=context.version,
            error_code=context.error_code,
        )
        client = scope.get("client")
        facts = {
            "request_id": context.request_id,
            "method": method,
            "route": route,
            "status": context.status,
            "ms": round(seconds * 1000, 2),
            "model": context.model,
            "version": context.version,
            "bytes_in": context.bytes_in,
            "client": client[0] if client else None,
        }
        _request_log.info("%s %s %d", method, route, context.status, extra={"facts": facts})


def _add_headers(message: Message, request_id: str) -> list[tuple[bytes, bytes]]:
    raw = list(message.get("headers", []))
    is_page = any(k == b"content-type" and v.startswith(b"text/html") for k, v in raw)
    policy = PAGE_POLICY if is_page else BARE_POLICY
    return [
        *raw,
        (b"x-request-id", request_id.encode()),
        (b"content-security-policy", policy.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"no-referrer"),
    ]

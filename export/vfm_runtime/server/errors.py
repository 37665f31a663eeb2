"""Answers that are errors: one JSON form for all, and which error of the library is which."""

import json
from http import HTTPStatus
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.responses import Response

from vfm_runtime.errors import ProviderError, VfmError
from vfm_runtime.media.image import ImageError
from vfm_runtime.server.batching import ClosedError, DeadlineError, QueueFullError
from vfm_runtime.server.repository import UnknownModelError

CODES: Final = {
    400: ("bad_request", "bad_image"),
    401: ("unauthorized",),
    403: ("wrong_origin",),
    404: ("not_found", "unknown_model"),
    405: ("method_not_allowed",),
    408: ("slow_body",),
    413: ("too_large",),
    415: ("unsupported_media_type",),
    421: ("wrong_host",),
    422: ("invalid",),
    429: ("queue_full",),
    500: ("internal", "model_failed"),
    503: ("not_ready", "draining"),
    504: ("deadline",),
}
"""What `code` may be, by status."""

CLIENT_GONE = 499
"""Stands in logs and metrics for a request whose client left; nobody gets it."""


class ApiError(VfmError):
    """An error that a client is told about.

    Attributes:
        status: Of HTTP.
        code: One of `CODES`.
        headers: To be sent with it.
    """

    status: int
    code: str
    headers: dict[str, str]

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = CODES[status][0] if code is None else code
        self.headers = headers or {}


class ClientGoneError(VfmError):
    """The client has left; there is nobody to answer."""


def error_response(error: ApiError, request_id: str) -> Response:
    """Make the answer that an error is.

    Args:
        error: The error.
        request_id: Of the request.
    """
    body = {"error": str(error), "code": error.code, "request_id": request_id}
    return json_response(body, error.status, error.headers)


def json_response(
    body: dict[str, Any] | list[Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Make an answer of JSON.

    Args:
        body: Plain values, all numbers finite.
        status: Of HTTP.
        headers: To be sent with it.
    """
    # ASCII only: text of a request can hold lone surrogates, which UTF-8 cannot.
    text = json.dumps(body, allow_nan=False, separators=(",", ":"))
    return Response(text.encode("ascii"), status, headers, media_type="application/json")


def api_error(error: Exception) -> ApiError | None:
    """Return what a client is told about an error; None where it is a fault of the server.

    Args:
        error: What was raised.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return _of_http(error)
    if isinstance(error, QueueFullError):
        seconds = str(max(1, round(error.retry_after)))
        return ApiError(429, str(error), headers={"Retry-After": seconds})
    if isinstance(error, ProviderError):
        return ApiError(500, "The model failed; the server's log says why.", "model_failed")
    for kind, status, code in _KNOWN:
        if isinstance(error, kind):
            return ApiError(status, str(error), code)
    return None


_KNOWN: tuple[tuple[type[Exception], int, str], ...] = (
    (UnknownModelError, 404, "unknown_model"),
    (ImageError, 400, "bad_image"),
    (DeadlineError, 504, "deadline"),
    (TimeoutError, 504, "deadline"),
    (ClosedError, 503, "draining"),
)


def _of_http(error: HTTPException) -> ApiError:
    status = error.status_code if error.status_code in CODES else 400
    headers = dict(error.headers or {})
    if status == 404:
        return ApiError(404, "There is no such route. GET /openapi.json lists them.")
    if status == 405:
        allowed = headers.get("Allow", "")
        return ApiError(
            405, f"The route does not take this method. It takes: {allowed}.", headers=headers
        )
    return ApiError(status, str(error.detail) or HTTPStatus(status).phrase, headers=headers)

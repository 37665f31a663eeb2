"""Error responses: one JSON form for all, and the status and code of each exception."""

import json
import logging
from http import HTTPStatus
from itertools import chain
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from vfm_runtime.errors import ProviderError, VfmError, format_value
from vfm_runtime.media.image import ImageError
from vfm_runtime.server.batching import ClosedError, DeadlineError, QueueFullError
from vfm_runtime.server.repository import UnknownModelError

_ERRORS: Final = {
    400: (
        "The request or its file is malformed, or not what the model takes.",
        "bad_request",
        "bad_image",
    ),
    401: ("The bearer token is missing or wrong.", "unauthorized"),
    403: ("The request is from a page of another site; only without tokens.", "wrong_origin"),
    404: ("There is no such model or version, or no such file.", "not_found", "unknown_model"),
    405: ("The route does not take this method.", "method_not_allowed"),
    408: ("The body did not arrive in time.", "slow_body"),
    413: ("The body, the image or the video is larger than the limit.", "too_large"),
    415: ("The body is of a type that is not taken, or is compressed.", "unsupported_media_type"),
    421: ("The Host header names another machine; only without tokens.", "wrong_host"),
    422: ("A parameter, or the JSON of the body, does not hold.", "invalid"),
    429: ("The queue is full; Retry-After says when to ask again.", "queue_full"),
    500: ("The server or its model failed; its log says why.", "internal", "model_failed"),
    503: ("The server is starting or stopping.", "not_ready", "draining"),
    504: ("The time of the request was over.", "deadline"),
    507: ("The state of taught classes could not be written.", "not_stored"),
}
CODES: Final = {status: codes for status, (_, *codes) in _ERRORS.items()}
"""What `code` may be, by status."""

_KINDS: Final = (
    (UnknownModelError, 404, "unknown_model"),
    (ImageError, 400, "bad_image"),
    (DeadlineError, 504, "deadline"),
    (TimeoutError, 504, "deadline"),
    (ClosedError, 503, "draining"),
)
_log = logging.getLogger(__name__)


class ApiError(VfmError, HTTPException):
    """An error that a client is told about.

    Attributes:
        code: One of `CODES`.
    """

    code: str

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code = CODES[status][0] if code is None else code

    def __str__(self) -> str:
        return self.detail


class ErrorResponse(BaseModel):
    """The one form of all errors."""

    error: str = Field(description="What is wrong, and what to do about it.")
    code: str = Field(json_schema_extra={"enum": [*chain.from_iterable(CODES.values())]})
    request_id: str


def describe_errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that may fail with these statuses, and with those that all routes have."""
    return {
        status: {"model": ErrorResponse, "description": _ERRORS[status][0]}
        for status in sorted({*statuses, 403, 421, 500})
    }


def respond_json(
    body: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None
) -> Response:
    """Make a response of plain values, all numbers finite."""
    # ASCII only: labels and text of a request can hold lone surrogates, which UTF-8 cannot.
    text = json.dumps(body, allow_nan=False, separators=(",", ":"))
    return Response(text.encode("ascii"), status, headers, media_type="application/json")


async def respond_to_error(request: Request, error: Exception) -> Response:
    """Make the response to a request that failed, and note its code for the log and the metrics."""
    answer = to_api_error(error)
    if answer is None or answer.status_code == 500:
        _log.error("A request failed.", exc_info=error)
    answer = answer or ApiError(500, "The server made a mistake; its log says which.")
    context = request.state.context
    context.error_code = answer.code
    body = {"error": answer.detail, "code": answer.code, "request_id": context.request_id}
    return respond_json(body, answer.status_code, dict(answer.headers or {}))


def to_api_error(error: Exception) -> ApiError | None:
    """Return what a client is told about an error; None where it is a fault of the server."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        faults = [(f["loc"][-1], format_value(f.get("input")), f["msg"]) for f in error.errors()]
        return ApiError(
            422, "; ".join(f"'{name}' is {value}: {m}" for name, value, m in faults[:5])
        )
    if isinstance(error, HTTPException):
        return _convert_http_error(error)
    if isinstance(error, QueueFullError):
        seconds = str(max(1, round(error.retry_after)))
        return ApiError(429, str(error), headers={"Retry-After": seconds})
    if isinstance(error, ProviderError):
        return ApiError(500, "The model failed; the server's log says why.", "model_failed")
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            return ApiError(status, str(error), code)
    return None


def _convert_http_error(error: HTTPException) -> ApiError:
    status = error.status_code if error.status_code in CODES else 400
    headers = dict(error.headers or {})
    text = str(error.detail) or HTTPStatus(status).phrase
    if status == 404:
        text = "There is no such route. GET /openapi.json lists them."
    if status == 405:
        text = f"The route does not take this method. It takes: {headers.get('Allow', '')}."
    return ApiError(status, text, headers=headers)

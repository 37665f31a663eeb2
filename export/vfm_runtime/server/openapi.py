"""What `/openapi.json` says of each route beyond what its function says: bodies, answers, and every error."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from vfm_runtime import __version__
from vfm_runtime.server.errors import CODES

Options = dict[str, Any]
"""Keyword arguments of a route."""

_MEANINGS = {
    400: "The request or its file is malformed, damaged, or not what the model takes.",
    401: "The bearer token is missing or wrong.",
    403: "The request is from a page of another site; only without tokens.",
    404: "There is no such model or version, or no such file.",
    408: "The body did not arrive in time.",
    413: "The body, the image or the video is larger than the limit.",
    415: "The body is of a type that is not taken, or is compressed.",
    421: "The Host header names another machine; only without tokens.",
    422: "A parameter, or the JSON of the body, does not hold.",
    429: "The queue is full; Retry-After says when to ask again.",
    500: "The server or its model failed; its log says why.",
    503: "The server is starting or stopping.",
    504: "The time of the request was over.",
}
_QUESTION = (400, 401, 404, 408, 413, 415, 421, 429, 500, 503, 504)


def _content(schema: Options, media: str = "application/json") -> Options:
    return {media: {"schema": schema}}


def _ref(name: str) -> Options:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(**properties: Options) -> Options:
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Options) -> Options:
    return {"type": "array", "items": items}


_TEXT: Options = {"type": "string"}
_NUMBER: Options = {"type": "number"}
_FLAG: Options = {"type": "boolean"}
_INTEGER: Options = {"type": "integer"}
_FREE: Options = {"type": "object"}
_THRESHOLDS: Options = {"type": ["array", "null"], "items": _NUMBER}


def _errors(*statuses: int) -> dict[int | str, Options]:
    made: dict[int | str, Options] = {}
    for status in statuses:
        made[status] = {
            "description": _MEANINGS[status],
            "content": _content(_ref("Error")),
        }
    if 429 in made:
        made[429]["headers"] = {"Retry-After": {"schema": _INTEGER, "description": "Seconds."}}
    return made


def _route(
    description: str,
    content: Options,
    *errors: int,
    tag: str,
    headers: Options | None = None,
    **extra: Any,
) -> Options:
    answer = {"description": description, "content": content}
    if headers:
        answer["headers"] = headers
    if 421 in errors:
        errors = (*errors, 403)  # who asks is looked at together
    guarded = 401 in errors
    more = {**extra, "security": [{"bearer": []}]} if guarded else extra
    # FastAPI adds a 422 of its own form to whatever has a parameter, unless there is one.
    return {
        "responses": {200: answer, **_errors(*errors)},
        "openapi_extra": more,
        "tags": [tag],
    }


_HEADERS = [
    {
        "name": "X-Timeout-Ms",
        "in": "header",
        "required": False,
        "description": "Milliseconds that the answer may take; the server's own limit stays.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
    },
    {
        "name": "X-Request-Id",
        "in": "header",
        "required": False,
        # Without a pattern: one that does not fit is no error.
        "description": "Comes back in the answer and stands in the log, if it has 1 to 64 letters, digits, '_', '.' "
        "and '-'; another is made if it does not.",
        "schema": _TEXT,
    },
]
_LENGTH = {
    "name": "Inference-Header-Content-Length",
    "in": "header",
    "required": False,
    "description": "Bytes of the JSON, where binary tensors follow it.",
    "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999_999},
}

_DATATYPE: Options = {"type": "string", "enum": ["UINT8", "FP32", "INT64"]}
_SHAPE = _list(_INTEGER)
_PORT = _object(name=_TEXT, datatype=_DATATYPE, shape=_SHAPE)
_SCHEMAS: Options = {
    "Error": _object(
        error={**_TEXT, "description": "What is wrong, and what to do about it."},
        code={**_TEXT, "enum": sorted(code for codes in CODES.values() for code in codes)},
        request_id=_TEXT,
    ),
    "InferRequest": {
        "type": "object",
        "required": ["inputs"],
        "additionalProperties": False,
        "properties": {
            "id": {**_TEXT, "maxLength": 256},
            "parameters": _FREE,
            "inputs": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "required": ["name", "shape", "datatype"],
                    "additionalProperties": False,
                    "properties": {
                        "name": _TEXT,
                        "shape": _list({**_INTEGER, "minimum": 1}),
                        "datatype": _DATATYPE,
                        "parameters": {
                            "type": "object",
                            "properties": {"binary_data_size": {**_INTEGER, "minimum": 0}},
                        },
                        "data": {"type": "array", "description": "Numbers, flat or nested."},
                    },
                },
            },
            "outputs": _list(
                {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {
                        "name": _TEXT,
                        "parameters": {"type": "object", "properties": {"binary_data": _FLAG}},
                    },
                }
            ),
        },
    },
    "InferResponse": {
        **_object(
            model_name=_TEXT,
            model_version=_TEXT,
            outputs=_list(
                {
                    "type": "object",
                    "required": ["name", "datatype", "shape"],
                    "properties": {
                        "name": _TEXT,
                        "datatype": _DATATYPE,
                        "shape": _SHAPE,
                        "data": _list(_NUMBER),
                        "parameters": _FREE,
                    },
                }
            ),
        ),
    },
    "Prediction": _object(
        model=_TEXT,
        version=_TEXT,
        task=_TEXT,
        answer=_FREE,
        width={"type": ["integer", "null"], "description": "Of the image; null for a video."},
        height={"type": ["integer", "null"]},
        ms=_object(open=_NUMBER, queue=_NUMBER, compute=_NUMBER, total=_NUMBER),
        request_id=_TEXT,
        drawn={"type": ["string", "null"], "description": "A data: URL of a JPEG, if asked for."},
    ),
}

SERVER = _route(
    "The server.",
    _content(_object(name=_TEXT, version=_TEXT, extensions=_list(_TEXT))),
    421,
    500,
    tag="inference protocol",
)
LIVE = _route("It runs.", _content(_object(live=_FLAG)), 421, 500, tag="inference protocol")
READY = _route(
    "It is ready.", _content(_object(ready=_FLAG)), 421, 500, 503, tag="inference protocol"
)
MODELS = _route(
    "The models.",
    _content(
        _object(
            models=_list(
                _object(
                    name=_TEXT,
                    versions=_list(_TEXT),
                    default=_TEXT,
                    task=_TEXT,
                    labels=_list(_TEXT),
                    thresholds=_THRESHOLDS,
                    heads={
                        "type": "object",
                        "additionalProperties": _object(
                            task=_TEXT, labels=_list(_TEXT), thresholds=_THRESHOLDS
                        ),
                    },
                    draws={**_FLAG, "description": "Whether `draw` gives a picture."},
                    precision=_TEXT,
                    device=_TEXT,
                    ready=_FLAG,
                )
            )
        )
    ),
    401,
    421,
    500,
    503,
    tag="models",
)
METADATA = _route(
    "Its tensors.",
    _content(
        _object(
            name=_TEXT,
            versions=_list(_TEXT),
            platform=_TEXT,
            inputs=_list(_PORT),
            outputs=_list(_PORT),
        )
    ),
    *(401, 404, 421, 422, 500, 503),
    tag="inference protocol",
)
MODEL_READY = _route(
    "It answers.",
    _content(_object(name=_TEXT, version=_TEXT, ready=_FLAG)),
    *(401, 404, 421, 422, 500, 503),
    tag="inference protocol",
)
_BINARY: Options = {"type": "string", "format": "binary"}
INFER = _route(
    "The outputs.",
    _content(_ref("InferResponse")) | _content(_BINARY, "application/octet-stream"),
    *(*_QUESTION, 422),
    tag="inference protocol",
    headers={
        "Inference-Header-Content-Length": {
            "schema": _INTEGER,
            "description": "Bytes of the JSON, where binary tensors follow it.",
        }
    },
    parameters=[*_HEADERS, _LENGTH],
    requestBody={
        "required": True,
        "content": _content(_ref("InferRequest")) | _content(_BINARY, "application/octet-stream"),
    },
)
PREDICT = _route(
    "The answer.",
    _content(_ref("Prediction")),
    *(*_QUESTION, 422),
    tag="files",
    parameters=_HEADERS,
    requestBody={
        "required": True,
        "content": _content(
            {"type": "object", "required": ["file"], "properties": {"file": _BINARY}},
            "multipart/form-data",
        )
        | _content(_BINARY, "image/*")
        | _content(_BINARY, "video/*")
        | _content(_BINARY, "application/octet-stream")
        | _content(
            {
                "type": "object",
                "required": ["data"],
                "additionalProperties": False,
                "properties": {"data": {**_TEXT, "contentEncoding": "base64"}},
            }
        ),
    },
)
METRICS = _route("Counts.", _content(_TEXT, "text/plain"), 401, 421, 500, tag="operation")
DOCUMENT = _route("This document.", _content(_FREE), 421, 500, tag="operation")
DOCS = _route("A page.", _content(_TEXT, "text/html"), 421, 500, tag="pages")
PAGE = _route("A page.", _content(_TEXT, "text/html"), 404, 421, 500, tag="pages")
STATIC = _route("A file of the page.", _content(_BINARY, "*/*"), 404, 421, 422, 500, tag="pages")


def of_version(options: Options) -> Options:
    """Return the options of a route for the same route with a version in its path.

    Args:
        options: Of the route.
    """
    return {**options, "openapi_extra": dict(options["openapi_extra"])}


def document(app: FastAPI, *, has_tokens: bool) -> Options:
    """Make the whole document.

    Args:
        app: Its routes are described.
        has_tokens: Whether some of them ask for a token.
    """
    made: Options = get_openapi(
        title="vfm-runtime",
        version=__version__,
        summary="Answers of exported models for images, videos and tensors.",
        routes=app.routes,
    )
    components = made.setdefault("components", {})
    components["schemas"] = _SCHEMAS
    if has_tokens:
        components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        # Only without tokens does the Host header matter.
        _leave_out(made, None, "421")
    else:
        _leave_out(made, "security", "401")
    return made


def _leave_out(document: Options, key: str | None, status: str) -> None:
    for methods in document["paths"].values():
        for route in methods.values():
            route["responses"].pop(status, None)
            if key is not None:
                route.pop(key, None)

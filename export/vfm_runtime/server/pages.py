"""Routes that ask no model: the page to try them, the OpenAPI document, and the metrics for Prometheus."""

import mimetypes
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response

from vfm_runtime.server.errors import ApiError, describe_errors, respond_json
from vfm_runtime.server.security import TOKEN
from vfm_runtime.server.service import get_service

FOLDER = Path(__file__).parent / "page"
"""Files of the page."""

router = APIRouter()
page_router = APIRouter(tags=["pages"])
"""The page to try the models with, which can be left out."""

_TYPES = {".js": "text/javascript", ".css": "text/css"}


@router.get(
    "/metrics",
    tags=["operation"],
    dependencies=[TOKEN],
    response_class=PlainTextResponse,
    responses=describe_errors(401),
)
async def get_metrics(request: Request) -> Response:
    """Counts and times in the words of Prometheus, of all workers together."""
    # With several workers it reads files.
    body, media_type = await run_in_threadpool(get_service(request).metrics.render)
    return Response(body, headers={"Content-Type": media_type})


@router.get(
    "/openapi.json",
    tags=["operation"],
    response_model=dict[str, Any],
    responses=describe_errors(),
)
async def get_openapi(request: Request) -> Response:
    """This description of the server."""
    return respond_json(request.app.openapi())


@page_router.get("/", response_class=HTMLResponse, responses=describe_errors())
async def get_index() -> Response:
    """A page to try the models with."""
    return _read_file("index.html")


@page_router.get(
    "/static/{file}",
    responses={
        200: {"content": {"*/*": {"schema": {"type": "string", "format": "binary"}}}},
        **describe_errors(404, 422),
    },
    response_class=Response,
)
async def get_static(file: str) -> Response:
    """A file of the page."""
    return _read_file(file)


def _read_file(name: str) -> Response:
    # Looked up, not joined: a name can lead nowhere else.
    path = {path.name: path for path in FOLDER.glob("*") if path.is_file()}.get(name)
    if path is None:
        raise ApiError(404, "The page has no such file.")
    media_type = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    # Without a cache: after an upgrade nobody shall see half of the old page.
    headers = {"Cache-Control": "no-cache"}
    return Response(path.read_bytes(), headers=headers, media_type=media_type)

"""What is not a question to a model: the page, the list of routes, the document of the API, and the metrics."""

import mimetypes
from pathlib import Path

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from vfm_runtime.server import openapi
from vfm_runtime.server.errors import ApiError, json_response
from vfm_runtime.server.service import service_of

FOLDER = Path(__file__).parent / "page"
"""Files of the pages."""

router = APIRouter()
page_router = APIRouter()
"""The page to try the models with, which can be left out."""

_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


@router.get("/metrics", **openapi.METRICS)
async def metrics(request: Request) -> Response:
    """Counts and times in the words of Prometheus, of all workers together."""
    # Of several workers it reads files.
    body, media = await run_in_threadpool(service_of(request).metrics.render)
    return Response(body, headers={"Content-Type": media})


@router.get("/openapi.json", **openapi.DOCUMENT)
async def document(request: Request) -> Response:
    """This description of the server."""
    return json_response(request.app.openapi())


@router.get("/docs", **openapi.DOCS)
async def docs() -> Response:
    """The routes, for people."""
    return _file("docs.html")


@router.get("/static/{file}", **openapi.STATIC)
async def static(file: str) -> Response:
    """A file of the pages."""
    if file.endswith(".html"):
        raise ApiError(
            404, "Pages have addresses of their own: / and /docs."
        )  # and / may be left out
    return _file(file)


@page_router.get("/", **openapi.PAGE)
async def index() -> Response:
    """A page to try the models with."""
    return _file("index.html")


def _file(name: str) -> Response:
    # Looked up, not joined: a name can lead nowhere else.
    path = {path.name: path for path in FOLDER.glob("*") if path.is_file()}.get(name)
    if path is None:
        raise ApiError(404, "The pages have no such file.")
    media = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    # After an upgrade nobody shall see half of the old page.
    headers = {"Cache-Control": "no-cache"}
    return Response(
        path.read_bytes(), headers=headers, media_type=media or "application/octet-stream"
    )

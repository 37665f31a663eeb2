"""What is not a question to a model: the page, the list of routes, the document of the API, and the metrics."""

import html
import mimetypes
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from vfm_runtime.server import openapi
from vfm_runtime.server.errors import ApiError, json_response
from vfm_runtime.server.service import service_of

FOLDER = Path(__file__).parent / "page"
"""Files of the page."""

INDEX = "index.html"

router = APIRouter()
page_router = APIRouter()
"""The page itself, which can be left out."""

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
async def docs(request: Request) -> Response:
    """The routes, for people."""
    return HTMLResponse(docs_page(request.app.openapi()))


@page_router.get("/", **openapi.PAGE)
async def index() -> Response:
    """A page to try the models with."""
    return _file(INDEX)


@page_router.get("/static/{file}", **openapi.STATIC)
async def static(file: str) -> Response:
    """A file of the page."""
    return _file(file)


def _file(name: str) -> Response:
    # Looked up, not joined: a name can lead nowhere else.
    path = {path.name: path for path in FOLDER.glob("*") if path.is_file()}.get(name)
    if path is None:
        raise ApiError(404, "The page has no such file.")
    media = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    # After an upgrade nobody shall see half of the old page.
    headers = {"Cache-Control": "no-cache"}
    return Response(
        path.read_bytes(), headers=headers, media_type=media or "application/octet-stream"
    )


def docs_page(document: dict[str, Any]) -> str:
    """Return the routes as one page of HTML without styles, scripts, or anything from elsewhere.

    Args:
        document: What `/openapi.json` gives.
    """
    parts = []
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            parts.append(_section(method.upper(), path, route))
    title = html.escape(document["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: routes</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"></head><body><main>'
        f"<h1>{title} {html.escape(document['info']['version'])}</h1>"
        f"<p>{html.escape(document['info']['summary'])}</p>"
        '<p>The whole description is in <a href="/openapi.json">openapi.json</a>.</p>'
        f"{''.join(parts)}</main></body></html>"
    )


def _section(method: str, path: str, route: dict[str, Any]) -> str:
    lines = [f"<h2><code>{method} {html.escape(path)}</code></h2>"]
    lines.append(f"<p>{html.escape(route.get('description', ''))}</p>")
    rows = [
        (f"{entry['name']} ({entry['in']})", entry.get("description", ""))
        for entry in route.get("parameters", [])
    ]
    rows += [("body", media) for media in route.get("requestBody", {}).get("content", {})]
    rows += [(status, answer["description"]) for status, answer in route["responses"].items()]
    listed = "".join(
        f"<dt><code>{html.escape(name)}</code></dt><dd>{html.escape(text)}</dd>"
        for name, text in rows
    )
    return f"<section>{''.join(lines)}<dl>{listed}</dl></section>"

"""The FastAPI application: all routes over one repository of models."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from vfm_runtime import __version__
from vfm_runtime.server import open_inference, pages, predict, search, teach
from vfm_runtime.server.errors import respond_to_error
from vfm_runtime.server.metrics import Metrics
from vfm_runtime.server.middleware import RequestMiddleware
from vfm_runtime.server.security import AccessPolicy, read_teach_tokens, read_tokens
from vfm_runtime.server.service import Service
from vfm_runtime.server.settings import Settings

_REQUEST_HEADERS = (
    *("Authorization", "Content-Type", "Inference-Header-Content-Length", "X-Request-Id"),
    "X-Timeout-Ms",
)
_RESPONSE_HEADERS = ("Inference-Header-Content-Length", "Retry-After", "X-Request-Id")


def create_app(settings: Settings) -> FastAPI:
    """Create the application; its models are loaded when it starts.

    Raises:
        SecurityError: A token cannot be used, or the file of tokens cannot be read.
    """
    service = Service(settings, Metrics())
    tokens = read_tokens(settings)
    app = FastAPI(
        title="vfm-runtime",
        version=__version__,
        summary="Answers of exported models for images, videos and tensors.",
        lifespan=_run_service,
        # The document is a route with the headers and the errors of all others; its pages would load foreign code.
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.state.policy = AccessPolicy(settings, tokens, read_teach_tokens(settings))
    app.include_router(open_inference.router)
    app.include_router(predict.router)
    app.include_router(search.router)
    app.include_router(pages.router)
    if settings.state is not None:
        app.include_router(teach.router)
    if settings.page:
        app.include_router(pages.page_router)
    for kind in (HTTPException, RequestValidationError):
        app.add_exception_handler(kind, respond_to_error)
    if settings.allow_origin:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allow_origin,
            allow_methods=("GET", "POST"),
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_RESPONSE_HEADERS,
        )
    app.add_middleware(RequestMiddleware, service=service, policy=app.state.policy)
    app.openapi = cache(lambda: _describe(app, has_tokens=bool(tokens)))  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _run_service(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    await service.start()
    try:
        yield
    finally:
        await service.stop()


def _describe(app: FastAPI, *, has_tokens: bool) -> dict[str, Any]:
    document = FastAPI.openapi(app)
    document["components"]["schemas"] |= open_inference.REQUEST_SCHEMAS
    for route in (route for methods in document["paths"].values() for route in methods.values()):
        # Only without tokens does the Host header matter.
        route["responses"].pop("421" if has_tokens else "401", None)
        if not has_tokens:
            route.pop("security", None)
    return document

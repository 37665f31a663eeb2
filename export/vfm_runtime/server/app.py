"""The application: all routes over one repository of models."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, NoReturn

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from vfm_runtime import __version__
from vfm_runtime.server import openapi, pages, predict, v2
from vfm_runtime.server.errors import ApiError
from vfm_runtime.server.front import Front
from vfm_runtime.server.logs import take_warnings
from vfm_runtime.server.metrics import Metrics
from vfm_runtime.server.security import Gate, read_tokens
from vfm_runtime.server.service import Service
from vfm_runtime.server.settings import PARENT_VARIABLE, SETTINGS_VARIABLE, Settings
from vfm_runtime.server.supervisor import end_with_parent


def create_app(settings: Settings) -> FastAPI:
    """Make the application; its models are loaded when it starts.

    Args:
        settings: How it runs.

    Raises:
        SecurityError: A token cannot be used, or the file of tokens cannot be read.
    """
    service = Service(settings, Metrics())
    tokens = read_tokens(settings)
    app = FastAPI(
        title="vfm-runtime",
        version=__version__,
        lifespan=_lifespan,
        # Routes of its own, which load nothing from elsewhere and have the form of all others.
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(v2.router)
    app.include_router(predict.router)
    app.include_router(pages.router)
    if settings.page:
        app.include_router(pages.page_router)
    app.add_exception_handler(HTTPException, _raise)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_middleware(Front, service=service, gate=Gate(settings, tokens))
    describe = cache(lambda: openapi.document(app, has_tokens=bool(tokens)))
    app.openapi = describe  # type: ignore[method-assign]
    return app


def from_environment() -> FastAPI:
    """Make the application of a worker process, whose settings stand in its environment."""
    take_warnings()
    end_with_parent(int(os.environ[PARENT_VARIABLE]))
    return create_app(Settings.from_json(os.environ[SETTINGS_VARIABLE]))


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    await service.start()
    try:
        yield
    finally:
        await service.stop()


async def _raise(request: Request, error: Exception) -> NoReturn:
    # Up to the front, which gives all errors one form.
    raise error


async def _invalid(request: Request, error: Exception) -> NoReturn:
    assert isinstance(error, RequestValidationError)
    raise ApiError(422, "; ".join(_fault(fault) for fault in error.errors()[:5]))


def _fault(fault: dict[str, Any]) -> str:
    name = fault["loc"][-1]
    given = repr(fault.get("input"))
    given = given if len(given) <= 80 else f"{given[:77]}..."
    return f"'{name}' is {given}: {fault['msg']}"

"""Routes of taught classes: teach, forget, classify and why, where the server has a state folder."""

import base64
import time
from collections.abc import Callable
from typing import Annotated, ParamSpec, TypeVar

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from vfm_runtime.errors import DataError, OptionError, StateError
from vfm_runtime.media.image import ImageError
from vfm_runtime.media.video import is_video
from vfm_runtime.server.errors import ApiError, describe_errors, respond_json
from vfm_runtime.server.predict import FILE_BODIES, KNOWN_PARAMETERS
from vfm_runtime.server.repository import ServedModel
from vfm_runtime.server.security import TEACH_TOKEN, TOKEN
from vfm_runtime.server.service import DEADLINE, RequestContext, Service, get_service
from vfm_runtime.server.uploads import Upload, check_pixels, open_picture, read_upload, read_uploads
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.teaching.classes import TaughtClasses, hash_image
from vfm_runtime.teaching.state import TaughtExample, TaughtState, check_label
from vfm_runtime.teaching.store import StorageError

router = APIRouter(tags=["taught classes"], dependencies=[DEADLINE, KNOWN_PARAMETERS])
"""Routes that are there with --state alone."""

_MOST_NEAREST = 100
_P = ParamSpec("_P")
_T = TypeVar("_T")

_Model = Annotated[str | None, Query(description="Name; needed where several are served.")]
_Version = Annotated[str | None, Query(description="The highest, if left out.")]
_Label = Annotated[str, Query(description="Name of the class.")]
_ERRORS = describe_errors(400, 401, 404, 408, 413, 415, 422, 429, 503, 504, 507)


class TaughtResponse(BaseModel):
    """What a model was taught."""

    model: str
    state_version: int = Field(description="How often it was changed.")
    classes: dict[str, int] = Field(description="Number of examples by class.")
    keeps_pictures: bool
    request_id: str


class LabelShare(BaseModel):
    """A class and its score."""

    label: str
    score: float


class NearestExample(BaseModel):
    """An example that an answer rests on."""

    label: str
    similarity: float
    name: str
    sha256: str
    picture: str | None = Field(description="A data: URL of a small JPEG, where pictures are kept.")


class ClassifyResponse(BaseModel):
    """The answer of the taught classes for one image."""

    model: str
    version: str
    label: str
    score: float
    top: list[LabelShare]
    nearest: list[NearestExample]
    state_version: int = Field(description="Version of the state that answered.")
    ms: float
    request_id: str


@router.get("/taught", dependencies=[TOKEN], response_model=TaughtResponse, responses=_ERRORS)
async def get_taught(request: Request, model: _Model = None, version: _Version = None) -> Response:
    """List the classes that a model was taught."""
    service = get_service(request)
    served = service.select_model(request, model, version)
    taught = _require_taught(served)
    state = await _run(service, taught.store.read)
    return _respond(request, service, served, state)


@router.post(
    "/teach",
    dependencies=[TEACH_TOKEN],
    response_model=TaughtResponse,
    responses=_ERRORS,
    openapi_extra={"requestBody": FILE_BODIES},
)
async def teach(
    request: Request, label: _Label, model: _Model = None, version: _Version = None
) -> Response:
    """Teach a class by one image, or by several in fields `file` of one form; all are learned, or none."""
    service = get_service(request)
    served = service.select_model(request, model, version)
    taught = _require_taught(served)
    name = await _run(service, check_label, label)

    async def answer(uploads: list[Upload]) -> Response:
        vectors, pictures = [], []
        for number, upload in enumerate(uploads, 1):
            try:
                vector, picture = await _embed(request, service, served, upload)
            except (ImageError, ApiError) as error:
                if len(uploads) == 1:
                    raise
                code = error.code if isinstance(error, ApiError) else "bad_image"
                status = error.status_code if isinstance(error, ApiError) else 400
                which = f"File {number} of {len(uploads)} ({upload.name or 'without a name'})"
                raise ApiError(
                    status, f"{which}: {error} None of the files was learned.", code
                ) from error
            vectors.append(vector)
            pictures.append(picture)
        examples = [TaughtExample(name, hash_image(upload.data), upload.name) for upload in uploads]
        state = await _run(service, taught.add, examples, np.concatenate(vectors), pictures)
        return _respond(request, service, served, state)

    return await service.handle(request, read_uploads, answer)


@router.post(
    "/forget", dependencies=[TEACH_TOKEN], response_model=TaughtResponse, responses=_ERRORS
)
async def forget(
    request: Request, label: _Label, model: _Model = None, version: _Version = None
) -> Response:
    """Delete a taught class for good."""
    service = get_service(request)
    served = service.select_model(request, model, version)
    taught = _require_taught(served)

    async def answer(_: bytes) -> Response:
        state = await _run(service, taught.forget, label)
        return _respond(request, service, served, state)

    return await service.handle(request, Request.body, answer)


@router.post(
    "/classify",
    dependencies=[TOKEN],
    response_model=ClassifyResponse,
    responses=_ERRORS,
    openapi_extra={"requestBody": FILE_BODIES},
)
async def classify(request: Request, model: _Model = None, version: _Version = None) -> Response:
    """Answer for one image by the taught classes."""
    return await _explain(request, model, version, 0)


@router.post(
    "/why",
    dependencies=[TEACH_TOKEN],
    response_model=ClassifyResponse,
    responses=_ERRORS,
    openapi_extra={"requestBody": FILE_BODIES},
)
async def explain(
    request: Request,
    model: _Model = None,
    version: _Version = None,
    nearest: Annotated[int, Query(ge=0, le=_MOST_NEAREST, description="Examples to show.")] = 3,
) -> Response:
    """Answer for one image by the taught classes, with the examples nearest to it."""
    return await _explain(request, model, version, nearest)


async def _explain(
    request: Request, model: str | None, version: str | None, num_nearest: int
) -> Response:
    service = get_service(request)
    served = service.select_model(request, model, version)
    taught = _require_taught(served)
    context: RequestContext = request.state.context

    async def answer(upload: Upload) -> Response:
        vector, _ = await _embed(request, service, served, upload)
        # The state is looked at last: what was changed meanwhile counts.
        (explanation,) = await _run(service, taught.explain, vector, num_nearest)
        values = explanation.to_dict()
        for row, evidence in zip(values["nearest"], explanation.evidence, strict=True):
            data = base64.b64encode(evidence.picture).decode("ascii")
            row["picture"] = f"data:image/jpeg;base64,{data}" if data else None
        return respond_json(
            {
                "model": served.name,
                "version": served.version,
                **values,
                "ms": round((time.monotonic() - context.started) * 1000, 3),
                "request_id": context.request_id,
            }
        )

    return await service.handle(request, read_upload, answer)


async def _run(service: Service, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Run work on what was taught in a thread, and tell the client why it cannot be done."""
    try:
        return await service.run_in_thread(work, *args, **kwargs)
    except StorageError as error:
        raise ApiError(507, str(error)) from error
    except (DataError, OptionError, StateError) as error:
        raise ApiError(422, str(error)) from error


def _require_taught(served: ServedModel) -> TaughtClasses:
    if served.taught is None:
        raise ApiError(
            422,
            f"The model '{served.name}' gives no embeddings, by which classes are taught. Export it again with "
            "--embedding pooled.",
        )
    return served.taught


async def _embed(
    request: Request, service: Service, served: ServedModel, upload: Upload
) -> tuple[NDArray[np.float32], bytes]:
    """Return the embedding [1, D] of an uploaded image, and the picture that is kept of it."""
    context: RequestContext = request.state.context
    if upload.is_video or is_video(upload.data):
        raise ApiError(415, "A video was sent; classes are taught by images. Send an image.")
    height, width = await service.run_in_thread(
        check_pixels, upload.data, service.settings.max_pixels
    )

    def open_example() -> tuple[Arrays, bytes]:
        pixels = open_picture(upload.data, served.model.value_range)
        assert served.taught is not None
        return served.model.prepare(pixels), served.taught.shrink_picture(pixels)

    inputs, picture = await service.open_in_thread(height * width, open_example)
    outputs, _ = await service.run_model(served, inputs, context.deadline)
    assert served.model.embedding is not None
    return np.asarray(outputs[served.model.embedding.output], np.float32), picture


def _respond(
    request: Request, service: Service, served: ServedModel, state: TaughtState
) -> Response:
    return respond_json(
        {
            "model": served.name,
            "state_version": state.version,
            "classes": state.counts,
            "keeps_pictures": service.settings.keep_pictures,
            "request_id": request.state.context.request_id,
        }
    )

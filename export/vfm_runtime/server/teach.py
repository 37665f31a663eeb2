"""Routes of taught classes: teach, forget, classify and why, where the server has a state folder."""

import base64
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ParamSpec, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from vfm_runtime.errors import DataError, OptionError, StateError
from vfm_runtime.media.image import ImageError
from vfm_runtime.server.errors import ApiError, describe_errors, respond_json
from vfm_runtime.server.predict import FILE_BODIES, KNOWN_PARAMETERS
from vfm_runtime.server.repository import ServedModel
from vfm_runtime.server.search import embed_upload
from vfm_runtime.server.security import TEACH_TOKEN, TOKEN
from vfm_runtime.server.service import DEADLINE, RequestContext, Service, get_service
from vfm_runtime.server.uploads import Upload, read_upload, read_uploads
from vfm_runtime.teaching.classes import TaughtClasses, hash_image
from vfm_runtime.teaching.state import TaughtExample, TaughtState, check_label
from vfm_runtime.teaching.store import StorageError

router = APIRouter(tags=["taught classes"], dependencies=[DEADLINE, KNOWN_PARAMETERS])
"""Routes that are there with --state alone."""

_MOST_NEAREST = 100
_P = ParamSpec("_P")
_T = TypeVar("_T")

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


@dataclass(frozen=True)
class _Asked:
    """What a request is about."""

    service: Service
    served: ServedModel
    taught: TaughtClasses

    async def run(self, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Run work on what was taught in a thread, and tell the client why it cannot be done."""
        try:
            return await self.service.run_in_thread(work, *args, **kwargs)
        except StorageError as error:
            raise ApiError(507, str(error)) from error
        except (DataError, OptionError, StateError) as error:
            raise ApiError(422, str(error)) from error

    def respond(self, request: Request, state: TaughtState) -> Response:
        """Say what the model was taught."""
        return respond_json(
            {
                "model": self.served.name,
                "state_version": state.version,
                "classes": state.counts,
                "keeps_pictures": self.service.settings.keep_pictures,
                "request_id": request.state.context.request_id,
            }
        )


def _select_taught(
    request: Request,
    model: Annotated[
        str | None, Query(description="Name; needed where several are served.")
    ] = None,
    version: Annotated[str | None, Query(description="The highest, if left out.")] = None,
) -> _Asked:
    service = get_service(request)
    served = service.select_model(request, model, version)
    if served.taught is None:
        raise ApiError(
            422,
            f"The model '{served.name}' gives no embeddings, by which classes are taught. Export it again with "
            "--embedding pooled.",
        )
    return _Asked(service, served, served.taught)


_Model = Annotated[_Asked, Depends(_select_taught)]


@router.get("/taught", dependencies=[TOKEN], response_model=TaughtResponse, responses=_ERRORS)
async def get_taught(request: Request, asked: _Model) -> Response:
    """List the classes that a model was taught."""
    return asked.respond(request, await asked.run(asked.taught.store.read))


@router.post(
    "/teach",
    dependencies=[TEACH_TOKEN],
    response_model=TaughtResponse,
    responses=_ERRORS,
    openapi_extra={"requestBody": FILE_BODIES},
)
async def teach(request: Request, asked: _Model, label: _Label) -> Response:
    """Teach a class by one image, or by several in fields `file` of one form; all are learned, or none."""
    name = await asked.run(check_label, label)

    async def answer(uploads: list[Upload]) -> Response:
        vectors, pictures = [], []
        for number, upload in enumerate(uploads, 1):
            try:
                vector, picture = await embed_upload(
                    request, asked.served, upload, shrink=asked.taught.shrink_picture
                )
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
        state = await asked.run(asked.taught.add, examples, np.concatenate(vectors), pictures)
        return asked.respond(request, state)

    return await asked.service.handle(request, read_uploads, answer)


@router.post(
    "/forget", dependencies=[TEACH_TOKEN], response_model=TaughtResponse, responses=_ERRORS
)
async def forget(request: Request, asked: _Model, label: _Label) -> Response:
    """Delete a taught class for good."""

    async def answer(_: bytes) -> Response:
        return asked.respond(request, await asked.run(asked.taught.forget, label))

    return await asked.service.handle(request, Request.body, answer)


@router.post(
    "/classify",
    dependencies=[TOKEN],
    response_model=ClassifyResponse,
    responses=_ERRORS,
    openapi_extra={"requestBody": FILE_BODIES},
)
async def classify(request: Request, asked: _Model) -> Response:
    """Answer for one image by the taught classes."""
    return await _explain(request, asked, 0, is_traffic=True)


@router.post(
    "/why",
    dependencies=[TEACH_TOKEN],
    response_model=ClassifyResponse,
    responses=_ERRORS,
    openapi_extra={"requestBody": FILE_BODIES},
)
async def explain(
    request: Request,
    asked: _Model,
    nearest: Annotated[int, Query(ge=0, le=_MOST_NEAREST, description="Examples to show.")] = 3,
) -> Response:
    """Answer for one image by the taught classes, with the examples nearest to it."""
    return await _explain(request, asked, nearest, is_traffic=False)


async def _explain(
    request: Request, asked: _Asked, num_nearest: int, *, is_traffic: bool
) -> Response:
    context: RequestContext = request.state.context

    async def answer(upload: Upload) -> Response:
        vector, _ = await embed_upload(request, asked.served, upload, is_traffic=is_traffic)
        # The state is looked at last: what was changed meanwhile counts.
        (explanation,) = await asked.run(asked.taught.explain, vector, num_nearest)
        values = explanation.to_dict()
        for row, evidence in zip(values["nearest"], explanation.evidence, strict=True):
            data = base64.b64encode(evidence.picture).decode("ascii")
            row["picture"] = f"data:image/jpeg;base64,{data}" if data else None
        return respond_json(
            {
                "model": asked.served.name,
                "version": asked.served.version,
                **values,
                "ms": round((time.monotonic() - context.started) * 1000, 3),
                "request_id": context.request_id,
            }
        )

    return await asked.service.handle(request, read_upload, answer)

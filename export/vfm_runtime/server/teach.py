"""Routes of taught classes: teach, forget, classify and why, where the server has a state folder."""

import base64
import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ParamSpec, TypeVar

import numpy as np
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from vfm_runtime.errors import DataError, OptionError, StateError, format_value
from vfm_runtime.media.image import ImageError
from vfm_runtime.server.errors import ApiError, describe_errors, respond_json
from vfm_runtime.server.predict import (
    FILE_BODIES,
    KNOWN_PARAMETERS,
    ModelName,
    ModelVersion,
    run_upload,
)
from vfm_runtime.server.repository import ServedModel
from vfm_runtime.server.search import embed_upload
from vfm_runtime.server.security import TEACH_TOKEN, TOKEN
from vfm_runtime.server.service import DEADLINE, RequestContext, Service, get_service
from vfm_runtime.server.uploads import Upload, open_picture, read_upload, read_uploads
from vfm_runtime.teaching.boxes import THRESHOLD, MarkedImage, TaughtBoxes, check_boxes
from vfm_runtime.teaching.classes import Evidence, TaughtClasses, hash_image
from vfm_runtime.teaching.state import TaughtExample, TaughtState, check_label
from vfm_runtime.teaching.store import StorageError
from vfm_runtime.teaching.taught import Taught

router = APIRouter(tags=["taught classes"], dependencies=[DEADLINE, KNOWN_PARAMETERS])
"""Routes that are there with --state alone."""

_MOST_NEAREST = 100
_LONGEST_BOXES = 4000
"""Characters, of up to 12 bytes in an address; the HTTP parser takes 64 KiB of it."""
_P = ParamSpec("_P")
_T = TypeVar("_T")

_Label = Annotated[str, Query(description="Name of the class.")]
_ERRORS = describe_errors(400, 401, 404, 408, 413, 415, 422, 429, 503, 504, 507)


class TaughtResponse(BaseModel):
    """What a model was taught."""

    model: str
    state_version: int = Field(description="How often it was changed.")
    classes: dict[str, int] = Field(description="Number of examples by class.")
    threshold: float | None = Field(
        description="Least score of boxes of taught classes that are shown; null of whole images."
    )
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
    picture: str | None = Field(
        description="A data: URL of a small JPEG of the image or box, where pictures are kept."
    )


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


class ExplainedBox(BaseModel):
    """A box that is shown, left, top, right and bottom in pixels; of a taught class with the nearest examples."""

    box: list[float]
    label: str
    score: float
    nearest: list[NearestExample]


class BoxesResponse(BaseModel):
    """The boxes of a detector that are shown, and what those of taught classes rest on."""

    model: str
    version: str
    boxes: list[ExplainedBox]
    state_version: int = Field(description="Version of the state that answered.")
    ms: float
    request_id: str


@dataclass(frozen=True)
class _Asked:
    """What a request is about."""

    service: Service
    served: ServedModel
    taught: Taught

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
                "threshold": THRESHOLD if isinstance(self.taught, TaughtBoxes) else None,
                "keeps_pictures": self.service.settings.keep_pictures,
                "request_id": request.state.context.request_id,
            }
        )


def _select_taught(
    request: Request,
    model: ModelName = None,
    version: ModelVersion = None,
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
async def teach(
    request: Request,
    asked: _Model,
    label: _Label,
    boxes: Annotated[
        str | None,
        Query(
            max_length=_LONGEST_BOXES,
            description="For a detector: JSON with a list of boxes for each file, those of all objects of the class in "
            "it, each left, top, right and bottom in pixels: [[[10, 20, 60, 90]]].",
        ),
    ] = None,
) -> Response:
    """Teach a class by one image, or by several in fields `file` of one form; all are learned, or none.

    A detector is taught by `boxes` in them.
    """
    taught = asked.taught
    if isinstance(taught, TaughtBoxes):
        name, lists = await asked.run(taught.check_name, label), _parse_boxes(boxes)
        learn = partial(_learn_boxes, request, asked, taught, name, lists)
    elif boxes is None:
        assert isinstance(taught, TaughtClasses)
        name = await asked.run(check_label, label)
        learn = partial(_learn_images, request, asked, taught, name)
    else:
        raise ApiError(
            422,
            f"The model '{asked.served.name}' is taught by whole images, and not by boxes. Leave boxes out.",
        )

    async def answer(uploads: list[Upload]) -> Response:
        return asked.respond(request, await learn(uploads))

    return await asked.service.handle(request, read_uploads, answer)


async def _learn_images(
    request: Request, asked: _Asked, taught: TaughtClasses, name: str, uploads: list[Upload]
) -> TaughtState:
    vectors, pictures = [], []
    for number, upload in enumerate(uploads, 1):
        with _name_file(number, uploads):
            vector, picture = await embed_upload(
                request, asked.served, upload, shrink=taught.shrink_picture
            )
        vectors.append(vector)
        pictures.append(picture)
    examples = [TaughtExample(name, hash_image(upload.data), upload.name) for upload in uploads]
    return await asked.run(taught.add, examples, np.concatenate(vectors), pictures)


async def _learn_boxes(
    request: Request,
    asked: _Asked,
    taught: TaughtBoxes,
    name: str,
    lists: list[Any],
    uploads: list[Upload],
) -> TaughtState:
    if len(lists) != len(uploads):
        raise ApiError(
            422,
            f"There are boxes for {len(lists)} files, and {len(uploads)} were sent. Give a list of boxes for each "
            "file.",
        )
    marked = []
    for number, (upload, boxes) in enumerate(zip(uploads, lists, strict=True), 1):
        corners = await asked.run(check_boxes, boxes, upload.name or f"file {number}")
        with _name_file(number, uploads):
            file, outputs, _ = await run_upload(request, asked.served, upload, is_traffic=False)
        located, vectors = taught.locate(file.opened.context, outputs)
        pictures: list[bytes] = []
        if taught.keeps_pictures:
            pixels = open_picture(upload.data, asked.served.model.value_range)
            pictures = await asked.service.run_in_thread(taught.crop_boxes, pixels, corners)
        sha256 = hash_image(upload.data)
        image = MarkedImage(name, sha256, upload.name, corners, located, vectors, pictures)
        marked.append(image)
    return await asked.run(taught.add, marked)


@contextlib.contextmanager
def _name_file(number: int, uploads: list[Upload]) -> Iterator[None]:
    """Say which of several files it was that cannot be used."""
    try:
        yield
    except (ImageError, ApiError) as error:
        if len(uploads) == 1:
            raise
        code = error.code if isinstance(error, ApiError) else "bad_image"
        status = error.status_code if isinstance(error, ApiError) else 400
        name = uploads[number - 1].name or "without a name"
        which = f"File {number} of {len(uploads)} ({name})"
        raise ApiError(status, f"{which}: {error} None of the files was learned.", code) from error


def _parse_boxes(text: str | None) -> list[Any]:
    """Return a list of boxes for each file, which are not checked yet."""
    try:
        lists = json.loads(text or "")
    except (ValueError, RecursionError):
        lists = None
    if not isinstance(lists, list):
        raise ApiError(
            422,
            f"boxes is {format_value(text)}. A detector is taught by boxes: give JSON with a list of boxes for each "
            "file, such as [[[10, 20, 60, 90]]].",
        )
    return lists


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
    if not isinstance(asked.taught, TaughtClasses):
        raise ApiError(
            422,
            f"The model '{asked.served.name}' finds objects: what it was taught is among the answers of /predict.",
        )
    return await _explain(request, asked, 0, is_traffic=True)


@router.post(
    "/why",
    dependencies=[TEACH_TOKEN],
    response_model=ClassifyResponse | BoxesResponse,
    responses=_ERRORS,
    openapi_extra={"requestBody": FILE_BODIES},
)
async def explain(
    request: Request,
    asked: _Model,
    nearest: Annotated[int, Query(ge=0, le=_MOST_NEAREST, description="Examples to show.")] = 3,
) -> Response:
    """Answer for one image by the taught classes, with the examples nearest to it, or to each box of a detector."""
    return await _explain(request, asked, nearest, is_traffic=False)


async def _explain(
    request: Request, asked: _Asked, num_nearest: int, *, is_traffic: bool
) -> Response:
    context: RequestContext = request.state.context
    taught, served = asked.taught, asked.served

    async def answer(upload: Upload) -> Response:
        # The state is looked at last: what was changed meanwhile counts.
        if isinstance(taught, TaughtBoxes):
            file, outputs, _ = await run_upload(request, served, upload, is_traffic=is_traffic)
            task = served.model.task_type
            boxes = await asked.run(taught.explain, task, file.opened, outputs, num_nearest)
            values = boxes.to_dict()
            for row, some in zip(values["boxes"], boxes.evidence, strict=True):
                _add_pictures(row["nearest"], some)
        else:
            assert isinstance(taught, TaughtClasses)
            vector, _ = await embed_upload(request, served, upload, is_traffic=is_traffic)
            (explanation,) = await asked.run(taught.explain, vector, num_nearest)
            values = explanation.to_dict()
            _add_pictures(values["nearest"], explanation.evidence)
        return respond_json(
            {
                "model": served.name,
                "version": served.version,
                **values,
                "ms": round((time.monotonic() - context.started) * 1000, 3),
                "request_id": context.request_id,
            }
        )

    return await asked.service.handle(request, read_upload, answer)


def _add_pictures(rows: Sequence[dict[str, Any]], evidence: Sequence[Evidence]) -> None:
    for row, one in zip(rows, evidence, strict=True):
        data = base64.b64encode(one.picture).decode("ascii")
        row["picture"] = f"data:image/jpeg;base64,{data}" if data else None

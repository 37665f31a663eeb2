"""Route for files: an image or a video in, the prediction of a model out."""

import base64
import io
import time
from collections.abc import Iterator
from copy import deepcopy
from functools import partial, reduce
from operator import or_
from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Depends, Query
from PIL import Image
from pydantic import BaseModel, Field, GetJsonSchemaHandler, RootModel, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from vfm_runtime.bundle.model import Model
from vfm_runtime.bundle.predictor import make_empty
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.media.demux import Guard, VideoFile, VideoLimits, import_av, survey
from vfm_runtime.media.image import Pixels
from vfm_runtime.media.video import is_video
from vfm_runtime.server.batching import Timing
from vfm_runtime.server.errors import ApiError, describe_errors, respond_json
from vfm_runtime.server.repository import ServedModel
from vfm_runtime.server.security import TOKEN
from vfm_runtime.server.service import DEADLINE, RequestContext, get_service
from vfm_runtime.server.settings import Settings
from vfm_runtime.server.uploads import Upload, check_pixels, open_picture, read_upload
from vfm_runtime.tasks.base import Arrays, Opened, Prediction, PredictionView, TaskType
from vfm_runtime.tasks.registry import list_answer_types

router = APIRouter(tags=["files"])

_MAX_LABELS = 100_000
_MAX_DRAWN_SIDE = 1280
_FILE: dict[str, Any] = {"type": "string", "format": "binary"}
_JSON = {"data": {"type": "string", "contentEncoding": "base64"}}
_BODIES: dict[str, Any] = {
    "multipart/form-data": {"type": "object", "required": ["file"], "properties": {"file": _FILE}},
    "application/json": {
        "type": "object",
        "required": ["data"],
        "additionalProperties": False,
        "properties": _JSON,
    },
    **dict.fromkeys(("image/*", "video/*", "application/octet-stream"), _FILE),
}
FILE_BODIES = {
    "required": True,
    "content": {media_type: {"schema": schema} for media_type, schema in _BODIES.items()},
}
"""Bodies that hold a file, as the OpenAPI document has them."""
_BODIES_WITH_GROUP: dict[str, Any] = deepcopy(FILE_BODIES)
for _type in ("multipart/form-data", "application/json"):
    _properties = _BODIES_WITH_GROUP["content"][_type]["schema"]["properties"]
    _properties["group"] = {"type": "string", "description": "As the parameter `group`."}


class Answer(RootModel[dict[str, Any]]):
    """What the task of the model answers; of several heads the answer of each by its name."""

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: Any, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the schemas of all tasks that this process knows, those of plug-ins among them."""
        answer: Any = reduce(or_, list_answer_types())
        return handler(TypeAdapter(answer | dict[str, answer]).core_schema)


class PredictResponse(BaseModel):
    """The prediction of a model for one file."""

    model: str
    version: str
    task: str
    answer: Answer
    width: int | None = Field(description="Pixels of the image; null for a video.")
    height: int | None
    ms: dict[Literal["open", "queue", "compute", "total"], float]
    request_id: str
    drawn: str | None = Field(description="A data: URL of a JPEG, if asked for.")


def _refuse_unknown_parameters(request: Request) -> None:
    choices = list(_list_parameters(request.scope["route"].dependant))
    for name in request.query_params:
        if name not in choices:
            raise ApiError(
                422, f"There is no parameter '{name[:40]}'. Choices: {', '.join(choices)}."
            )


def _list_parameters(dependant: Any) -> Iterator[str]:
    """Yield the query parameters of a route, those of the functions that it depends on too."""
    yield from (field.alias for field in dependant.query_params)
    for part in dependant.dependencies:
        yield from _list_parameters(part)


KNOWN_PARAMETERS = Depends(_refuse_unknown_parameters)
"""Stands among the dependencies of a route that refuses parameters it does not know."""

ModelName = Annotated[str | None, Query(description="Name; needed where several are served.")]
"""Parameter of a route that one of the models answers."""
ModelVersion = Annotated[str | None, Query(description="The highest, if left out.")]
"""Parameter of such a route, beside the name."""


@router.post(
    "/predict",
    dependencies=[TOKEN, DEADLINE, KNOWN_PARAMETERS],
    response_model=PredictResponse,
    responses=describe_errors(400, 401, 404, 408, 413, 415, 422, 429, 503, 504),
    openapi_extra={"requestBody": _BODIES_WITH_GROUP},
)
async def predict(
    request: Request,
    model: ModelName = None,
    version: ModelVersion = None,
    top: Annotated[
        int, Query(ge=1, le=_MAX_LABELS, description="Best classes to list, of classifiers.")
    ] = 5,
    threshold: Annotated[
        float | None,
        Query(
            ge=0,
            le=1,
            description="Least score of a box, or of a label where several may apply; those of the "
            "bundle, if left out.",
        ),
    ] = None,
    group: Annotated[
        str | None,
        Query(
            max_length=1000,
            description="Group of the image, where the model has rules by group; also as a field of the form or a key "
            "of the JSON. The general rule, if left out.",
        ),
    ] = None,
    draw: Annotated[
        bool, Query(description="Whether to draw what the model sees, where its task can be drawn.")
    ] = False,
) -> Response:
    """Answer for one file: an image, or a video where the task takes them."""
    service = get_service(request)
    served = service.select_model(request, model, version)
    view = PredictionView(top=top, threshold=threshold, max_side=_MAX_DRAWN_SIDE)
    context: RequestContext = request.state.context

    async def answer(upload: Upload) -> Response:
        if None not in (group, upload.group) and group != upload.group:
            raise ApiError(
                422,
                f"The group is {group!r} in the address and {upload.group!r} in the body. Give one.",
            )
        try:
            task = served.model.select_task(group if upload.group is None else upload.group)
        except (DataError, OptionError) as error:
            raise ApiError(422, str(error)) from error
        file, outputs, timing = await run_upload(request, served, upload)
        parts = (served, task, file, outputs, timing, view, draw, context)
        # The prediction for one picture takes less time than the way to a thread and back; drawing it does not.
        if file.opened.context is None and not (draw and task.draws):
            return _make_response(*parts)
        return await service.run_in_thread(_make_response, *parts)

    return await service.handle(request, partial(read_upload, takes_group=True), answer)


async def run_upload(
    request: Request, served: ServedModel, upload: Upload, *, is_traffic: bool = True
) -> tuple["OpenedFile", Arrays, Timing]:
    """Open an uploaded file and run the model on it; of one that shows nothing to run it on the outputs are empty.

    Args:
        request: Request that it came with, whose deadline holds.
        served: Model that is run, with its batcher.
        upload: The file as it was sent.
        is_traffic: Whether the drift monitor counts it.
    """
    service, context = get_service(request), request.state.context
    args = (upload, served, service.settings)
    num_pixels, num_tiled = await service.run_in_thread(_count_pixels, *args)
    # Tiles overlap and may be enlarged: they can be many more pixels than their image.
    async with service.tile_budget.hold(num_tiled):
        file = await service.open_in_thread(num_pixels, _open_file, *args)
        if file.inputs is None:
            outputs, timing = make_empty(served.model.task_type), Timing(0.0, 0.0)
        else:
            outputs, timing = await service.run_model(
                served, file.inputs, context.deadline, is_traffic=is_traffic
            )
        return file._replace(inputs=None), outputs, timing


class OpenedFile(NamedTuple):
    """A file that is ready for the model."""

    opened: Opened
    inputs: Arrays | None
    """None where the file shows nothing to run the model on."""
    source: bytes
    """Bytes of the uploaded file. Decoded pixels are not kept: many requests may wait for the model."""
    size: tuple[int, int] | None
    """Height and width of an image in pixels; None for a video."""
    ms: float


def _count_pixels(upload: Upload, served: ServedModel, settings: Settings) -> tuple[int, int]:
    """Return how many pixels an image has, by its header, and its tiles at the model's size; 0 where there are none.

    A large image is refused.
    """
    if upload.is_video or is_video(upload.data):
        return 0, 0
    height, width = check_pixels(upload.data, settings.max_pixels)
    tiling, size = served.model.contract.tiling, served.model.contract.size
    num_tiles = tiling.count(height, width) if tiling and tiling.cuts(height, width) else 0
    return height * width, num_tiles * size[0] * size[1]


def _open_file(upload: Upload, served: ServedModel, settings: Settings) -> OpenedFile:
    started = time.monotonic()
    model = served.model
    limits = VideoLimits(
        max_seconds=settings.max_seconds,
        max_pixels=settings.max_pixels,
        max_bytes=settings.max_body,
        decode_seconds=settings.timeout,
    )
    source: Pixels | bytes = upload.data
    size = None
    if upload.is_video or is_video(upload.data):
        if not model.task_type.takes_video:
            raise ApiError(
                415,
                f"A video was sent, and the model '{served.name}' ({model.task_type.name}) takes images only. "
                "Send an image.",
            )
        _check_video(upload.data, limits, settings.max_frames)
    else:
        source = open_picture(upload.data, model.value_range)
        size = source.shape[0], source.shape[1]
    opened = model.task_type.open(source, limits=limits)
    inputs = model.prepare_all(opened)
    if opened.context is None or model.task_type.takes_tiles:
        opened = Opened((), opened.context)  # its prediction needs no pixels
    ms = (time.monotonic() - started) * 1000
    return OpenedFile(opened, inputs, upload.data, size, ms)


def _check_video(data: bytes, limits: VideoLimits, max_frames: int) -> None:
    """Count the frames of a video before any is decoded; its other limits are those of the task that reads it."""
    if not is_video(data):
        raise ApiError(
            400,
            f"The {len(data)} bytes were sent as a video, and do not begin as one does.",
            "bad_image",
        )
    try:
        av = import_av()
    except ImportError as error:
        raise ApiError(
            415, "This server reads no videos: install vfm-runtime[video] beside it."
        ) from error
    file = VideoFile.resolve(data, limits)
    # Packets, not times: all of them are decoded, and many may claim the same time.
    count = survey(av, file, Guard(file.name, limits)).num_packets
    if count > max_frames:
        raise ApiError(413, f"The video has {count} frames; the limit is {max_frames}. Cut it.")


def _make_response(
    served: ServedModel,
    task: TaskType,
    file: OpenedFile,
    outputs: Arrays,
    timing: Timing,
    view: PredictionView,
    draw: bool,
    context: RequestContext,
) -> Response:
    prediction = task.predict(file.opened, outputs)
    height, width = file.size or (None, None)
    values = prediction.to_dict(view)
    return respond_json(
        {
            "model": served.name,
            "version": served.version,
            "task": task.name,
            "answer": values.get("heads", values),
            "width": width,
            "height": height,
            "ms": {
                "open": round(file.ms, 3),
                "queue": round(timing.queue_ms, 3),
                "compute": round(timing.compute_ms, 3),
                "total": round((time.monotonic() - context.started) * 1000, 3),
            },
            "request_id": context.request_id,
            "drawn": _draw(prediction, file, served.model, view) if draw else None,
        }
    )


def _draw(
    prediction: Prediction, opened: OpenedFile, model: Model, view: PredictionView
) -> str | None:
    source = (
        opened.source if opened.size is None else open_picture(opened.source, model.value_range)
    )
    drawn = prediction.draw(source, view)
    if drawn is None:
        return None
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"

"""The route for files: an image or a video in, the prediction of a model out."""

import base64
import io
import time
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Query
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from vfm_runtime.bundle.predictor import make_empty
from vfm_runtime.media.demux import Guard, VideoFile, VideoLimits, import_av, survey
from vfm_runtime.media.image import Pixels
from vfm_runtime.media.video import is_video
from vfm_runtime.server import openapi
from vfm_runtime.server.bodies import MediaType, Upload, open_picture, unpack
from vfm_runtime.server.errors import ApiError, json_response
from vfm_runtime.server.repository import Served
from vfm_runtime.server.service import Cost, Note, Service, service_of
from vfm_runtime.server.settings import Settings
from vfm_runtime.tasks.base import Arrays, Opened, Prediction, PredictionView

router = APIRouter()

_PARAMETERS = ("model", "version", "top", "threshold", "draw")
_MOST_LABELS = 100_000
_LONGEST_DRAWN = 1280


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A file that is ready for the model."""

    opened: Opened
    """By the task of the model."""
    inputs: Arrays | None
    """None where the file shows nothing to run the model on."""
    source: Pixels | bytes
    """The picture, or the bytes of a video."""
    ms: float


@router.post("/predict", **openapi.PREDICT)
async def predict(
    request: Request,
    model: Annotated[
        str | None, Query(description="Name; needed where several are served.")
    ] = None,
    version: Annotated[str | None, Query(description="The highest, if left out.")] = None,
    top: Annotated[
        int, Query(ge=1, le=_MOST_LABELS, description="Best classes to list, of classifiers.")
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
    draw: Annotated[
        bool, Query(description="Whether to draw what the model sees, where its task can be drawn.")
    ] = False,
) -> Response:
    """Answer for one file: an image, or a video where the task takes them."""
    _check_names(request)
    service = service_of(request)
    served = service.repository.served(model, version)
    view = PredictionView(top=top, threshold=threshold, max_side=_LONGEST_DRAWN)
    note: Note = request.state.note
    note.model, note.version = served.name, served.version
    media = MediaType.of(request)

    async def answer(body: bytes, note: Note) -> Response:
        opened = await service.in_thread(_open, body, media, served, service.settings)
        outputs, cost = await _ask(service, served, opened, note.deadline)
        # The prediction for one picture takes less time than the way to a thread and back; drawing it does not.
        is_short = opened.opened.context is None and not (draw and served.model.task_type.draws)
        respond = service.in_turn if is_short else service.in_thread
        return await respond(_respond, served, opened, outputs, cost, view, draw, note)

    return await service.attend(request, answer)


def _check_names(request: Request) -> None:
    names = list(request.query_params.keys())
    unknown = [name for name in names if name not in _PARAMETERS]
    if unknown:
        raise ApiError(
            422, f"There is no parameter '{unknown[0][:40]}'. Choices: {', '.join(_PARAMETERS)}."
        )


def _open(body: bytes, media: MediaType, served: Served, settings: Settings) -> _Opened:
    started = time.monotonic()
    upload = unpack(body, media)
    model = served.model
    sent_video = upload.is_video or is_video(upload.data)
    if sent_video and not model.task_type.takes_video:
        raise ApiError(
            415,
            f"A video was sent, and the model '{served.name}' ({model.task_type.name}) takes images only. "
            "Send an image.",
        )
    source: Pixels | bytes = (
        _checked_video(upload, settings)
        if sent_video
        else open_picture(upload.data, settings.max_pixels)
    )
    opened = model.task_type.open(source, limits=_limits(settings))
    inputs = model.prepare_all(opened)
    ms = (time.monotonic() - started) * 1000
    return _Opened(opened=opened, inputs=inputs, source=source, ms=ms)


def _checked_video(upload: Upload, settings: Settings) -> bytes:
    """Count the frames of a video before any is decoded.

    Its other limits are those of the task that reads it.
    """
    if not is_video(upload.data):
        raise ApiError(
            400,
            f"The {len(upload.data)} bytes were sent as a video, and do not begin as one does.",
            "bad_image",
        )
    try:
        av = import_av()
    except ImportError as error:
        raise ApiError(
            415, "This server reads no videos: install vfm-runtime[video] beside it."
        ) from error
    limits = _limits(settings)
    file = VideoFile.resolve(upload.data, limits)
    # Packets, not times: all of them are decoded, and many may claim the same time.
    count = survey(av, file, Guard(file.name, limits)).num_packets
    if count > settings.max_frames:
        raise ApiError(
            413, f"The video has {count} frames; the limit is {settings.max_frames}. Cut it."
        )
    return upload.data


def _limits(settings: Settings) -> VideoLimits:
    return VideoLimits(
        max_seconds=settings.max_seconds,
        max_pixels=settings.max_pixels,
        max_bytes=settings.max_body,
        decode_seconds=settings.timeout,
    )


async def _ask(
    service: Service, served: Served, opened: _Opened, deadline: float
) -> tuple[Arrays, Cost]:
    if opened.inputs is None:
        return make_empty(served.model.task_type), Cost(0.0, 0.0)
    return await service.ask(served, opened.inputs, deadline)


def _respond(
    served: Served,
    opened: _Opened,
    outputs: Arrays,
    cost: Cost,
    view: PredictionView,
    draw: bool,
    note: Note,
) -> Response:
    task = served.model.task_type
    prediction = task.predict(opened.opened, outputs)
    shape = (None, None) if isinstance(opened.source, bytes) else opened.source.shape[:2]
    values = prediction.to_dict(view)
    return json_response(
        {
            "model": served.name,
            "version": served.version,
            "task": task.name,
            # Of several heads the prediction of each by its name.
            "answer": values.get("heads", values),
            "width": shape[1],
            "height": shape[0],
            "ms": {
                "open": round(opened.ms, 3),
                "queue": round(cost.queue_ms, 3),
                "compute": round(cost.compute_ms, 3),
                "total": round((time.monotonic() - note.started) * 1000, 3),
            },
            "request_id": note.request_id,
            "drawn": _draw(prediction, opened.source, view) if draw else None,
        }
    )


def _draw(prediction: Prediction, source: Pixels | bytes, view: PredictionView) -> str | None:
    drawn = prediction.draw(source, view)
    if drawn is None:
        return None
    file = io.BytesIO()
    Image.fromarray(drawn).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"

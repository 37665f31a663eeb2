"""The route for files: an image or a video in, the answer of a model out."""

import base64
import io
import time
from dataclasses import dataclass, replace
from typing import Annotated, Any
from weakref import WeakKeyDictionary

import numpy as np
from fastapi import APIRouter, Query
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response

from vfm_runtime.bundle.model import Model
from vfm_runtime.bundle.predictor import Answer, Arrays
from vfm_runtime.deepfake.pipeline import Evidence, Judge
from vfm_runtime.deepfake.verdict import FrameEvidence, Verdict
from vfm_runtime.media.demux import Guard, VideoFile, VideoLimits, import_av, survey
from vfm_runtime.media.image import Pixels
from vfm_runtime.media.video import is_video
from vfm_runtime.server import openapi
from vfm_runtime.server.bodies import MediaType, Upload, open_picture, unpack
from vfm_runtime.server.errors import ApiError, json_response
from vfm_runtime.server.repository import Served
from vfm_runtime.server.service import Cost, Note, Service, service_of
from vfm_runtime.server.settings import Settings
from vfm_runtime.tasks.detection import Detections

router = APIRouter()

_PARAMETERS = ("model", "version", "top", "threshold", "draw")
_MOST_LABELS = 100_000
_LONGEST_DRAWN = 1280
_judges: "WeakKeyDictionary[Model, Judge]" = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """How the answer shall look."""

    top: int
    threshold: float | None
    draw: bool


@dataclass(frozen=True, kw_only=True)
class _Opened:
    """A file that is ready for the model."""

    inputs: Arrays | None
    """None where a picture or a video shows nothing to be judged."""
    evidence: Evidence | None
    """Of a deepfake model."""
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
        bool, Query(description="Whether to draw where a deepfake model sees a forgery.")
    ] = False,
) -> Response:
    """Answer for one file: an image, or for a deepfake model also a video."""
    _check_names(request)
    service = service_of(request)
    served = service.repository.served(model, version)
    asked = _Asked(top=top, threshold=threshold, draw=draw)
    note: Note = request.state.note
    note.model, note.version = served.name, served.version
    media = MediaType.of(request)

    async def answer(body: bytes, note: Note) -> Response:
        opened = await service.in_thread(_open, body, media, served, service.settings)
        outputs, cost = await _ask(service, served, opened, note.deadline)
        # One picture's answer takes less time than the way to a thread and back.
        is_short = opened.evidence is None
        respond = service.in_turn if is_short else service.in_thread
        return await respond(_respond, served, opened, outputs, cost, asked, note)

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
    found = is_video(upload.data)
    if model.judge is None and (found or upload.is_video):
        raise ApiError(
            415,
            f"A video was sent, and the model '{served.name}' ({model.kind}) takes images only. "
            "Send an image.",
        )
    if found or upload.is_video:
        source: Pixels | bytes = _checked_video(upload, settings)
    else:
        source = open_picture(upload.data, settings.max_pixels)
    inputs, evidence = _prepare(model, source, settings)
    ms = (time.monotonic() - started) * 1000
    return _Opened(inputs=inputs, evidence=evidence, source=source, ms=ms)


def _checked_video(upload: Upload, settings: Settings) -> bytes:
    """Count the frames of a video before any is decoded.

    Its other limits are those of the judge that reads it.
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
    file = VideoFile.of(upload.data, limits)
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


def _prepare(
    model: Model, source: Pixels | bytes, settings: Settings
) -> tuple[Arrays | None, Evidence | None]:
    if model.judge is None:
        return model.prepare(source), None
    evidence = _judge(model, settings).evidence(source)
    rows = [model.prepare(crop) for crop in evidence.crops]
    if not rows:
        return None, evidence
    return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, evidence


def _judge(model: Model, settings: Settings) -> Judge:
    """The judge of a model, with the server's limits; it keeps the detector that it loads."""
    judge = _judges.get(model)
    if judge is None:
        assert model.judge is not None
        judge = Judge(model.judge.crop, model.judge.decision, limits=_limits(settings))
        judge = _judges.setdefault(model, judge)
    return judge


async def _ask(
    service: Service, served: Served, opened: _Opened, deadline: float
) -> tuple[Arrays, Cost]:
    if opened.inputs is None:
        empty = {name: np.zeros(0, np.float32) for name in ("logits", "heatmaps", "distances")}
        return empty, Cost(0.0, 0.0)
    return await service.ask(served, opened.inputs, deadline)


def _respond(
    served: Served, opened: _Opened, outputs: Arrays, cost: Cost, asked: _Asked, note: Note
) -> Response:
    model = served.model
    if opened.evidence is None:
        answer = model.answers(outputs)[0]
    else:
        assert model.judge is not None
        answer = model.judge.verdict(opened.evidence, outputs)
    shape = (None, None) if isinstance(opened.source, bytes) else opened.source.shape[:2]
    drawn = None
    if asked.draw and isinstance(answer, Verdict):
        drawn = _drawn(answer, opened.source)
    return json_response(
        {
            "model": served.name,
            "version": served.version,
            "task": model.kind,
            "answer": _plain(answer, asked),
            "width": shape[1],
            "height": shape[0],
            "ms": {
                "open": round(opened.ms, 3),
                "queue": round(cost.queue_ms, 3),
                "compute": round(cost.compute_ms, 3),
                "total": round((time.monotonic() - note.started) * 1000, 3),
            },
            "request_id": note.request_id,
            "drawn": drawn,
        }
    )


def _plain(answer: Answer, asked: _Asked) -> dict[str, Any]:
    if isinstance(answer, dict):
        return {head: _plain(part, asked) for head, part in answer.items()}
    if isinstance(answer, Verdict):
        return answer.to_dict()
    if isinstance(answer, Detections):
        return answer.to_dict(asked.threshold)
    return answer.to_dict(asked.top, asked.threshold)


def _drawn(verdict: Verdict, source: Pixels | bytes) -> str:
    """Draw a verdict; a large picture is made smaller first, as it is for the eye alone."""
    if not isinstance(source, bytes):
        verdict, source = _smaller(verdict, source)
    file = io.BytesIO()
    Image.fromarray(verdict.draw(source)).save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _smaller(verdict: Verdict, image: Pixels) -> tuple[Verdict, Pixels]:
    height, width = image.shape[:2]
    if max(height, width) <= _LONGEST_DRAWN:
        return verdict, image
    scale = _LONGEST_DRAWN / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    frames = tuple(_scaled(frame, scale) for frame in verdict.frames)
    return replace(verdict, frames=frames), small


def _scaled(frame: FrameEvidence, scale: float) -> FrameEvidence:
    box = None if frame.box is None else (frame.box * scale).astype(np.float32)
    matrix = None if frame.matrix is None else frame.matrix / np.array([scale, scale, 1.0])
    return frame._replace(box=box, matrix=matrix)

"""The Open Inference Protocol, version 2, with its extension for binary tensors."""

import json
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from vfm_runtime import __version__
from vfm_runtime.server import openapi
from vfm_runtime.server.errors import ApiError, json_response
from vfm_runtime.server.repository import Served
from vfm_runtime.server.service import Note, Service, service_of
from vfm_runtime.server.tensors import (
    LENGTH_HEADER,
    Port,
    Question,
    ports_of,
    read_question,
    split_body,
    write_outputs,
)
from vfm_runtime.tasks.base import TaskType

router = APIRouter(default_response_class=JSONResponse)

# Bytes or numbers of JSON that take less time than the way to a thread and back.
_SMALL = 4096
_VERSION = "/v2/models/{model}/versions/{version}"
_MODEL = "/v2/models/{model}"


@router.get("/v2", **openapi.SERVER)
async def server() -> Response:
    """What this server is and which extensions of the protocol it has."""
    return json_response(
        {"name": "vfm-runtime", "version": __version__, "extensions": ["binary_tensor_data"]}
    )


@router.get("/v2/health/live", **openapi.LIVE)
async def live() -> Response:
    """Whether the process answers at all."""
    return json_response({"live": True})


@router.get("/v2/health/ready", **openapi.READY)
async def ready(request: Request) -> Response:
    """Whether questions are answered: the models are loaded, and the server is not stopping."""
    _check_ready(service_of(request))
    return json_response({"ready": True})


@router.get("/v2/models", **openapi.MODELS)
async def models(request: Request) -> Response:
    """Every model with its versions, lowest first; an extension of the protocol."""
    service = service_of(request)
    found: dict[str, list[Served]] = {}
    for served in service.repository.models():
        found.setdefault(served.name, []).append(served)
    listed = [_listed(service, name, versions) for name, versions in found.items()]
    return json_response({"models": listed})


def _listed(service: Service, name: str, versions: list[Served]) -> dict[str, Any]:
    default = service.repository.served(name, None)
    model = default.model
    return {
        "name": name,
        "versions": [served.version for served in versions],
        "default": default.version,
        **_describe(model.task_type),
        "heads": {name: _describe(head) for name, head in model.task_type.heads.items() if name},
        "draws": model.task_type.draws,
        "precision": model.precision,
        "device": model.device,
        "ready": service.is_ready,
    }


def _describe(task: TaskType) -> dict[str, Any]:
    """Task, labels, and the least score of each label; None of several heads, and where the bundle has none."""
    thresholds = task.confidence.thresholds
    return {
        "task": task.name,
        "labels": list(task.labels),
        "thresholds": None if thresholds is None else list(thresholds),
    }


@router.get(_MODEL, **openapi.METADATA)
@router.get(_VERSION, **openapi.of_version(openapi.METADATA))
async def metadata(request: Request, model: str, version: str | None = None) -> Response:
    """The tensors that a model takes and gives."""
    service = service_of(request)
    served = service.repository.served(model, version)
    inputs, outputs = ports_of(served.model)
    versions = [other.version for other in service.repository.models() if other.name == model]
    return json_response(
        {
            "name": served.name,
            "versions": versions,
            "platform": "onnxruntime_onnx",
            "inputs": [port.to_dict() for port in inputs],
            "outputs": [port.to_dict() for port in outputs],
        }
    )


@router.get(f"{_MODEL}/ready", **openapi.MODEL_READY)
@router.get(f"{_VERSION}/ready", **openapi.of_version(openapi.MODEL_READY))
async def model_ready(request: Request, model: str, version: str | None = None) -> Response:
    """Whether a model answers."""
    service = service_of(request)
    served = service.repository.served(model, version)
    _check_ready(service)
    return json_response({"name": served.name, "version": served.version, "ready": True})


@router.post(f"{_MODEL}/infer", **openapi.INFER)
@router.post(f"{_VERSION}/infer", **openapi.of_version(openapi.INFER))
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Run a model on tensors, in JSON or with binary data behind it."""
    service = service_of(request)
    served = service.repository.served(model, version)
    note: Note = request.state.note
    note.model, note.version = served.name, served.version
    inputs, outputs = ports_of(served.model)
    json_length = request.headers.get(LENGTH_HEADER)

    async def answer(body: bytes, note: Note) -> Response:
        head, rest = split_body(body, json_length)
        read = service.in_turn if len(head) <= _SMALL else service.in_thread
        question = await read(read_question, head, rest, inputs, outputs)
        made, _ = await service.ask(served, question.inputs, note.deadline)
        num_numbers = sum(array.size for array in made.values())
        write = service.in_turn if num_numbers <= _SMALL else service.in_thread
        return await write(_response, served, question, made, outputs)

    return await service.attend(request, answer)


def _response(
    served: Served, question: Question, made: dict[str, Any], ports: list[Port]
) -> Response:
    entries, tail = write_outputs(made, question.outputs, ports)
    body: dict[str, Any] = {"model_name": served.name, "model_version": served.version}
    if question.id is not None:
        body["id"] = question.id
    body["outputs"] = entries
    if not tail:
        return json_response(body)
    head = json.dumps(body, allow_nan=False, separators=(",", ":")).encode("ascii")
    return Response(
        b"".join([head, *tail]),
        headers={LENGTH_HEADER: str(len(head))},
        media_type="application/octet-stream",
    )


def _check_ready(service: Service) -> None:
    if service.draining:
        raise ApiError(503, "The server is stopping. Ask another one.", "draining")
    if not service.is_ready:
        raise ApiError(503, "The models are not loaded yet. Ask again soon.")

"""Routes of the Open Inference Protocol, version 2, with its extension for binary tensors."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from vfm_runtime import __version__
from vfm_runtime.server.errors import ApiError, describe_errors, respond_json
from vfm_runtime.server.repository import ServedModel
from vfm_runtime.server.security import TOKEN
from vfm_runtime.server.service import DEADLINE, RequestContext, Service, get_service
from vfm_runtime.server.tensors import (
    LENGTH_HEADER,
    NO_GROUPS,
    InferRequest,
    InferResponse,
    Question,
    TensorMetadata,
    describe_tensors,
    read_question,
    split_body,
    write_outputs,
)
from vfm_runtime.tasks.base import Arrays, TaskType

router = APIRouter(tags=["inference protocol"])

_VERSION = "/v2/models/{model}/versions/{version}"
_MODEL = "/v2/models/{model}"
# Bytes or numbers of JSON that take less time than the way to a thread and back.
_SMALL = 4096
_OF_MODEL: dict[str, Any] = {
    "dependencies": [TOKEN],
    "responses": describe_errors(401, 404, 422, 503),
}
REQUEST_SCHEMAS = InferRequest.model_json_schema(ref_template="#/components/schemas/{model}")
REQUEST_SCHEMAS = {**REQUEST_SCHEMAS.pop("$defs"), "InferRequest": REQUEST_SCHEMAS}
"""Schemas of the body of `infer`, which FastAPI does not parse because bytes may follow its JSON."""

_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_LENGTH_HEADER = {
    "description": "Bytes of the JSON, where binary tensors follow it.",
    "schema": {"type": "integer", "minimum": 0, "maximum": 999_999_999_999},
}
_INFER: dict[str, Any] = {
    "dependencies": [TOKEN, DEADLINE],
    "response_model": InferResponse,
    "responses": {
        200: {"content": _BINARY, "headers": {"Inference-Header-Content-Length": _LENGTH_HEADER}},
        **describe_errors(400, 401, 404, 408, 413, 415, 422, 429, 503, 504),
    },
    "openapi_extra": {
        "parameters": [
            {"name": "Inference-Header-Content-Length", "in": "header", **_LENGTH_HEADER}
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}},
                **_BINARY,
            },
        },
    },
}


class ServerMetadata(BaseModel):
    """What this server is and which extensions of the protocol it has."""

    name: str = "vfm-runtime"
    version: str = __version__
    extensions: list[str] = ["binary_tensor_data"]


class ModelReady(BaseModel):
    """That a model answers."""

    name: str
    version: str
    ready: bool = True


class HeadInfo(BaseModel):
    """What one head answers."""

    task: str
    labels: list[str]
    thresholds: list[float] | None = Field(description="Least score of each label.")


class ModelInfo(HeadInfo):
    """A model, its versions and its labels."""

    name: str
    versions: list[str]
    default: str
    heads: dict[str, HeadInfo]
    draws: bool = Field(description="Whether `draw` gives a picture.")
    learns: bool = Field(description="Whether it can be taught classes.")
    learns_boxes: bool = Field(description="Whether it would be taught by boxes.")
    groups: list[str] | None = Field(
        description="Groups that have rules; null where all are alike."
    )
    precision: str
    device: str
    ready: bool


class ModelList(BaseModel):
    """All models."""

    models: list[ModelInfo]


class ModelMetadata(BaseModel):
    """The tensors that a model takes and gives."""

    name: str
    versions: list[str]
    platform: str = "onnxruntime_onnx"
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


@router.get("/v2", responses=describe_errors())
async def get_server() -> ServerMetadata:
    """What this server is and which extensions of the protocol it has."""
    return ServerMetadata()


@router.get("/v2/health/live", responses=describe_errors())
async def check_live() -> dict[str, bool]:
    """Whether the process answers at all."""
    return {"live": True}


@router.get("/v2/health/ready", responses=describe_errors(503))
async def check_ready(request: Request) -> dict[str, bool]:
    """Whether requests are answered: the models are loaded, and the server is not stopping."""
    _check_ready(get_service(request))
    return {"ready": True}


@router.get(
    "/v2/models",
    tags=["models"],
    dependencies=[TOKEN],
    response_model=ModelList,
    responses=describe_errors(401, 503),
)
async def list_models(request: Request) -> Response:
    """Every model with its versions, lowest first; an extension of the protocol."""
    service = get_service(request)
    by_name: dict[str, list[ServedModel]] = {}
    for served in service.repository.list_models():
        by_name.setdefault(served.name, []).append(served)
    return respond_json(
        {"models": [_describe_model(service, versions) for versions in by_name.values()]}
    )


def _describe_model(service: Service, versions: list[ServedModel]) -> dict[str, Any]:
    default = versions[-1]
    task = default.model.task_type
    return {
        "name": default.name,
        "versions": [served.version for served in versions],
        "default": default.version,
        **_describe_head(task),
        "heads": {name: _describe_head(head) for name, head in task.heads.items() if name},
        "draws": task.draws,
        "learns": default.taught is not None,
        "learns_boxes": default.model.learns_boxes,
        "groups": None if task.group_rules is None else list(task.group_rules.groups),
        "precision": default.model.precision,
        "device": default.model.device,
        "ready": service.is_ready,
    }


def _describe_head(task: TaskType) -> dict[str, Any]:
    thresholds = task.confidence.thresholds
    return {
        "task": task.name,
        "labels": list(task.labels),
        "thresholds": None if thresholds is None else list(thresholds),
    }


@router.get(_MODEL, **_OF_MODEL)
@router.get(_VERSION, **_OF_MODEL)
async def get_metadata(request: Request, model: str, version: str | None = None) -> ModelMetadata:
    """The tensors that a model takes and gives."""
    repository = get_service(request).repository
    served = repository.find_model(model, version)
    inputs, outputs = describe_tensors(served.model)
    return ModelMetadata(
        name=served.name,
        versions=[other.version for other in repository.list_models() if other.name == model],
        inputs=inputs,
        outputs=outputs,
    )


@router.get(f"{_MODEL}/ready", **_OF_MODEL)
@router.get(f"{_VERSION}/ready", **_OF_MODEL)
async def check_model_ready(request: Request, model: str, version: str | None = None) -> ModelReady:
    """Whether a model answers."""
    service = get_service(request)
    served = service.repository.find_model(model, version)
    _check_ready(service)
    return ModelReady(name=served.name, version=served.version)


@router.post(f"{_MODEL}/infer", **_INFER)
@router.post(f"{_VERSION}/infer", **_INFER)
async def infer(request: Request, model: str, version: str | None = None) -> Response:
    """Run a model on tensors, in JSON or with binary data behind it."""
    if "group" in request.query_params:
        raise ApiError(422, f"The address has a group, but {NO_GROUPS}.")
    service = get_service(request)
    served = service.select_model(request, model, version)
    inputs, outputs = describe_tensors(served.model)
    context: RequestContext = request.state.context

    async def answer(body: bytes) -> Response:
        head, tail = split_body(body, request.headers.get(LENGTH_HEADER))
        if len(head) <= _SMALL:
            question = read_question(head, tail, inputs, outputs)
        else:
            question = await service.run_in_thread(read_question, head, tail, inputs, outputs)
        arrays, _ = await service.run_model(served, question.inputs, context.deadline)
        if sum(array.size for array in arrays.values()) <= _SMALL:
            return _make_response(served, question, arrays, outputs)
        return await service.run_in_thread(_make_response, served, question, arrays, outputs)

    return await service.handle(request, Request.body, answer)


def _make_response(
    served: ServedModel, question: Question, arrays: Arrays, specs: list[TensorMetadata]
) -> Response:
    entries, tail = write_outputs(arrays, question.outputs, specs)
    body: dict[str, Any] = {"model_name": served.name, "model_version": served.version}
    if question.id is not None:
        body["id"] = question.id
    body["outputs"] = entries
    response = respond_json(body)
    if not tail:
        return response
    head = bytes(response.body)
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

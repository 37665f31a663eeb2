"""Route of search: the images that a bundle carries which are most like an upload, or words; embedding of uploads."""

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from numpy.typing import NDArray
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.media.image import Pixels
from vfm_runtime.media.video import is_video
from vfm_runtime.server.errors import ApiError, describe_errors, respond_json
from vfm_runtime.server.predict import FILE_BODIES, KNOWN_PARAMETERS, ModelName, ModelVersion
from vfm_runtime.server.repository import ServedModel
from vfm_runtime.server.security import TOKEN
from vfm_runtime.server.service import DEADLINE, RequestContext, get_service
from vfm_runtime.server.uploads import (
    Upload,
    check_pixels,
    open_picture,
    read_json_object,
    read_upload,
)
from vfm_runtime.tasks.base import Arrays

router = APIRouter(tags=["search"])

_MOST_NEIGHBORS = 1000
_LONGEST_TEXT = 2000
_WORDS = {
    "type": "object",
    "required": ["text"],
    "additionalProperties": False,
    "properties": {
        "text": {
            "type": "string",
            "minLength": 1,
            "maxLength": _LONGEST_TEXT,
            "description": "Words to look for, where the bundle has a text tower.",
        }
    },
}
_BODIES: dict[str, Any] = deepcopy(FILE_BODIES)
_JSON = _BODIES["content"]["application/json"]
_JSON["schema"] = {"oneOf": [_JSON["schema"], _WORDS]}


class NeighborResponse(BaseModel):
    """An image that is like the one sent."""

    path: str = Field(description="Where it was embedded from.")
    similarity: float = Field(description="Cosine of the two vectors.")
    columns: dict[str, Any] = Field(description="Other values of it, such as its label.")


class SearchResponse(BaseModel):
    """The images that are most like the one sent, best first."""

    model: str
    version: str
    neighbors: list[NeighborResponse]
    num_searched: int = Field(description="Images that it was compared with: all of the bundle.")
    ms: float
    request_id: str


@router.post(
    "/search",
    dependencies=[TOKEN, DEADLINE, KNOWN_PARAMETERS],
    response_model=SearchResponse,
    responses=describe_errors(400, 401, 404, 408, 413, 415, 422, 429, 503, 504),
    openapi_extra={"requestBody": _BODIES},
)
async def search(
    request: Request,
    model: ModelName = None,
    version: ModelVersion = None,
    k: Annotated[int, Query(ge=1, le=_MOST_NEIGHBORS, description="Images to list.")] = 10,
) -> Response:
    """Find the images of a bundle that are most like one sent, or like words; all of them are compared."""
    service = get_service(request)
    served = service.select_model(request, model, version)
    table = served.model.vectors
    if table is None:
        raise ApiError(
            422,
            f"The model '{served.name}' carries no vectors to search in. Serve a bundle that does, which vfm index "
            "STORE --bundle BUNDLE -o OUT writes.",
        )
    context: RequestContext = request.state.context

    async def answer(query: Upload | str) -> Response:
        try:
            if isinstance(query, str):
                vector = await service.run_in_thread(served.model.embed_text, query)
            else:
                vector = (await embed_upload(request, served, query))[0][0]
            neighbors = await service.run_in_thread(table.search, vector, k)
        except (DataError, OptionError) as error:
            raise ApiError(422, str(error)) from error
        return respond_json(
            {
                "model": served.name,
                "version": served.version,
                "neighbors": [one.to_dict() for one in neighbors],
                "num_searched": len(table.vectors),
                "ms": round((time.monotonic() - context.started) * 1000, 3),
                "request_id": context.request_id,
            }
        )

    return await service.handle(request, _read_query, answer)


async def _read_query(request: Request) -> Upload | str:
    """Read a body: a file, or a JSON object with a text alone; errors are those of `read_upload`."""
    if request.headers.get("content-type", "").partition(";")[0].strip() == "application/json":
        body = await request.body()
        values = await get_service(request).run_in_thread(read_json_object, body)
        if "text" in values:
            text = values["text"]
            is_text = isinstance(text, str) and 0 < len(text.strip()) <= len(text) <= _LONGEST_TEXT
            if not is_text or len(values) > 1:
                raise ApiError(
                    422,
                    f"The JSON object is {str(values)[:80]}. Give {{'text': words to look for}} alone, of at most "
                    f"{_LONGEST_TEXT} characters.",
                )
            return str(text)
    return await read_upload(request)


async def embed_upload(
    request: Request,
    served: ServedModel,
    upload: Upload,
    *,
    shrink: Callable[[Pixels], bytes] = lambda _: b"",
    is_traffic: bool = False,
) -> tuple[NDArray[np.float32], bytes]:
    """Return the embedding [1, D] of an uploaded image, and a picture to keep of it.

    Args:
        request: Request that it came with, whose deadline holds.
        served: Model that embeds the image.
        upload: The image as it was sent.
        shrink: Makes the picture of the decoded pixels; by default there is none.
        is_traffic: Whether the drift monitor counts the image.

    Raises:
        ApiError: A video was sent, or an image that is too large.
        ImageError: It cannot be opened.
    """
    service, context = get_service(request), request.state.context
    if upload.is_video or is_video(upload.data):
        raise ApiError(415, "A video was sent, and images are embedded here. Send an image.")
    height, width = await service.run_in_thread(
        check_pixels, upload.data, service.settings.max_pixels
    )

    def open_image() -> tuple[Arrays, bytes]:
        pixels = open_picture(upload.data, served.model.value_range)
        return served.model.prepare(pixels), shrink(pixels)

    inputs, picture = await service.open_in_thread(height * width, open_image)
    outputs, _ = await service.run_model(served, inputs, context.deadline, is_traffic=is_traffic)
    assert served.model.embedding is not None
    return np.asarray(outputs[served.model.embedding.output], np.float32), picture

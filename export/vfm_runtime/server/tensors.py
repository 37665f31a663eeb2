"""Tensors of the Open Inference Protocol: read from and written to JSON, and bytes behind the JSON."""

import itertools
import math
import reprlib
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, FailFast, Field, ValidationError, model_validator

from vfm_runtime.bundle.model import Model
from vfm_runtime.errors import DataError
from vfm_runtime.server.errors import ApiError
from vfm_runtime.server.uploads import read_json_object
from vfm_runtime.tasks.base import Arrays

LENGTH_HEADER = "inference-header-content-length"
"""Bytes of the JSON that stands before the tensors."""

Datatype = Literal["UINT8", "FP32", "INT64"]
_DATATYPES: Final[dict[str, Datatype]] = {"uint8": "UINT8", "float": "FP32", "int64": "INT64"}
_DTYPES: Final[dict[str, np.dtype[Any]]] = {
    "UINT8": np.dtype("<u1"),
    "FP32": np.dtype("<f4"),
    "INT64": np.dtype("<i8"),
}


class TensorMetadata(BaseModel):
    """A tensor that a model takes or gives."""

    name: str
    datatype: Datatype
    shape: list[int] = Field(description="-1 where it is free; the first counts images.")

    @property
    def dtype(self) -> np.dtype[Any]:
        """Element type, little-endian as the protocol asks for."""
        return _DTYPES[self.datatype]

    def __str__(self) -> str:
        sides = ["N", *("any" if side < 0 else str(side) for side in self.shape[1:])]
        return f"'{self.name}', {self.datatype} of shape [{', '.join(sides)}]"


NO_GROUPS = (
    "tensors come without rules, so a group changes nothing here: leave it out, or POST /predict, which applies the "
    "rules of a group"
)
"""Why a group of images is refused with tensors."""
_MOST_ENTRIES = 64
"""Of an object or a list of a request: pydantic would describe each of a million wrong ones."""
_FewEntries = (FailFast(), Field(max_length=_MOST_ENTRIES))


class RequestPart(BaseModel, extra="forbid", strict=True):
    """An object of a request, which has few keys."""

    @model_validator(mode="before")
    @classmethod
    def refuse_many_keys(cls, values: Any) -> Any:
        """Refuse an object of more keys than any request has."""
        if isinstance(values, dict) and len(values) > _MOST_ENTRIES:
            raise DataError(f"{len(values)} keys are more than {_MOST_ENTRIES}")
        return values


class Parameters(RequestPart, extra="allow"):
    """Parameters of a request, an input or an output."""

    binary_data_size: int | None = Field(default=None, ge=0, description="Bytes of an input.")
    binary_data: bool | None = Field(default=None, description="Whether an output comes as bytes.")
    binary_data_output: bool = Field(default=False, description="The same of all outputs.")

    @model_validator(mode="after")
    def refuse_extensions(self) -> Self:
        """Refuse what clients ask for by extensions of the protocol that are not offered."""
        names = [*(self.model_extra or {})]
        foreign = [name for name in names if name.startswith(("shared_memory", "classification"))]
        if foreign:
            raise DataError(f"{reprlib.repr(foreign)} is not offered")
        if "group" in names:
            raise DataError(NO_GROUPS)
        return self


class InferInput(RequestPart):
    """A tensor to run the model on: its numbers, or the size of its bytes behind the JSON."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=1, lt=2**63)]], *_FewEntries]
    datatype: Datatype
    parameters: Parameters = Parameters()
    data: list[Any] | None = Field(default=None, description="Numbers, flat or nested.")


class InferOutput(RequestPart):
    """An output that is asked for."""

    name: str
    parameters: Parameters = Parameters()


class InferRequest(RequestPart):
    """A request for inference."""

    id: str | None = Field(default=None, max_length=256)
    parameters: Parameters = Parameters()
    inputs: Annotated[list[InferInput], *_FewEntries]
    outputs: Annotated[list[InferOutput] | None, FailFast(), Field(max_length=_MOST_ENTRIES)] = None


class OutputTensor(BaseModel):
    """An output: its numbers, or the size of its bytes behind the JSON."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: list[float] | None = None
    parameters: dict[str, Any] = {}


class InferResponse(BaseModel):
    """The outputs of a model."""

    model_name: str
    model_version: str
    id: str = ""
    outputs: list[OutputTensor]


class Question(NamedTuple):
    """A request for inference that was read."""

    id: str | None
    inputs: Arrays
    outputs: dict[str, bool]
    """Whether each output comes as bytes, by its name."""


def describe_tensors(model: Model) -> tuple[list[TensorMetadata], list[TensorMetadata]]:
    """Return what a model's graph takes and gives."""
    input_types, output_types = model.contract.ports()
    shapes: dict[str, Sequence[Any]] = {
        "pixels": (-1, *model.contract.size, 3),
        "geometry": (-1, 6),
        **model.output_shapes,
    }

    def describe(name: str, kind: str) -> TensorMetadata:
        # A free side has a name, or none at all.
        shape = [side if isinstance(side, int) and side > 0 else -1 for side in shapes[name]]
        return TensorMetadata(name=name, datatype=_DATATYPES[kind], shape=shape)

    inputs = [describe(name, kind) for name, kind in input_types.items()]
    return inputs, [describe(name, kind) for name, kind in output_types.items()]


def split_body(body: bytes, json_length: str | None) -> tuple[bytes, memoryview]:
    """Return the JSON of a request for inference, and the bytes behind it.

    Args:
        body: All bytes of the request.
        json_length: Value of the header `Inference-Header-Content-Length`; None where there is none.

    Raises:
        ApiError: That is no length, or more than there is.
    """
    if json_length is None:
        return body, memoryview(b"")
    if not (json_length.isascii() and json_length.isdigit() and len(json_length) <= 12):
        raise _refuse(
            f"Inference-Header-Content-Length is '{json_length[:40]}'. Give the bytes of the JSON."
        )
    length = int(json_length)
    if length > len(body):
        raise _refuse(
            f"Inference-Header-Content-Length is {length}, but the body has {len(body)} bytes."
        )
    return body[:length], memoryview(body)[length:]


def read_question(
    head: bytes,
    tail: memoryview,
    inputs: Sequence[TensorMetadata],
    outputs: Sequence[TensorMetadata],
) -> Question:
    """Read a request for inference and check every tensor of it.

    Args:
        head: JSON of the request.
        tail: Bytes behind the JSON.
        inputs: Tensors that the model takes.
        outputs: Tensors that the model gives.

    Raises:
        ApiError: Something is malformed, missing, or not what the model takes.
    """
    try:
        request = InferRequest.model_validate(read_json_object(head))
    except ValidationError as error:
        fault = error.errors()[0]
        path = ".".join(map(str, fault["loc"]))[:80] or "request"
        raise _refuse(
            f"'{path}' is {_format(fault['input'])}: {fault['msg']}. GET /openapi.json describes requests."
        ) from error
    by_name = {spec.name: spec for spec in inputs}
    names = [entry.name for entry in request.inputs]
    if sorted(names) != sorted(by_name):
        takes = "; ".join(str(spec) for spec in inputs)
        raise _refuse(f"The inputs are {_format(names)}. The model takes: {takes}.")
    arrays, start = {}, 0
    for entry in request.inputs:
        arrays[entry.name], start = _read_tensor(entry, by_name[entry.name], tail, start)
    if start != len(tail):
        raise _refuse(
            f"{len(tail)} bytes follow the JSON, but the binary_data_size of all inputs is {start}."
        )
    if len({len(array) for array in arrays.values()}) > 1:
        shapes = ", ".join(f"'{name}' {list(array.shape)}" for name, array in arrays.items())
        raise _refuse(
            f"The inputs have different numbers of rows: {shapes}. Give one row an image."
        )
    return Question(request.id, arrays, _read_outputs(request, [spec.name for spec in outputs]))


def _refuse(message: str) -> ApiError:
    return ApiError(400, message)


def _format(value: object) -> str:
    # Not repr at once: of an enormous whole number Python refuses to make a text.
    text = reprlib.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _read_outputs(request: InferRequest, names: list[str]) -> dict[str, bool]:
    default = request.parameters.binary_data_output
    requested: dict[str, bool] = {}
    for output in request.outputs or ():
        name, binary = output.name, output.parameters.binary_data
        if name not in names or name in requested:
            raise _refuse(
                f"The output {_format(name)} is unknown or asked for twice. Outputs: {', '.join(names)}."
            )
        requested[name] = default if binary is None else binary
    return requested or dict.fromkeys(names, default)


def _read_tensor(
    entry: InferInput, spec: TensorMetadata, tail: memoryview, start: int
) -> tuple[NDArray[Any], int]:
    """Return the array of an input, and where in the bytes the next one begins."""
    what, shape = f"Input '{spec.name}'", tuple(entry.shape)
    if entry.datatype != spec.datatype:
        raise _refuse(f"{what} has the datatype '{entry.datatype}'. Expected: {spec}.")
    if len(shape) != len(spec.shape) or any(
        side not in (-1, size) for side, size in zip(spec.shape[1:], shape[1:], strict=True)
    ):
        raise _refuse(f"{what} has the shape {_format(entry.shape)}. Expected: {spec}.")
    size = entry.parameters.binary_data_size
    if size is None:
        return _read_numbers(entry.data, spec, shape), start
    if entry.data is not None:
        raise _refuse(f"{what} has both data and binary_data_size. Give one of them.")
    expected = math.prod(shape) * spec.dtype.itemsize
    if size != expected:
        raise _refuse(
            f"{what} has binary_data_size {_format(size)}; its shape {list(shape)} takes {expected} bytes."
        )
    if start + size > len(tail):
        raise _refuse(
            f"{what} needs {size} bytes behind the JSON, and {len(tail) - start} are left. Is "
            "Inference-Header-Content-Length right?"
        )
    array = np.frombuffer(tail, spec.dtype, math.prod(shape), start).reshape(shape)
    return _check_finite(array, spec), start + size


def _read_numbers(data: object, spec: TensorMetadata, shape: tuple[int, ...]) -> NDArray[Any]:
    what = f"Input '{spec.name}'"
    if not isinstance(data, list):
        raise _refuse(
            f"{what} has data {_format(data)}; expected a list of numbers, flat or nested."
        )
    _check_numbers(data, spec)
    try:
        array = np.array(data)
    except (ValueError, OverflowError) as error:
        raise _refuse(f"{what} has lists of different lengths in its data.") from error
    count = math.prod(shape)
    if array.shape != shape and array.shape != (count,):
        raise _refuse(
            f"{what} has data of shape {list(array.shape)}; its shape is {list(shape)}, so give "
            f"that, or a flat list of {count} numbers."
        )
    return _check_finite(_cast(array, spec).reshape(shape), spec)


def _check_numbers(data: list[Any], spec: TensorMetadata) -> None:
    """Refuse what numpy would make the best of: of texts arrays of any size, of true a 1."""
    flat, kinds = data, set(map(type, data))
    for _ in spec.shape[1:]:
        if kinds == {list}:
            flat = list(itertools.chain.from_iterable(flat))
            kinds = set(map(type, flat))
    whole = spec.dtype.kind in "ui"
    if not kinds <= ({int} if whole else {int, float}):
        what = "whole numbers" if whole else "numbers"
        raise _refuse(f"Input '{spec.name}' has data other than {what}. Expected: {spec}.")


def _cast(array: NDArray[Any], spec: TensorMetadata) -> NDArray[Any]:
    if spec.dtype.kind in "ui":
        limits = np.iinfo(spec.dtype)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise _refuse(
                f"Input '{spec.name}' has values from {_format(low)} to {_format(high)}; "
                f"{spec.datatype} goes from {limits.min} to {limits.max}."
            )
    try:
        with np.errstate(over="ignore"):
            # Beyond float32 it is infinite, and refused as that.
            return array.astype(spec.dtype)
    except OverflowError:
        return np.full(array.shape, np.inf)


def _check_finite(array: NDArray[Any], spec: TensorMetadata) -> NDArray[Any]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _refuse(f"Input '{spec.name}' has values that are not finite. Expected: {spec}.")
    return array


def write_outputs(
    outputs: Arrays, requested: dict[str, bool], specs: Sequence[TensorMetadata]
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the entries of a response's `outputs`, and the bytes that follow the JSON.

    Args:
        outputs: Arrays of the model by name.
        requested: Whether each output that was asked for comes as bytes, by its name.
        specs: Tensors that the model gives.

    Raises:
        ApiError: A value cannot be written in JSON.
    """
    by_name = {spec.name: spec for spec in specs}
    entries, tail = [], []
    for name, binary in requested.items():
        spec = by_name[name]
        array = np.ascontiguousarray(outputs[name], spec.dtype)
        entry: dict[str, Any] = {
            "name": name,
            "datatype": spec.datatype,
            "shape": list(array.shape),
        }
        if binary:
            data = array.tobytes()
            entry["parameters"] = {"binary_data_size": len(data)}
            tail.append(data)
        else:
            if not np.isfinite(array).all():
                raise _refuse(
                    f"Output '{name}' has values that are not finite, which JSON cannot hold. Check "
                    "the inputs, or ask for it with the parameter binary_data."
                )
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    return entries, tail

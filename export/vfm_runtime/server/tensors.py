"""Tensors of the Open Inference Protocol: read from and written to JSON, and bytes behind the JSON."""

import itertools
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from vfm_runtime.bundle.model import Model
from vfm_runtime.server.errors import ApiError
from vfm_runtime.server.uploads import read_json_object
from vfm_runtime.tasks.base import Arrays

LENGTH_HEADER = "inference-header-content-length"
"""Bytes of the JSON that stands before the tensors."""

_REQUEST_KEYS = ("id", "parameters", "inputs", "outputs")
_INPUT_KEYS = ("name", "shape", "datatype", "parameters", "data")
_OUTPUT_KEYS = ("name", "parameters")
_MAX_ID = 256

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


class InputParameters(BaseModel):
    """Parameters of an input."""

    binary_data_size: int = Field(0, ge=0, description="Bytes behind the JSON, in place of data.")


class InferInput(BaseModel, extra="forbid"):
    """A tensor to run the model on."""

    name: str
    shape: list[Annotated[int, Field(ge=1)]]
    datatype: Datatype
    parameters: InputParameters | None = None
    data: list[Any] = Field([], description="Numbers, flat or nested.")


class OutputParameters(BaseModel):
    """Parameters of an output."""

    binary_data: bool = Field(False, description="Whether it comes as bytes behind the JSON.")


class InferOutput(BaseModel, extra="forbid"):
    """An output that is asked for."""

    name: str
    parameters: OutputParameters | None = None


class InferRequest(BaseModel, extra="forbid"):
    """A request for inference, as it is documented; `read_question` checks it, and the tensors in it."""

    id: str = Field("", max_length=_MAX_ID)
    parameters: dict[str, Any] = {}
    inputs: list[InferInput] = Field(min_length=1)
    outputs: list[InferOutput] = []


class OutputTensor(BaseModel):
    """An output: its numbers, or the number of its bytes behind the JSON."""

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


class RequestedOutput(NamedTuple):
    """An output that was asked for."""

    name: str
    binary: bool


class Question(NamedTuple):
    """One request for inference."""

    id: str | None
    inputs: Arrays
    outputs: list[RequestedOutput]


def describe_tensors(model: Model) -> tuple[list[TensorMetadata], list[TensorMetadata]]:
    """Return what a model's graph takes and gives."""
    input_types, output_types = model.contract.ports()
    shapes: dict[str, Sequence[Any]] = {
        "pixels": (-1, *model.contract.size, 3),
        "geometry": (-1, 6),
    }
    shapes |= model.output_shapes

    def describe(name: str, kind: str) -> TensorMetadata:
        # A free side has a name, or none at all.
        shape = [side if isinstance(side, int) and side > 0 else -1 for side in shapes[name]]
        return TensorMetadata(name=name, datatype=_DATATYPES[kind], shape=shape)

    return (
        [describe(name, kind) for name, kind in input_types.items()],
        [describe(name, kind) for name, kind in output_types.items()],
    )


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
        raise _bad(
            f"Inference-Header-Content-Length is '{json_length[:40]}'. Give the bytes of the JSON."
        )
    length = int(json_length)
    if length > len(body):
        raise _bad(
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
    values = read_json_object(head)
    _check_keys("The request", values, _REQUEST_KEYS)
    entries = _check_objects("inputs", values.get("inputs"))
    names = [entry.get("name") for entry in entries]
    if sorted(map(repr, names)) != sorted(repr(spec.name) for spec in inputs):
        takes = "; ".join(str(spec) for spec in inputs)
        raise _bad(f"The inputs are {_shorten(names)}. The model takes: {takes}.")
    by_name = {spec.name: spec for spec in inputs}
    arrays, start = {}, 0
    for entry in entries:
        spec = by_name[entry["name"]]
        arrays[spec.name], start = _read_tensor(entry, spec, tail, start)
    if start != len(tail):
        raise _bad(
            f"{len(tail)} bytes follow the JSON, but the binary_data_size of all inputs is {start}."
        )
    if len({len(array) for array in arrays.values()}) > 1:
        shapes = ", ".join(f"'{name}' {list(array.shape)}" for name, array in arrays.items())
        raise _bad(f"The inputs have different numbers of rows: {shapes}. Give one row an image.")
    name = values.get("id")
    if "id" in values and not (isinstance(name, str) and len(name) <= _MAX_ID):
        raise _bad(f"'id' is {_shorten(name)}; expected a string of up to {_MAX_ID} characters.")
    parameters = _read_parameters("The request", values)
    requested = _read_outputs(values.get("outputs"), outputs, parameters)
    return Question(name, arrays, requested)


def _bad(message: str) -> ApiError:
    return ApiError(400, message)


def _shorten(value: object) -> str:
    # Not repr at once: of an enormous whole number Python refuses to make a text.
    text = reprlib.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _check_keys(what: str, values: Mapping[str, Any], keys: Sequence[str]) -> None:
    unknown = [key for key in values if key not in keys]
    if unknown:
        raise _bad(f"{what} has unknown keys: {_shorten(unknown)}. Known: {', '.join(keys)}.")


def _check_objects(name: str, value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise _bad(f"'{name}' is {_shorten(value)}; expected a list of objects.")
    return value


def _read_parameters(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    parameters = values.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _bad(f"{what} has parameters {_shorten(parameters)}; expected an object.")
    foreign = [name for name in parameters if name.startswith("shared_memory")]
    if foreign or "classification" in parameters:
        raise _bad(
            f"{what} asks for {_shorten(foreign or ['classification'])}, which is not offered."
        )
    return parameters


def _read_flag(what: str, parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise _bad(f"{what} has {name} {_shorten(value)}; expected true or false.")
    return value


def _read_outputs(
    value: object, specs: Sequence[TensorMetadata], parameters: Mapping[str, Any]
) -> list[RequestedOutput]:
    default = _read_flag("The request", parameters, "binary_data_output", False)
    names = [spec.name for spec in specs]
    if value is None or value == []:
        return [RequestedOutput(name, default) for name in names]
    requested: dict[str, RequestedOutput] = {}
    for entry in _check_objects("outputs", value):
        _check_keys("An output", entry, _OUTPUT_KEYS)
        name = entry.get("name")
        if name not in names or name in requested:
            raise _bad(
                f"The output {_shorten(name)} is unknown or asked for twice. Outputs: {', '.join(names)}."
            )
        what = f"Output '{name}'"
        binary = _read_flag(what, _read_parameters(what, entry), "binary_data", default)
        requested[name] = RequestedOutput(name, binary)
    return list(requested.values())


def _read_tensor(
    entry: Mapping[str, Any], spec: TensorMetadata, tail: memoryview, start: int
) -> tuple[NDArray[Any], int]:
    """Return the array of an input, and where in the bytes the next one begins."""
    what = f"Input '{spec.name}'"
    _check_keys(what, entry, _INPUT_KEYS)
    if entry.get("datatype") != spec.datatype:
        raise _bad(f"{what} has the datatype {_shorten(entry.get('datatype'))}. Expected: {spec}.")
    shape = _read_shape(entry.get("shape"), spec)
    size = _read_parameters(what, entry).get("binary_data_size")
    if size is None:
        return _read_numbers(entry.get("data"), spec, shape), start
    if "data" in entry:
        raise _bad(f"{what} has both data and binary_data_size. Give one of them.")
    expected = math.prod(shape) * spec.dtype.itemsize
    if type(size) is not int or size != expected:
        raise _bad(
            f"{what} has binary_data_size {_shorten(size)}; its shape {list(shape)} takes {expected} bytes."
        )
    if start + size > len(tail):
        raise _bad(
            f"{what} needs {size} bytes behind the JSON, and {len(tail) - start} are left. Is "
            "Inference-Header-Content-Length right?"
        )
    array = np.frombuffer(tail, spec.dtype, math.prod(shape), start).reshape(shape)
    return _check_finite(array, spec), start + size


def _read_shape(value: object, spec: TensorMetadata) -> tuple[int, ...]:
    fits = (
        isinstance(value, list)
        and len(value) == len(spec.shape)
        and all(type(side) is int for side in value)
        and value[0] >= 1
        and all(side in (-1, size) for side, size in zip(spec.shape[1:], value[1:], strict=True))
    )
    if not fits or not isinstance(value, list):
        raise _bad(
            f"Input '{spec.name}' has the shape {_shorten(value)}. Expected: {spec}, with N from 1 up."
        )
    return tuple(value)


def _read_numbers(data: object, spec: TensorMetadata, shape: tuple[int, ...]) -> NDArray[Any]:
    what = f"Input '{spec.name}'"
    if not isinstance(data, list):
        raise _bad(f"{what} has data {_shorten(data)}; expected a list of numbers, flat or nested.")
    _check_numbers(data, spec)
    try:
        array = np.array(data)
    except (ValueError, OverflowError) as error:
        raise _bad(f"{what} has lists of different lengths in its data.") from error
    count = math.prod(shape)
    if array.shape != shape and array.shape != (count,):
        raise _bad(
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
        raise _bad(f"Input '{spec.name}' has data other than {what}. Expected: {spec}.")


def _cast(array: NDArray[Any], spec: TensorMetadata) -> NDArray[Any]:
    if spec.dtype.kind in "ui":
        limits = np.iinfo(spec.dtype)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise _bad(
                f"Input '{spec.name}' has values from {_shorten(low)} to {_shorten(high)}; "
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
        raise _bad(f"Input '{spec.name}' has values that are not finite. Expected: {spec}.")
    return array


def write_outputs(
    outputs: Arrays, requested: Sequence[RequestedOutput], specs: Sequence[TensorMetadata]
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the entries of a response's `outputs`, and the bytes that follow the JSON.

    Args:
        outputs: Arrays of the model by name.
        requested: Outputs that were asked for.
        specs: Tensors that the model gives.

    Raises:
        ApiError: A value cannot be written in JSON.
    """
    by_name = {spec.name: spec for spec in specs}
    entries, tail = [], []
    for name, binary in requested:
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
                raise _bad(
                    f"Output '{name}' has values that are not finite, which JSON cannot hold. Check "
                    "the inputs, or ask for it with the parameter binary_data."
                )
            entry["data"] = array.ravel().tolist()
        entries.append(entry)
    return entries, tail

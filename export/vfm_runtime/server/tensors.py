"""Tensors of the Open Inference Protocol: as JSON, and as bytes behind the JSON."""

import itertools
import math
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.bundle.model import Model
from vfm_runtime.server.bodies import json_object
from vfm_runtime.server.errors import ApiError
from vfm_runtime.tasks.base import Arrays

DATATYPES: Final[dict[str, tuple[str, np.dtype[Any]]]] = {
    "uint8": ("UINT8", np.dtype("<u1")),
    "float": ("FP32", np.dtype("<f4")),
    "int64": ("INT64", np.dtype("<i8")),
}
"""Name in the protocol and element type, little-endian as it asks for, by the contract's names."""

LENGTH_HEADER = "inference-header-content-length"
"""Bytes of the JSON that stands before the tensors."""

_REQUEST_KEYS = ("id", "parameters", "inputs", "outputs")
_INPUT_KEYS = ("name", "shape", "datatype", "parameters", "data")
_OUTPUT_KEYS = ("name", "parameters")
_LONGEST_ID = 256


class Port(NamedTuple):
    """One tensor that a model takes or gives."""

    name: str
    kind: str
    """A key of `DATATYPES`."""
    shape: tuple[int, ...]
    """-1 where it is free; the first counts images."""

    @property
    def datatype(self) -> str:
        """Its name in the protocol."""
        return DATATYPES[self.kind][0]

    def to_dict(self) -> dict[str, Any]:
        """Return it as the protocol describes tensors."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def __str__(self) -> str:
        sides = ["N", *("any" if side < 0 else str(side) for side in self.shape[1:])]
        return f"'{self.name}', {self.datatype} of shape [{', '.join(sides)}]"


class Wanted(NamedTuple):
    """An output that was asked for."""

    name: str
    binary: bool


class Question(NamedTuple):
    """One request for inference."""

    id: str | None
    inputs: Arrays
    outputs: list[Wanted]


def ports_of(model: Model) -> tuple[list[Port], list[Port]]:
    """Return what a model's graph takes and gives.

    Args:
        model: The model.
    """
    takes, gives = model.contract.ports()
    shapes = model.output_shapes
    sides = {"pixels": (*model.contract.size, 3), "geometry": (6,)}
    inputs = [Port(name, kind, (-1, *sides[name])) for name, kind in takes.items()]
    outputs = [Port(name, kind, _sides(shapes[name])) for name, kind in gives.items()]
    return inputs, outputs


def _sides(shape: Sequence[Any]) -> tuple[int, ...]:
    # A free side has a name, or none at all.
    return tuple(side if isinstance(side, int) and side > 0 else -1 for side in shape)


def split_body(body: bytes, json_length: str | None) -> tuple[bytes, memoryview]:
    """Return the JSON of a request for inference, and the bytes behind it.

    Args:
        body: All of it.
        json_length: What the header `Inference-Header-Content-Length` says; None where there is none.

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
    head: bytes, rest: memoryview, inputs: Sequence[Port], outputs: Sequence[Port]
) -> Question:
    """Read a request for inference and check every tensor of it.

    Args:
        head: Its JSON.
        rest: The bytes behind it.
        inputs: Of the model.
        outputs: Of the model.

    Raises:
        ApiError: Something is malformed, missing, or not what the model takes.
    """
    values = json_object(head)
    _known("The request", values, _REQUEST_KEYS)
    given = _objects("inputs", values.get("inputs"))
    takes = "; ".join(str(port) for port in inputs)
    names = [entry.get("name") for entry in given]
    if sorted(map(repr, names)) != sorted(repr(port.name) for port in inputs):
        raise _bad(f"The inputs are {_short(names)}. The model takes: {takes}.")
    by_name = {port.name: port for port in inputs}
    arrays, at = {}, 0
    for entry in given:
        port = by_name[entry["name"]]
        arrays[port.name], at = _tensor(entry, port, rest, at)
    if at != len(rest):
        raise _bad(
            f"{len(rest)} bytes follow the JSON, but the binary_data_size of all inputs is {at}."
        )
    if len({len(array) for array in arrays.values()}) > 1:
        shapes = ", ".join(f"'{name}' {list(array.shape)}" for name, array in arrays.items())
        raise _bad(f"The inputs have different numbers of rows: {shapes}. Give one row an image.")
    parameters = _parameters("The request", values)
    return Question(_id(values), arrays, _wanted(values.get("outputs"), outputs, parameters))


def _bad(message: str) -> ApiError:
    return ApiError(400, message)


def _short(value: object) -> str:
    # Not repr at once: of an enormous whole number Python refuses to make a text.
    text = reprlib.repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def _known(what: str, values: Mapping[str, Any], keys: Sequence[str]) -> None:
    unknown = [key for key in values if key not in keys]
    if unknown:
        raise _bad(f"{what} has unknown keys: {_short(unknown)}. Known: {', '.join(keys)}.")


def _objects(name: str, value: object) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise _bad(f"'{name}' is {_short(value)}; expected a list of objects.")
    return value


def _id(values: Mapping[str, Any]) -> str | None:
    value = values.get("id")
    if value is None and "id" not in values:
        return None
    if not isinstance(value, str) or len(value) > _LONGEST_ID:
        raise _bad(f"'id' is {_short(value)}; expected a string of up to {_LONGEST_ID} characters.")
    return value


def _parameters(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    parameters = values.get("parameters", {})
    if not isinstance(parameters, dict):
        raise _bad(f"{what} has parameters {_short(parameters)}; expected an object.")
    foreign = [name for name in parameters if name.startswith("shared_memory")]
    if foreign or "classification" in parameters:
        raise _bad(
            f"{what} asks for {_short(foreign or ['classification'])}, which is not offered."
        )
    return parameters


def _flag(what: str, parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise _bad(f"{what} has {name} {_short(value)}; expected true or false.")
    return value


def _wanted(value: object, ports: Sequence[Port], parameters: Mapping[str, Any]) -> list[Wanted]:
    default = _flag("The request", parameters, "binary_data_output", False)
    names = [port.name for port in ports]
    if value is None or value == []:
        return [Wanted(name, default) for name in names]
    wanted: list[Wanted] = []
    for entry in _objects("outputs", value):
        _known("An output", entry, _OUTPUT_KEYS)
        name = entry.get("name")
        if name not in names or any(name == other.name for other in wanted):
            raise _bad(
                f"The output {_short(name)} is unknown or asked for twice. Outputs: {', '.join(names)}."
            )
        what = f"Output '{name}'"
        binary = _flag(what, _parameters(what, entry), "binary_data", default)
        wanted.append(Wanted(name, binary))
    return wanted


def _tensor(
    entry: Mapping[str, Any], port: Port, rest: memoryview, at: int
) -> tuple[NDArray[Any], int]:
    """The array of an input, and where in the bytes the next one begins."""
    what = f"Input '{port.name}'"
    _known(what, entry, _INPUT_KEYS)
    if entry.get("datatype") != port.datatype:
        raise _bad(f"{what} has the datatype {_short(entry.get('datatype'))}. Expected: {port}.")
    shape = _shape(entry.get("shape"), port)
    size = _parameters(what, entry).get("binary_data_size")
    if size is None:
        return _from_json(entry, port, shape), at
    if "data" in entry:
        raise _bad(f"{what} has both data and binary_data_size. Give one of them.")
    kind = DATATYPES[port.kind][1]
    expected = math.prod(shape) * kind.itemsize
    if type(size) is not int or size != expected:
        raise _bad(
            f"{what} has binary_data_size {_short(size)}; its shape {list(shape)} takes {expected} bytes."
        )
    if at + size > len(rest):
        raise _bad(
            f"{what} needs {size} bytes behind the JSON, and {len(rest) - at} are left. Is "
            "Inference-Header-Content-Length right?"
        )
    array = np.frombuffer(rest, kind, math.prod(shape), at).reshape(shape)
    return _finite(array, port), at + size


def _shape(value: object, port: Port) -> tuple[int, ...]:
    fits = (
        isinstance(value, list)
        and len(value) == len(port.shape)
        and all(type(side) is int for side in value)
        and value[0] >= 1
        and all(own in (-1, side) for own, side in zip(port.shape[1:], value[1:], strict=True))
    )
    if not fits or not isinstance(value, list):
        raise _bad(
            f"Input '{port.name}' has the shape {_short(value)}. Expected: {port}, with N from 1 up."
        )
    return tuple(value)


def _from_json(entry: Mapping[str, Any], port: Port, shape: tuple[int, ...]) -> NDArray[Any]:
    data = entry.get("data")
    what = f"Input '{port.name}'"
    if not isinstance(data, list):
        raise _bad(f"{what} has data {_short(data)}; expected a list of numbers, flat or nested.")
    _check_numbers(data, port)
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
    return _finite(_cast(array, port).reshape(shape), port)


def _check_numbers(data: list[Any], port: Port) -> None:
    """Refuse what numpy would make the best of: of texts arrays of any size, of true a 1."""
    flat, kinds = data, set(map(type, data))
    for _ in port.shape[1:]:
        if kinds == {list}:
            flat = list(itertools.chain.from_iterable(flat))
            kinds = set(map(type, flat))
    whole = DATATYPES[port.kind][1].kind in "ui"
    if not kinds <= ({int} if whole else {int, float}):
        what = "whole numbers" if whole else "numbers"
        raise _bad(f"Input '{port.name}' has data other than {what}. Expected: {port}.")


def _cast(array: NDArray[Any], port: Port) -> NDArray[Any]:
    kind = DATATYPES[port.kind][1]
    if kind.kind in "ui":
        limits = np.iinfo(kind)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise _bad(
                f"Input '{port.name}' has values from {_short(low)} to {_short(high)}; "
                f"{port.datatype} goes from {limits.min} to {limits.max}."
            )
    try:
        with np.errstate(over="ignore"):
            # Beyond float32 it is infinite, and refused as that.
            return array.astype(kind)
    except OverflowError:
        return np.full(array.shape, np.inf)


def _finite(array: NDArray[Any], port: Port) -> NDArray[Any]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise _bad(f"Input '{port.name}' has values that are not finite. Expected: {port}.")
    return array


def write_outputs(
    outputs: Arrays, wanted: Sequence[Wanted], ports: Sequence[Port]
) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Return the entries of an answer's `outputs`, and the bytes that follow the JSON.

    Args:
        outputs: What the model gave.
        wanted: What of it was asked for.
        ports: Of the model's outputs.

    Raises:
        ApiError: A value cannot be written in JSON.
    """
    kinds = {port.name: port for port in ports}
    entries, tail = [], []
    for name, binary in wanted:
        port = kinds[name]
        array = np.ascontiguousarray(outputs[name], DATATYPES[port.kind][1])
        entry: dict[str, Any] = {
            "name": name,
            "datatype": port.datatype,
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

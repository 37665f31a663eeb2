"""ONNX graphs: reading them, looking up and changing their nodes and constants, and writing them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from vfm_runtime.errors import VfmError

MAX_PROTOBUF = 2_000_000_000
"""Bytes of weights above which they go to a file of their own; a protobuf ends at 2 GiB."""

Array = NDArray[Any]


class QuantizeError(VfmError, ValueError):
    """A model cannot be brought to a smaller precision; the message says why and what to do."""


class Graph:
    """An ONNX graph whose nodes and constants can be looked up and replaced.

    Attributes:
        model: The model; its nodes are those of `nodes` only after `finish`.
        nodes: The nodes, in an order in which they can run.
    """

    model: onnx.ModelProto
    nodes: list[onnx.NodeProto]

    def __init__(self, model: onnx.ModelProto) -> None:
        """Take a model over; it must not be used any more."""
        self.model = model
        self._constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
        self._shapes = _read_shapes(model.graph)
        # Shapes that no longer hold after a change are refused by ONNX Runtime.
        del model.graph.value_info[:]
        self.nodes = []
        for node in model.graph.node:
            value = get_attribute(node, "value")
            if node.op_type == "Constant" and value is not None:
                self._constants[node.output[0]] = numpy_helper.to_array(value)
            else:
                self.nodes.append(node)
        self._link()

    @classmethod
    def read(cls, source: Path) -> Graph:
        """Read a graph from an ONNX file.

        Raises:
            QuantizeError: The file is missing, or holds more than 2 GB of weights.
        """
        if not source.is_file():
            raise QuantizeError(f"There is no file {source}. Export the bundle first.")
        sidecar = source.with_name(source.name + ".data")
        num_bytes = sum(path.stat().st_size for path in (source, sidecar) if path.exists())
        if num_bytes > MAX_PROTOBUF:
            raise QuantizeError(
                f"{source} holds {num_bytes / 1e9:.1f} GB of weights; fp16 and int8 are made of at most "
                f"{MAX_PROTOBUF / 1e9:.0f} GB, which one file can hold. Ship fp32, or take a smaller backbone."
            )
        return cls(onnx.load(source))

    @property
    def outputs(self) -> list[str]:
        """Names of what the graph answers."""
        return [output.name for output in self.model.graph.output]

    def get_producer(self, tensor: str) -> onnx.NodeProto | None:
        """Return the node that makes a tensor, None for an input or a constant."""
        return self._producers.get(tensor)

    def get_consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """Return the nodes that take a tensor."""
        return self._consumers.get(tensor, [])

    def get_constant(self, tensor: str) -> Array | None:
        """Return a constant's value, None for a tensor that is none."""
        return self._constants.get(tensor)

    def get_shape(self, tensor: str) -> tuple[int | None, ...] | None:
        """Return a tensor's shape, with None for what differs from call to call; None where it is not known."""
        value = self._constants.get(tensor)
        return value.shape if value is not None else self._shapes.get(tensor)

    def add_constant(self, name: str, value: Array) -> str:
        """Add a constant, under another name where this one is taken, and return its name."""
        unique, number = name, 0
        while unique in self._constants or unique in self._producers:
            number += 1
            unique = f"{name}.{number}"
        self._constants[unique] = np.array(value, order="C")
        return unique

    def prune(self) -> None:
        """Remove every node of which nothing is used."""
        nodes: list[onnx.NodeProto] = []
        used = set(self.outputs)
        for node in reversed(self.nodes):
            if used.intersection(node.output):
                used.update(node.input)
                nodes.append(node)
        self.nodes = nodes[::-1]
        self._link()

    def finish(self, extra: Iterable[str] = ()) -> onnx.ModelProto:
        """Return a model of the nodes and constants as they are now, which shares nothing with this graph.

        Args:
            extra: Names of tensors to answer too.
        """
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        graph = model.graph
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}.union(self.outputs)
        for name, value in self._constants.items():
            if name in used:
                graph.initializer.append(numpy_helper.from_array(value, name))
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra)
        return model

    def _link(self) -> None:
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                consumers[name].append(node)
        self._consumers = dict(consumers)


def get_attribute(node: onnx.NodeProto, name: str, default: Any = None) -> Any:
    """Return the value of a node's attribute, or the default where it has none."""
    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default


def _read_shapes(graph: onnx.GraphProto) -> dict[str, tuple[int | None, ...]]:
    shapes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim
            )
    return shapes

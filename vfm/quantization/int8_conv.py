"""Convolutions in 8 bits from end to end, for models whose work is in them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from vfm_runtime.tasks.base import Arrays

from vfm.quantization.graph import Graph, attribute
from vfm.quantization.instrument import Probe
from vfm.quantization.int8_matmul import TINY, Extent, Float, column_steps

# What ONNX Runtime also computes in 8 bits, so that values stay so from one convolution to the next.
_BETWEEN = (
    *("Add", "Mul", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Relu"),
    *("Clip", "LeakyRelu"),
)
_CLIPPING = ("Relu", "Clip")


# Steps of a bias, in 32 bits that products are added to.
_MOST_BIAS = 2**30


def convolutions(graph: Graph) -> list[onnx.NodeProto]:
    """Find the convolutions of images with constant weights.

    Args:
        graph: The graph.
    """
    return [
        node
        for node in graph.nodes
        if node.op_type == "Conv" and (graph.shape(node.input[1]) or ()) and _is_plain(graph, node)
    ]


def _is_plain(graph: Graph, node: onnx.NodeProto) -> bool:
    constants = [graph.constant(name) for name in node.input[1:] if name]
    return all(value is not None and value.dtype == np.float32 for value in constants)


def quantised(weight: Float, least: NDArray[Any] | float = 0.0) -> tuple[NDArray[np.int8], Float]:
    """Bring the weights of a convolution to 8 bits, with a step an output channel.

    Args:
        weight: [O, I, h, w].
        least: Least step, of all channels or [O].

    Returns:
        The 8 bits, and the steps.
    """
    # Which weights are neighbours depends on the order in which a CPU's kernel goes through a window.
    by_channel = weight.reshape(len(weight), -1).T
    by_place = np.moveaxis(weight, 1, -1).reshape(len(weight), -1).T
    step = np.maximum(column_steps(by_channel), column_steps(by_place))
    step = np.maximum(step, least).astype(np.float32)
    return np.rint(weight / _along(step, weight)).astype(np.int8), step


def _along(step: Float, weight: Float) -> Float:
    return step.reshape(-1, *[1] * (weight.ndim - 1))


def extents(
    graph: Graph, nodes: Sequence[onnx.NodeProto], samples: Sequence[Arrays]
) -> dict[str, Extent]:
    """Measure all values that may have to be in 8 bits.

    Args:
        graph: The graph in 32 bits.
        nodes: Its convolutions.
        samples: Real inputs of the model.
    """
    probe = Probe(graph)
    names = sorted({name for unit in _units(graph, nodes) for name in unit.tensors})
    for name in names:
        for op in ("ReduceMin", "ReduceMax"):
            probe.answer(probe.node(op, [name], keepdims=0))
    total = np.stack([np.array(answers, np.float32) for answers in probe.run(samples)])
    lows, highs = total[:, ::2].min(axis=0), total[:, 1::2].max(axis=0)
    return {name: Extent(*pair) for name, *pair in zip(names, lows, highs, strict=True)}


def errors(
    graph: Graph,
    nodes: Sequence[onnx.NodeProto],
    known: dict[str, Extent],
    samples: Sequence[Arrays],
) -> dict[str, float]:
    """Measure what 8 bits cost every convolution alone: the error of its output, relative to that output.

    Args:
        graph: The graph in 32 bits.
        nodes: Its convolutions.
        known: Of every tensor.
        samples: Real inputs of the model.

    Returns:
        By the name of the node.
    """
    probe = Probe(graph)
    for node in nodes:
        weight = graph.constant(node.input[1])
        assert weight is not None
        bits, step = quantised(weight)
        scale, zero = (probe.constant(np.asarray(value)) for value in known[node.input[0]].scale)
        rounded = probe.node("QuantizeLinear", [node.input[0], scale, zero])
        source = probe.node("DequantizeLinear", [rounded, scale, zero])
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}.alone"
        copy.input[:2] = [source, probe.constant(bits * _along(step, weight))]
        copy.output[0] = f"{node.output[0]}.alone"
        probe.graph.nodes.append(copy)
        difference = probe.node("Sub", [node.output[0], copy.output[0]])
        for tensor in (difference, node.output[0]):
            probe.answer(probe.node("ReduceSumSquare", [tensor], keepdims=0))
    total = sum(np.array(answers, np.float64) for answers in probe.run(samples))
    noise, power = np.asarray(total)[::2], np.maximum(np.asarray(total)[1::2], TINY)
    return dict(zip((node.name for node in nodes), np.sqrt(noise / power).tolist(), strict=True))


class _Unit:
    """A node that is computed in 8 bits, with the activation that becomes part of it."""

    def __init__(self, node: onnx.NodeProto, output: str, sources: list[str]) -> None:
        self.node = node
        self.output = output
        self.sources = sources

    @property
    def tensors(self) -> list[str]:
        """What has to be in 8 bits for it."""
        return [*self.sources, self.output]


def _units(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> list[_Unit]:
    """Convolutions, and what lies between them and takes only what is in 8 bits anyway."""
    chosen = {node.output[0] for node in nodes}
    units: list[_Unit] = []
    in_8_bits: set[str] = set()
    for node in graph.nodes:
        is_chosen = node.output[0] in chosen
        if node.output[0] in in_8_bits:
            continue  # the activation of the unit before
        if is_chosen or (node.op_type in _BETWEEN and _takes_only(node, in_8_bits)):
            sources = [node.input[0]] if is_chosen else _tensors(node)
            units.append(_Unit(node, _activated(graph, node), sources))
            in_8_bits.add(units[-1].output)
    return units


def _activated(graph: Graph, node: onnx.NodeProto) -> str:
    """A node's result, after the activation that can be had by clipping its 8 bits."""
    after = graph.sole_consumer(node.output[0])
    if node.op_type in ("Conv", "Add") and after is not None and after.op_type in _CLIPPING:
        node = after
    output: str = node.output[0]
    return output


def _tensors(node: onnx.NodeProto) -> list[str]:
    return [node.input[0]] if node.op_type == "Clip" else list(node.input)


def _takes_only(node: onnx.NodeProto, known: Collection[str]) -> bool:
    return len(node.output) == 1 and all(name in known for name in _tensors(node))


def replace(
    graph: Graph,
    nodes: Sequence[onnx.NodeProto],
    known: dict[str, Extent],
    names: Collection[str],
) -> Graph:
    """Return a graph with some convolutions in 8 bits, in the form that runtimes fuse (QDQ).

    Args:
        graph: The graph in 32 bits; it is not changed.
        nodes: Its convolutions.
        known: Of every tensor.
        names: Of the convolutions to replace.
    """
    copy = Graph(graph.finish())
    units = _units(copy, [node for node in copy.nodes if node.name in names])
    tensors = {name for unit in units for name in unit.tensors} - set(copy.outputs)
    rounded = {name: f"{name}.float" for name in tensors if copy.constant(name) is None}
    convolved = {unit.node.output[0] for unit in units if unit.node.op_type == "Conv"}
    nodes_8: list[onnx.NodeProto] = []
    for name in copy.model.graph.input:
        nodes_8 += _rounding(copy, name.name, known) if name.name in rounded else []
    for node in copy.nodes:
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        changed.input[:] = [rounded.get(name, name) for name in node.input]
        if node.output[0] in convolved:
            nodes_8 += _weights(copy, changed, known[node.input[0]])
        nodes_8.append(changed)
        for name in node.output:
            nodes_8 += _rounding(copy, name, known) if name in rounded else []
    copy.nodes = nodes_8
    copy.prune()
    return copy


def _rounding(graph: Graph, name: str, known: dict[str, Extent]) -> list[onnx.NodeProto]:
    scale, zero = known[name].scale
    constants = [
        graph.add(f"{name}.step", np.asarray(scale)),
        graph.add(f"{name}.zero", np.asarray(zero)),
    ]
    bits, back = f"{name}.uint8", f"{name}.float"
    return [
        helper.make_node("QuantizeLinear", [name, *constants], [bits], bits),
        helper.make_node("DequantizeLinear", [bits, *constants], [back], back),
    ]


def _weights(graph: Graph, node: onnx.NodeProto, source: Extent) -> list[onnx.NodeProto]:
    """Let a convolution take its weights and bias from 8 and 32 bits; returns the nodes that make them."""
    weight = graph.constant(node.input[1])
    assert weight is not None
    bias = graph.constant(node.input[2]) if len(node.input) > 2 else None
    # The bias counts in steps too, of 32 bits: a channel of next to no weights must leave room for it.
    room = np.zeros(1) if bias is None else np.abs(bias) / (_MOST_BIAS * source.scale[0])
    bits, step = quantised(weight, room)
    made = [_constant(graph, f"{node.name}.weight", bits, step)]
    node.input[1] = made[0].output[0]
    if bias is not None:
        both = step * source.scale[0]
        whole = np.rint(bias / both).astype(np.int32)
        made.append(_constant(graph, f"{node.name}.bias", whole, both))
        node.input[2] = made[1].output[0]
    return made


def _constant(graph: Graph, name: str, bits: NDArray[np.integer], step: Float) -> onnx.NodeProto:
    inputs = [
        graph.add(f"{name}.bits", bits),
        graph.add(f"{name}.step", step.astype(np.float32)),
        graph.add(f"{name}.zero", np.zeros(len(step), bits.dtype)),
    ]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}.float"], f"{name}.float", axis=0)


def multiplications(graph: Graph) -> tuple[float, float]:
    """Count the multiplications of one image: in convolutions, and in products of matrices.

    Args:
        graph: The graph in 32 bits.
    """
    convolved, multiplied = 0.0, 0.0
    for node in graph.nodes:
        shape = graph.shape(node.output[0]) or (1,)
        size = float(np.prod([dim or 1 for dim in shape]))
        first = graph.shape(node.input[0]) or (1,) if node.input else (1,)
        if node.op_type == "Conv":
            window = graph.shape(node.input[1]) or (1,)
            convolved += size * float(np.prod([dim or 1 for dim in window[1:]]))
        elif node.op_type == "MatMul":
            multiplied += size * (first[-1] or 1)
        elif node.op_type == "Gemm":
            multiplied += size * (first[-2 if attribute(node, "transA", 0) else -1] or 1)
    return convolved, multiplied

"""Convolutions in 8 bits from end to end (static, QDQ), for models whose work is in them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from vfm_runtime.tasks.base import Arrays

from vfm.quantization.graph import Array, Graph
from vfm.quantization.instrument import TINY, Probe

Float = NDArray[np.float32]
Scales = Mapping[str, tuple[np.float32, np.uint8]]
"""Step and zero point of 8 bits by the name of the tensor."""

# What ONNX Runtime also computes in 8 bits, so that values stay so from one convolution to the next.
_BETWEEN = (
    *("Add", "Mul", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Relu"),
    *("Clip", "LeakyRelu"),
)
_CLIPPING = ("Relu", "Clip")
# Most steps of a bias, in the 32 bits that products are added to.
_MAX_BIAS = 2**30


def find_convolutions(graph: Graph) -> list[onnx.NodeProto]:
    """Return the convolutions of images with constant weights."""
    nodes = []
    for node in graph.nodes:
        if node.op_type == "Conv":
            constants = [graph.get_constant(name) for name in node.input[1:] if name]
            if all(value is not None and value.dtype == np.float32 for value in constants):
                nodes.append(node)
    return nodes


def quantize_weight(
    weight: Float, least: NDArray[Any] | float = 0.0
) -> tuple[NDArray[np.int8], Float]:
    """Bring the weights of a convolution to 8 bits, with a step an output channel.

    CPUs without VNNI multiply 8 bits of a value (0 to 255) by 8 bits of a weight, and add two such products in 16 bits
    that saturate: the answers would be wrong there, and only there. So the step is taken so that no two neighbours of
    one sign sum up to more than 128, which no input can bring over the edge: 255 * 128 < 2^15. The file then answers
    alike on every CPU. Halving the range (`reduce_range`) does the same and costs a whole bit; this costs about a
    quarter of one, as the largest weight seldom has a large neighbour.

    Args:
        weight: float32 [O, I, h, w].
        least: Least step, of all channels or [O].

    Returns:
        The 8 bits, and the steps [O].
    """
    step = np.full(len(weight), TINY)
    # Which weights are neighbours depends on the order in which a CPU's kernel goes through a window.
    for order in (weight, np.moveaxis(weight, 1, -1)):
        flat = order.reshape(len(weight), -1)
        pairs = np.pad(flat, ((0, 0), (0, flat.shape[1] % 2))).reshape(len(weight), -1, 2)
        sums = np.maximum(np.maximum(pairs, 0).sum(-1), np.maximum(-pairs, 0).sum(-1))
        # 127, as rounding can add a half to both.
        step = np.maximum(step, sums.max(axis=1) / 127)
    step = np.maximum(step, least).astype(np.float32)
    return np.rint(weight / _align(step, weight)).astype(np.int8), step


def _align(step: Float, weight: Float) -> Float:
    return step.reshape(-1, *[1] * (weight.ndim - 1))


def measure_scales(
    graph: Graph, nodes: Sequence[onnx.NodeProto], samples: Sequence[Arrays]
) -> Scales:
    """Measure the range of every tensor that may have to be in 8 bits, which zero itself is always part of.

    Args:
        graph: The graph in 32 bits.
        nodes: Convolutions of the graph, such as those of `find_convolutions`.
        samples: Real inputs of the model, batch by batch.
    """
    probe = Probe(graph)
    names = sorted({name for unit in _find_units(graph, nodes) for name in unit.tensors})
    for name in names:
        for op in ("ReduceMin", "ReduceMax"):
            probe.add_output(probe.add_node(op, [name], keepdims=0))
    extremes = np.stack([np.array(answers, np.float32) for answers in probe.run(samples)])
    lows = np.minimum(extremes[:, ::2].min(axis=0), 0).astype(float)
    highs = np.maximum(extremes[:, 1::2].max(axis=0), 0).astype(float)
    steps = np.maximum((highs - lows) / 255, TINY)
    zeros = np.clip(np.round(-lows / steps), 0, 255).astype(np.uint8)
    return dict(zip(names, zip(steps.astype(np.float32), zeros, strict=True), strict=True))


def measure_errors(
    graph: Graph, nodes: Sequence[onnx.NodeProto], scales: Scales, samples: Sequence[Arrays]
) -> dict[str, float]:
    """Measure what 8 bits cost every convolution alone: the error of its output, relative to that output.

    Args:
        graph: The graph in 32 bits.
        nodes: Convolutions of the graph, such as those of `find_convolutions`.
        scales: Scales of all tensors, measured by `measure_scales`.
        samples: Real inputs of the model, batch by batch.

    Returns:
        Errors by the names of the nodes.
    """
    probe = Probe(graph)
    for node in nodes:
        weight = _get_weight(graph, node)
        bits, step = quantize_weight(weight)
        scale, zero = (probe.add_constant(np.asarray(value)) for value in scales[node.input[0]])
        rounded = probe.add_node("QuantizeLinear", [node.input[0], scale, zero])
        source = probe.add_node("DequantizeLinear", [rounded, scale, zero])
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}.alone"
        copy.input[:2] = [source, probe.add_constant(bits * _align(step, weight))]
        copy.output[0] = f"{node.output[0]}.alone"
        probe.graph.nodes.append(copy)
    probe.add_errors({f"{node.output[0]}.alone": node.output[0] for node in nodes})
    return dict(zip((node.name for node in nodes), probe.measure_errors(samples), strict=True))


def _get_weight(graph: Graph, node: onnx.NodeProto) -> Array:
    weight = graph.get_constant(node.input[1])
    assert weight is not None
    return weight


@dataclass(frozen=True, eq=False)
class _Unit:
    """A node that is computed in 8 bits, with the activation that becomes part of it."""

    node: onnx.NodeProto
    output: str
    sources: list[str]

    @property
    def tensors(self) -> list[str]:
        """Names of what has to be in 8 bits for it."""
        return [*self.sources, self.output]


def _find_units(graph: Graph, nodes: Sequence[onnx.NodeProto]) -> list[_Unit]:
    """Convolutions, and what lies between them and takes only what is in 8 bits anyway."""
    chosen = {node.output[0] for node in nodes}
    units: list[_Unit] = []
    in_8_bits: set[str] = set()
    for node in graph.nodes:
        if node.output[0] in in_8_bits:
            continue  # the activation of the unit before
        is_first_only = node.output[0] in chosen or node.op_type == "Clip"
        sources = [node.input[0]] if is_first_only else list(node.input)
        fits = node.op_type in _BETWEEN and len(node.output) == 1 and in_8_bits.issuperset(sources)
        if node.output[0] in chosen or fits:
            units.append(_Unit(node, _skip_activation(graph, node), sources))
            in_8_bits.add(units[-1].output)
    return units


def _skip_activation(graph: Graph, node: onnx.NodeProto) -> str:
    """Name of a node's result, after the activation that can be had by clipping its 8 bits."""
    output: str = node.output[0]
    users = graph.get_consumers(output)
    is_sole = len(users) == 1 and output not in graph.outputs
    if node.op_type in ("Conv", "Add") and is_sole and users[0].op_type in _CLIPPING:
        output = users[0].output[0]
    return output


def quantize_convolutions(graph: Graph, names: Collection[str], scales: Scales) -> onnx.ModelProto:
    """Return a model with some convolutions in 8 bits, in the form that runtimes fuse (QDQ).

    Args:
        graph: The graph in 32 bits; it is not changed.
        names: Names of the nodes to replace.
        scales: Scales of all tensors, measured by `measure_scales`.
    """
    copy = Graph(graph.finish())
    units = _find_units(copy, [node for node in copy.nodes if node.name in names])
    tensors = {name for unit in units for name in unit.tensors} - set(copy.outputs)
    rounded = {name: f"{name}.float" for name in tensors if copy.get_constant(name) is None}
    convolved = {unit.node.output[0] for unit in units if unit.node.op_type == "Conv"}
    nodes: list[onnx.NodeProto] = []
    for value in copy.model.graph.input:
        nodes += _round(copy, value.name, scales) if value.name in rounded else []
    for node in copy.nodes:
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        changed.input[:] = [rounded.get(name, name) for name in node.input]
        if node.output[0] in convolved:
            nodes += _replace_weights(copy, changed, scales[node.input[0]][0])
        nodes.append(changed)
        for name in node.output:
            nodes += _round(copy, name, scales) if name in rounded else []
    copy.nodes = nodes
    copy.prune()
    return copy.finish()


def _round(graph: Graph, name: str, scales: Scales) -> list[onnx.NodeProto]:
    """Nodes that bring a tensor to 8 bits and back."""
    values = zip(("step", "zero"), scales[name], strict=True)
    constants = [graph.add_constant(f"{name}.{part}", np.asarray(v)) for part, v in values]
    bits, back = f"{name}.uint8", f"{name}.float"
    return [
        helper.make_node("QuantizeLinear", [name, *constants], [bits], bits),
        helper.make_node("DequantizeLinear", [bits, *constants], [back], back),
    ]


def _replace_weights(
    graph: Graph, node: onnx.NodeProto, source_step: np.float32
) -> list[onnx.NodeProto]:
    """Let a convolution take its weights and bias from 8 and 32 bits; returns the nodes that make them."""
    bias = graph.get_constant(node.input[2]) if len(node.input) > 2 else None
    # The bias counts in steps too, of 32 bits: a channel of next to no weights must leave room for it.
    room = 0.0 if bias is None else np.abs(bias) / (_MAX_BIAS * source_step)
    bits, step = quantize_weight(_get_weight(graph, node), room)
    nodes = [_make_dequantize(graph, f"{node.name}.weight", bits, step)]
    node.input[1] = nodes[0].output[0]
    if bias is not None:
        bias_step = step * source_step
        whole = np.rint(bias / bias_step).astype(np.int32)
        nodes.append(_make_dequantize(graph, f"{node.name}.bias", whole, bias_step))
        node.input[2] = nodes[1].output[0]
    return nodes


def _make_dequantize(
    graph: Graph, name: str, bits: NDArray[np.integer], step: Float
) -> onnx.NodeProto:
    inputs = [
        graph.add_constant(f"{name}.bits", bits),
        graph.add_constant(f"{name}.step", step.astype(np.float32)),
        graph.add_constant(f"{name}.zero", np.zeros(len(step), bits.dtype)),
    ]
    return helper.make_node("DequantizeLinear", inputs, [f"{name}.float"], f"{name}.float", axis=0)

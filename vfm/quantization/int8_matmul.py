"""Weights and inputs of matrix products in 8 bits, for models whose work is in them: transformers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from vfm_runtime.tasks.base import Arrays

from vfm.quantization.graph import MICROSOFT, Graph, attribute
from vfm.quantization.instrument import Probe

Float = NDArray[np.float32]
TINY = 1e-12
"""Least step, of a tensor that is 0 throughout."""


@dataclass(frozen=True, eq=False)
class Layer:
    """A product of something with a constant matrix, with its bias."""

    name: str
    """Of its node."""
    source: str
    """Tensor that is multiplied."""
    weight: Float
    """[K, N]."""
    bias: str | None
    output: str
    """Tensor after the bias."""
    removed: tuple[str, ...]
    """Outputs of the nodes that go when it is replaced."""


@dataclass(frozen=True)
class Extent:
    """Least and largest value of a tensor's channels over all samples."""

    low: Float
    high: Float

    @property
    def scale(self) -> tuple[np.float32, np.uint8]:
        """Step and zero point of 8 bits that hold every value and zero itself."""
        low, high = min(float(self.low.min()), 0.0), max(float(self.high.max()), 0.0)
        step = max((high - low) / 255, TINY)
        return np.float32(step), np.uint8(np.clip(round(-low / step), 0, 255))


def layers(graph: Graph) -> list[Layer]:
    """Find the products with constant matrices.

    Args:
        graph: The graph.
    """
    found = (_layer(graph, node) for node in graph.nodes if node.op_type in ("MatMul", "Gemm"))
    return [layer for layer in found if layer is not None]


def _layer(graph: Graph, node: onnx.NodeProto) -> Layer | None:
    weight = graph.constant(node.input[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return None
    result = node.output[0]
    if node.op_type == "Gemm":
        plain = (attribute(node, key, value) == value for key, value in _GEMM.items())
        if not all(plain):
            return None
        weight = weight.T if attribute(node, "transB", 0) else weight
        bias = node.input[2] if len(node.input) > 2 and node.input[2] else None
        if bias is not None and graph.shape(bias) != (weight.shape[1],):
            return None
        return Layer(node.name, node.input[0], weight, bias, result, (result,))
    added = graph.sole_consumer(result)
    if added is not None and added.op_type == "Add":
        bias = added.input[1 if added.input[0] == result else 0]
        value = graph.constant(bias)
        if value is not None and value.shape == (weight.shape[1],):
            removed = (result, added.output[0])
            return Layer(node.name, node.input[0], weight, bias, added.output[0], removed)
    return Layer(node.name, node.input[0], weight, None, result, (result,))


_GEMM = {"alpha": 1.0, "beta": 1.0, "transA": 0}


def quantised(weight: Float) -> tuple[NDArray[np.int8], Float]:
    """Bring a matrix to 8 bits a value, with a step a column.

    CPUs without VNNI multiply 8 bits of a value (0 to 255) by 8 bits of a weight, and add two such products in 16 bits
    that saturate: the answers would be wrong there, and only there. So the step is taken so that no two neighbours of
    one sign sum up to more than 128, which no input can bring over the edge: 255 * 128 < 2^15. The file then answers
    alike on every CPU. Halving the range (`reduce_range`) does the same and costs a whole bit; this costs about a
    quarter of one, as the largest weight seldom has a large neighbour.

    Args:
        weight: [K, N].

    Returns:
        The 8 bits, and the step of every column.
    """
    step = column_steps(weight)
    return np.rint(weight / step).astype(np.int8), step


def column_steps(weight: Float) -> Float:
    """Return the step of every column with which no two neighbours of one sign sum up to more than 128 steps.

    Args:
        weight: [K, N].
    """
    rows = weight.shape[0]
    pairs = np.pad(weight, ((0, rows % 2), (0, 0))).reshape(-1, 2, weight.shape[1])
    largest = np.maximum(np.maximum(pairs, 0).sum(1), np.maximum(-pairs, 0).sum(1)).max(axis=0)
    # 127, as rounding can add a half to both.
    step: Float = np.maximum(largest / 127, TINY).astype(np.float32)
    return step


class Replacement:
    """Makes the nodes that compute layers in 8 bits."""

    def __init__(
        self, graph: Graph, extents: Mapping[str, Extent] | None, suffix: str = ""
    ) -> None:
        """Start with nothing replaced.

        Args:
            graph: To which constants are added.
            extents: Of every layer's source; None for ranges that are found anew at every run.
            suffix: Added to the names of outputs.
        """
        self._graph = graph
        self._extents = extents
        self._suffix = suffix
        self._sources: dict[str, list[str]] = {}

    def nodes(self, layer: Layer) -> list[onnx.NodeProto]:
        """Return the nodes of a layer.

        Args:
            layer: The layer.
        """
        add, name = self._graph.add, f"{layer.name}.int8"
        bits, step = quantised(layer.weight)
        weight, steps = add(f"{name}.weight", bits), add(f"{name}.step", step)
        bias = [layer.bias] if layer.bias else []
        output = [layer.output + self._suffix]
        if self._extents is None:
            inputs = [layer.source, weight, steps, "", *bias]
            return [_microsoft("DynamicQuantizeMatMul", inputs, output, name)]
        before: list[onnx.NodeProto] = []
        if layer.source not in self._sources:
            before = [self._quantiser(layer.source, self._extents[layer.source])]
        source, scale, zero = self._sources[layer.source]
        inputs = [source, weight, scale, steps, zero, "", *bias]
        return [*before, _microsoft("MatMulIntegerToFloat", inputs, output, name)]

    def _quantiser(self, source: str, extent: Extent) -> onnx.NodeProto:
        step, zero_point = extent.scale
        scale = self._graph.add(f"{source}.step", np.asarray(step))
        zero = self._graph.add(f"{source}.zero", np.asarray(zero_point))
        result = f"{source}.uint8{self._suffix}"
        self._sources[source] = [result, scale, zero]
        return helper.make_node("QuantizeLinear", [source, scale, zero], [result], result)


def _microsoft(op: str, inputs: list[str], outputs: list[str], name: str) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name, domain=MICROSOFT)


def extents(graph: Graph, found: Sequence[Layer], samples: Sequence[Arrays]) -> dict[str, Extent]:
    """Measure the values that go into layers.

    Args:
        graph: The graph in 32 bits.
        found: Its layers.
        samples: Real inputs of the model.
    """
    probe = Probe(graph)
    sources = {layer.source: layer.weight.shape[0] for layer in found}
    for source, channels in sources.items():
        flat = probe.node("Reshape", [source, probe.constant(np.array([-1, channels]))])
        axis = probe.constant(np.array([0]))
        for op in ("ReduceMin", "ReduceMax"):
            probe.answer(probe.node(op, [flat, axis], keepdims=0))
    lows: list[Float] = [np.full(k, np.inf, np.float32) for k in sources.values()]
    highs = [-low for low in lows]
    for answers in probe.run(samples):
        for number, (low, high) in enumerate(zip(answers[::2], answers[1::2], strict=True)):
            lows[number] = np.minimum(lows[number], low)
            highs[number] = np.maximum(highs[number], high)
    return {name: Extent(*pair) for name, *pair in zip(sources, lows, highs, strict=True)}


def errors(
    graph: Graph,
    found: Sequence[Layer],
    known: Mapping[str, Extent] | None,
    samples: Sequence[Arrays],
) -> dict[str, float]:
    """Measure what 8 bits cost every layer alone: the error of its output, relative to that output.

    Every layer is computed both ways from the same input, in one run of one graph.

    Args:
        graph: The graph in 32 bits.
        found: Its layers.
        known: What goes into them; None for ranges that are found anew at every run.
        samples: Real inputs of the model.

    Returns:
        By the layer's name.
    """
    probe = Probe(graph)
    replacement = Replacement(probe.graph, known, ".alone")
    for layer in found:
        probe.graph.nodes.extend(replacement.nodes(layer))
        difference = probe.node("Sub", [layer.output, f"{layer.output}.alone"])
        for tensor in (difference, layer.output):
            probe.answer(probe.node("ReduceSumSquare", [tensor], keepdims=0))
    total = np.zeros(2 * len(found))
    for answers in probe.run(samples):
        total += np.array(answers, np.float64)
    noise, power = total[::2], np.maximum(total[1::2], TINY)
    return dict(zip((layer.name for layer in found), np.sqrt(noise / power).tolist(), strict=True))


def replace(
    graph: Graph, found: Sequence[Layer], known: Mapping[str, Extent] | None, names: Collection[str]
) -> Graph:
    """Return a graph with some layers in 8 bits.

    Args:
        graph: The graph in 32 bits; it is not changed.
        found: Its layers.
        known: What goes into them; None for ranges that are found anew at every run.
        names: Of the layers to replace.
    """
    copy = Graph(graph.finish())
    replacement = Replacement(copy, known)
    changes: dict[str, list[onnx.NodeProto]] = {}
    for layer in _chosen(found, names):
        changes |= {output: [] for output in layer.removed}
        # In the place of the product, not of the bias: others may share the input in 8 bits.
        changes[layer.removed[0]] = replacement.nodes(layer)
    copy.replace(changes)
    return copy


def _chosen(found: Sequence[Layer], names: Collection[str]) -> Iterator[Layer]:
    return (layer for layer in found if layer.name in names)

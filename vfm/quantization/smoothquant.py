"""Large channels moved from the inputs of layers to their weights, where 8 bits a column hold them better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from vfm.quantization.graph import Graph
from vfm.quantization.int8_matmul import Extent, Float, Layer

_LEAST = 1e-5


def norms(graph: Graph, found: Sequence[Layer]) -> dict[str, tuple[Layer, ...]]:
    """Find the normalisations that only feed layers: these layers by the norm's output.

    Args:
        graph: The graph in 32 bits.
        found: Its layers.
    """
    by_source: dict[str, list[Layer]] = {}
    for layer in found:
        by_source.setdefault(layer.source, []).append(layer)
    answer = {}
    for node in graph.nodes:
        fed = by_source.get(node.output[0], [])
        users = graph.consumers(node.output[0])
        constant = all(graph.constant(name) is not None for name in node.input[1:])
        if (
            node.op_type == "LayerNormalization"
            and constant
            and fed
            and len(fed) == len(users)
            and all(user.op_type == "MatMul" for user in users)
        ):
            answer[node.output[0]] = tuple(fed)
    return answer


def smooth(
    graph: Graph, chosen: Mapping[str, Sequence[Layer]], known: Mapping[str, Extent]
) -> tuple[Graph, dict[str, Extent]]:
    """Divide each channel of some norms by a factor, and multiply the weights that follow by it.

    The answers in 32 bits stay. The factor of a channel is sqrt(max|x|) / sqrt(max|w|): both sides are then equally
    hard to hold in 8 bits (SmoothQuant, arXiv:2211.10438, with its alpha at a half).

    Args:
        graph: The graph in 32 bits; it is not changed.
        chosen: Layers by the output of the norm before them.
        known: What goes into the layers.

    Returns:
        The changed graph, and what goes into its layers.
    """
    copy, after = Graph(graph.finish()), dict(known)
    changes: dict[str, list[onnx.NodeProto]] = {}
    for output, fed in chosen.items():
        factor = _factor(known[output], fed)
        after[output] = Extent(known[output].low / factor, known[output].high / factor)
        norm = copy.producer(output)
        assert norm is not None
        changes[output] = [_scaled(copy, norm, range(1, len(norm.input)), np.reciprocal(factor))]
        for layer in fed:
            product = copy.producer(layer.removed[0])
            assert product is not None
            changes[layer.removed[0]] = [_scaled(copy, product, (1,), factor[:, None])]
    copy.replace(changes)
    return copy, after


def _factor(extent: Extent, fed: Sequence[Layer]) -> Float:
    inputs = np.maximum(np.abs(extent.low), np.abs(extent.high))
    weights = np.max([np.abs(layer.weight).max(axis=1) for layer in fed], axis=0)
    factor = np.sqrt(np.maximum(inputs, _LEAST)) / np.sqrt(np.maximum(weights, _LEAST))
    return np.asarray(factor, np.float32)


def _scaled(
    graph: Graph, node: onnx.NodeProto, positions: Sequence[int], factor: Float
) -> onnx.NodeProto:
    changed = onnx.NodeProto()
    changed.CopyFrom(node)
    for position in positions:
        value = graph.constant(node.input[position])
        assert value is not None
        # A constant of its own: norms may share one.
        changed.input[position] = graph.add(f"{node.input[position]}.smooth", value * factor)
    return changed

"""SmoothQuant: large channels moved from the inputs of matrix products to their weights, which 8 bits hold better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from vfm_runtime.tasks.base import Arrays

from vfm.quantization.graph import Array, Graph
from vfm.quantization.instrument import Probe

_LEAST = 1e-5


def smooth(graph: Graph, samples: Sequence[Arrays]) -> int:
    """Divide each channel of the norms before matrix products by a factor, and multiply the products' weights by it.

    The answers in 32 bits stay. The factor of a channel is sqrt(max|x|) / sqrt(max|w|): both sides are then equally
    hard to hold in 8 bits (SmoothQuant, arXiv:2211.10438, with its alpha at a half).

    Args:
        graph: A graph in 32 bits, changed in place.
        samples: Real inputs of the model, batch by batch.

    Returns:
        The number of norms that were changed.
    """
    norms = list(find_norms(graph))
    probe = Probe(graph)
    for norm, products in norms:
        shape = probe.add_constant(np.array([-1, _get_weight(graph, products[0]).shape[0]]))
        rows = probe.add_node("Reshape", [probe.add_node("Abs", [norm.output[0]]), shape])
        axis = probe.add_constant(np.array([0]))
        probe.add_output(probe.add_node("ReduceMax", [rows, axis], keepdims=0))
    batches = zip(*probe.run(samples), strict=True)
    for (norm, products), largest in zip(norms, batches, strict=True):
        inputs = np.max(largest, axis=0)
        weights = np.max([np.abs(_get_weight(graph, p)).max(axis=1) for p in products], axis=0)
        factor = np.sqrt(np.maximum(inputs, _LEAST) / np.maximum(weights, _LEAST))
        scale_channels(graph, norm, products, factor)
    return len(norms)


def scale_channels(
    graph: Graph, norm: onnx.NodeProto, products: Sequence[onnx.NodeProto], factor: Array
) -> None:
    """Divide what a norm gives by a factor, and multiply the weights of the products after it by that.

    Args:
        graph: A graph in 32 bits, changed in place.
        norm: A norm of `find_norms`.
        products: The products that the norm feeds.
        factor: Factors of the channels, [K].
    """
    targets = [(norm, position, 1 / factor) for position in range(1, len(norm.input))]
    targets += [(product, 1, factor[:, None]) for product in products]
    for node, position, scale in targets:
        value = graph.get_constant(node.input[position])
        assert value is not None
        scaled = np.asarray(value * scale, np.float32)
        # A constant of its own: norms may share one.
        node.input[position] = graph.add_constant(f"{node.input[position]}.smooth", scaled)


def find_norms(graph: Graph) -> Iterator[tuple[onnx.NodeProto, list[onnx.NodeProto]]]:
    """Find the norms with constant weights that only feed products with constant matrices, and these products."""
    for node in graph.nodes:
        products = graph.get_consumers(node.output[0])
        weights = [*node.input[1:], *(product.input[-1] for product in products)]
        if (
            node.op_type == "LayerNormalization"
            and products
            and node.output[0] not in graph.outputs
            and all(product.op_type == "MatMul" for product in products)
            and all(graph.get_constant(weight) is not None for weight in weights)
        ):
            yield node, products


def _get_weight(graph: Graph, product: onnx.NodeProto) -> Array:
    weight = graph.get_constant(product.input[1])
    assert weight is not None
    return weight

"""Matrix products in 8 bits by ONNX Runtime's dynamic quantizer, for models whose work is in them: transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto
from onnxruntime.quantization import quantize_dynamic
from vfm_runtime.tasks.base import Arrays

from vfm.quantization.graph import Graph
from vfm.quantization.instrument import Probe


def find_matmuls(graph: Graph) -> list[onnx.NodeProto]:
    """Return the products with constant matrices."""
    nodes = []
    for node in graph.nodes:
        weight = graph.get_constant(node.input[1]) if node.op_type == "MatMul" else None
        if weight is not None and weight.ndim == 2 and weight.dtype == np.float32:
            nodes.append(node)
    return nodes


def quantize_matmuls(model: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """Return a model with some products in 8 bits, their inputs' ranges found anew at every run.

    Args:
        model: A model in 32 bits; it must not be used any more.
        names: Names of the products' nodes.
    """
    if not names:
        return model
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    # The quantizer warns of models that its own preparation, of which these need nothing, has not marked.
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        quantize_dynamic(
            model,
            file,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # CPUs without VNNI add two products of 8 bits in 16 bits that saturate: the answers would be wrong there,
            # and only there. Weights of 7 bits cannot bring a sum over the edge: 2 * 255 * 64 < 2^15.
            reduce_range=True,
            nodes_to_quantize=list(names),
            extra_options={"DefaultTensorType": TensorProto.FLOAT},
        )
        quantized = onnx.load(file)
    onnx.helper.set_model_props(quantized, metadata)
    return quantized


def measure_errors(
    graph: Graph, nodes: Sequence[onnx.NodeProto], samples: Sequence[Arrays]
) -> dict[str, float]:
    """Measure what 8 bits cost every product alone: the error of its output, relative to that output.

    Every product is computed both ways from the same input, in one run of one graph.

    Args:
        graph: The graph in 32 bits.
        nodes: Products of the graph, such as those of `find_matmuls`.
        samples: Real inputs of the model, batch by batch.

    Returns:
        Errors by the names of the nodes.
    """
    probe = Probe(graph)
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name, copy.output[0] = f"{node.name}.alone", f"{node.output[0]}.alone"
        copies.append(copy)
    probe.graph.nodes.extend(copies)
    probe.add_errors({c.output[0]: n.output[0] for c, n in zip(copies, nodes, strict=True)})
    model = quantize_matmuls(probe.finish(), [copy.name for copy in copies])
    return dict(zip((n.name for n in nodes), probe.measure_errors(samples, model), strict=True))

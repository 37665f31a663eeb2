"""Fp16 models: half of the bytes, and for GPUs twice as fast or more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from vfm.quantization.graph import Graph, QuantizeError, get_attribute

_PRODUCTS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
# Computed in whichever precision their inputs have.
_FOLLOWING = (
    *("Add", "Sub", "Mul", "Gelu", "Relu", "LeakyRelu", "PRelu", "Sigmoid", "Tanh", "Erf", "Clip"),
    *("HardSwish", "HardSigmoid", "Swish", "Mish", "Elu", "Neg", "Max", "Min", "Where"),
    *("Reshape", "Transpose", "Concat", "Split", "Slice", "Squeeze", "Unsqueeze", "Gather"),
    *("Expand", "Identity", "Flatten", "Tile", "Pad", "DepthToSpace", "SpaceToDepth"),
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Dropout"),
)
_LARGEST = float(np.finfo(np.float16).max)


def write_fp16(source: Path, target: Path) -> None:
    """Write a model in 16 bits, for the GPU; inputs and outputs stay in 32.

    Products with weights are computed in 16 bits, with what lies between them. In 32 stay the scores of attention,
    norms, the last layers, and all that places boxes or chooses among them: there, 16 bits have too few digits or too
    small a range. On a CPU the file answers alike, but slowly.

    Raises:
        QuantizeError: The model is missing or too large, or has weights that 16 bits cannot hold.
    """
    graph = Graph.read(source)
    conversion = _Conversion(graph)
    for node in graph.nodes:
        conversion.add(node)
    graph.nodes = conversion.nodes
    onnx.save(graph.finish(), target)


class _Conversion:
    """The nodes so far, with the precision of every tensor, and casts where nodes need another."""

    def __init__(self, graph: Graph) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._graph = graph
        self._floats = _find_floats(graph)
        self._in_32_bits = _find_exact(graph)
        self._in_16: set[str] = set()
        self._copies: dict[tuple[str, bool], str] = {}

    def add(self, node: onnx.NodeProto) -> None:
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        to_16 = node.name not in self._in_32_bits and (
            node.op_type in _PRODUCTS
            or (node.op_type in _FOLLOWING and bool(self._in_16.intersection(node.input)))
        )
        for position, name in enumerate(node.input):
            if name in self._floats and to_16 != (name in self._in_16):
                if (name, to_16) not in self._copies:
                    self._copies[name, to_16] = self._copy(name, to_16)
                changed.input[position] = self._copies[name, to_16]
        self.nodes.append(changed)
        if to_16:
            self._in_16.update(name for name in node.output if name in self._floats)

    def _copy(self, name: str, to_16: bool) -> str:
        """Make a tensor in the other precision and return its name."""
        copy = f"{name}.{16 if to_16 else 32}"
        value = self._graph.get_constant(name)
        if value is None:
            to = TensorProto.FLOAT16 if to_16 else TensorProto.FLOAT
            self.nodes.append(helper.make_node("Cast", [name], [copy], copy, to=to))
            return copy
        largest = float(np.abs(value).max(initial=0))
        # Infinities are meant; attention masks are made of them.
        if np.isfinite(largest) and largest > _LARGEST:
            raise QuantizeError(
                f"The weight '{name}' reaches {largest:.1e}; 16 bits hold at most {_LARGEST:.0f}. Ship fp32, or int8 "
                "for the CPU."
            )
        return self._graph.add_constant(copy, value.astype(np.float16))


def _find_floats(graph: Graph) -> set[str]:
    """Names of the tensors in 32 bits."""
    inferred = onnx.shape_inference.infer_shapes(graph.finish()).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    kinds |= {constant.name: constant.data_type for constant in inferred.initializer}
    return {name for name, kind in kinds.items() if kind == TensorProto.FLOAT}


def _find_exact(graph: Graph) -> set[str]:
    """Names of the nodes that stay in 32 bits whatever their operator is.

    They are the products around a softmax, nodes with graphs in them, and those with no product after them: the last
    layers, and the decoding of their answers.
    """
    names = set()
    for node in graph.nodes:
        if node.op_type == "Softmax":
            before = graph.get_producer(node.input[0])
            around = [
                *graph.get_consumers(node.output[0]),
                *([before] if before is not None else []),
            ]
            names |= {near.name for near in around if near.op_type == "MatMul"}
        is_branching = any(
            get_attribute(node, name) is not None for name in ("body", "then_branch")
        )
        if is_branching or set(node.output).intersection(graph.outputs):
            names.add(node.name)
    to_product: set[str] = set()
    for node in reversed(graph.nodes):
        if not to_product.intersection(node.output):
            names.add(node.name)
        if to_product.intersection(node.output) or node.op_type in _PRODUCTS:
            to_product.update(node.input)
    return names

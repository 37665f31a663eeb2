"""Int8 models: a quarter of the bytes, and two to four times as fast on a CPU; the kind of model decides how."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from vfm_runtime.tasks.base import Arrays

from vfm.quantization import int8_conv, int8_matmul
from vfm.quantization.graph import Graph, QuantizeError, get_attribute
from vfm.quantization.smoothquant import smooth

_NUM_BATCHES = 4  # on which errors are measured

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Int8Plan:
    """What can be brought to 8 bits, with what that costs each node; any of the nodes can stay in 32."""

    method: str
    """`static` for ranges taken from samples; `dynamic` for ranges found anew at every run, so that an answer depends
    a little on the other images of its batch."""
    in_32_bits: dict[str, str]
    """Why a node stays in 32 bits in any case, by its name."""
    errors: dict[str, float]
    """Error of each other node alone, relative to its output, by its name."""
    build: Callable[[Collection[str]], onnx.ModelProto]
    """Returns the model with the nodes of these names in 8 bits."""


def plan_int8(source: Path, samples: Sequence[Arrays]) -> Int8Plan:
    """Find out what can be brought to 8 bits, and what that costs each node.

    Raises:
        QuantizeError: There is nothing to bring to 8 bits, or no sample.
    """
    if not samples:
        raise QuantizeError(
            "There are no samples to take the ranges of values from. Give real inputs, 32 images or more."
        )
    graph = Graph.read(source)
    convolved, multiplied = _count_multiplications(graph)
    if convolved > multiplied:
        in_32_bits, nodes = _split_head(graph, int8_conv.find_convolutions(graph), "convolutions")
        scales = int8_conv.measure_scales(graph, nodes, samples)
        errors = int8_conv.measure_errors(graph, nodes, scales, samples[:_NUM_BATCHES])
        return Int8Plan(
            "static",
            in_32_bits,
            errors,
            lambda names: int8_conv.quantize_convolutions(graph, names, scales),
        )
    matmuls = int8_matmul.find_matmuls(graph)
    in_32_bits, nodes = _split_head(graph, matmuls, "products with constant matrices")
    _log.info("%d norms were smoothed.", smooth(graph, samples))
    errors = int8_matmul.measure_errors(graph, nodes, samples[:_NUM_BATCHES])
    return Int8Plan(
        "dynamic",
        in_32_bits,
        errors,
        lambda names: int8_matmul.quantize_matmuls(graph.finish(), names),
    )


def _split_head(
    graph: Graph, nodes: Sequence[onnx.NodeProto], what: str
) -> tuple[dict[str, str], list[onnx.NodeProto]]:
    """The reasons why nodes of the head stay in 32 bits, by their names; and the other nodes."""
    head = _find_head(graph)
    in_32_bits = {node.name: "head" for node in nodes if node.output[0] in head}
    others = [node for node in nodes if node.name not in in_32_bits]
    if not others:
        raise QuantizeError(
            f"All {what} of the model belong to its head, so there is nothing to bring to 8 bits. Ship fp32."
        )
    return in_32_bits, others


def _find_head(graph: Graph) -> set[str]:
    """First outputs of the nodes after the backbone.

    They use a head's constants or what was made with them, or no constant of the backbone comes after them.
    """
    from_head: set[str] = set()
    for node in graph.nodes:
        if _has_constant(graph, node, "head") or from_head.intersection(node.input):
            from_head.update(node.output)
    to_backbone: set[str] = set()
    for node in reversed(graph.nodes):
        if _has_constant(graph, node, "backbone") or to_backbone.intersection(node.output):
            to_backbone.update((*node.input, *node.output))
    outputs = {node.output[0] for node in graph.nodes}
    after = outputs - to_backbone if to_backbone else set()
    return (outputs & from_head) | after | set(graph.outputs)


def _has_constant(graph: Graph, node: onnx.NodeProto, part: str) -> bool:
    """Whether a node takes a constant of a part of the model; constants keep the names of torch's parameters."""
    return any(
        part in name.split(".") and graph.get_constant(name) is not None for name in node.input
    )


def _count_multiplications(graph: Graph) -> tuple[float, float]:
    """Count the multiplications of one image: in convolutions, and in products of matrices."""
    convolved, multiplied = 0.0, 0.0
    for node in graph.nodes:
        shape = graph.get_shape(node.output[0]) or (1,)
        size = float(np.prod([dim or 1 for dim in shape]))
        first = graph.get_shape(node.input[0]) or (1,) if node.input else (1,)
        if node.op_type == "Conv":
            window = graph.get_shape(node.input[1]) or (1,)
            convolved += size * float(np.prod([dim or 1 for dim in window[1:]]))
        elif node.op_type == "MatMul":
            multiplied += size * (first[-1] or 1)
        elif node.op_type == "Gemm":
            multiplied += size * (first[-2 if get_attribute(node, "transA", 0) else -1] or 1)
    return convolved, multiplied

"""Rewriting a graph for ONNX Runtime's CPU kernels, to the same answers in less time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from vfm.quantization.graph import MICROSOFT, Graph, attribute

_TOKENWISE = (
    *("Add", "Mul", "Sub", "Div", "MatMul", "LayerNormalization", "Gelu", "Erf", "Sigmoid"),
    *("Relu", "Tanh", "MultiHeadAttention"),
)


def fuse(graph: Graph) -> tuple[int, int]:
    """Rewrite a graph in place.

    Args:
        graph: A graph of standard operators.

    Returns:
        How many attentions became one operator, and how many nodes leave tokens out that nothing uses.
    """
    return fuse_attention(graph), drop_unused_tokens(graph)


@dataclass(frozen=True)
class _Attention:
    """Self-attention of a packed projection, as timm writes it."""

    packed: str
    """Queries, keys and values side by side, [B, N, 3 * C]."""
    num_heads: int
    width: int
    """Of queries, keys and values together, 3 * C."""
    scale: float
    output: str
    """What the last of the nodes gives, [B, N, C]."""


def fuse_attention(graph: Graph) -> int:
    """Let ONNX Runtime's own operator take the place of attention in pieces.

    The pieces copy queries, keys and values to another order and back; the operator reads them where they are.

    Args:
        graph: Changed in place.

    Returns:
        How many were found.
    """
    changes: dict[str, Sequence[onnx.NodeProto]] = {}
    for node in graph.nodes:
        found = _attention(graph, node) if node.op_type == "Softmax" else None
        if found is not None:
            changes[found.output] = _operator(graph, found)
    graph.replace(changes)
    return len(changes)


def _operator(graph: Graph, found: _Attention) -> list[onnx.NodeProto]:
    parts = [f"{found.output}.{part}" for part in ("query", "key", "value")]
    sizes = graph.add(f"{found.output}.sizes", np.full(3, found.width // 3, np.int64))
    return [
        helper.make_node("Split", [found.packed, sizes], parts, f"{found.output}.split", axis=-1),
        helper.make_node(
            "MultiHeadAttention",
            parts,
            [found.output],
            f"{found.output}.attention",
            domain=MICROSOFT,
            num_heads=found.num_heads,
            scale=found.scale,
        ),
    ]


def _attention(graph: Graph, softmax: onnx.NodeProto) -> _Attention | None:
    """The attention around a softmax over keys, if it is timm's."""
    scores = graph.producer(softmax.input[0])
    mixed = graph.sole_consumer(softmax.output[0])
    if scores is None or mixed is None or (scores.op_type, mixed.op_type) != ("MatMul", "MatMul"):
        return None
    output = _joined_heads(graph, mixed)
    if output is None or mixed.input[0] != softmax.output[0]:
        return None
    query, first = _unscaled(graph, scores.input[0])
    key, second = _unscaled(graph, scores.input[1])
    key, third = _unscaled(graph, _untransposed(graph, key) or "")
    parts = [_part(graph, name) for name in (query, key, mixed.input[1])]
    if None in parts or [part[0] for part in parts if part] != [0, 1, 2]:
        return None
    sources = {part[1:] for part in parts if part}
    if len(sources) != 1:
        return None
    packed, heads, depth = sources.pop()
    return _Attention(packed, heads, 3 * heads * depth, first * second * third, output)


def _joined_heads(graph: Graph, mixed: onnx.NodeProto) -> str | None:
    """The tensor [B, N, C] after [B, H, N, D]."""
    transposed = graph.sole_consumer(mixed.output[0])
    if transposed is None or transposed.op_type != "Transpose":
        return None
    joined = graph.sole_consumer(transposed.output[0])
    if joined is None or joined.op_type != "Reshape":
        return None
    fits = list(attribute(transposed, "perm", ())) == [0, 2, 1, 3]
    shape = graph.constant(joined.input[1])
    return joined.output[0] if fits and shape is not None and shape.size == 3 else None


def _unscaled(graph: Graph, name: str) -> tuple[str, float]:
    """A tensor before it was multiplied by a number, and that number."""
    node = graph.producer(name)
    if node is None or node.op_type != "Mul":
        return name, 1.0
    for tensor, factor in (node.input, list(node.input)[::-1]):
        value = graph.constant(factor)
        if value is not None and value.size == 1:
            return tensor, float(value.item())
    return name, 1.0


def _untransposed(graph: Graph, name: str) -> str | None:
    """Keys [B, H, N, D] of which [B, H, D, N] were made, in one step or, as torch exports them, in three."""
    node = graph.producer(name)
    if node is None:
        return None
    if node.op_type == "Transpose":
        return node.input[0] if list(attribute(node, "perm", ())) == [0, 1, 3, 2] else None
    middle = graph.producer(node.input[0]) if node.op_type == "Reshape" else None
    if middle is None or middle.op_type != "Transpose":
        return None
    first = graph.producer(middle.input[0])
    fits = list(attribute(middle, "perm", ())) == [0, 2, 1]
    return first.input[0] if fits and first is not None and first.op_type == "Reshape" else None


def _part(graph: Graph, name: str) -> tuple[int, str, int, int] | None:
    """Which of queries (0), keys (1) and values (2) a tensor is; the packed projection; heads; depth of one."""
    chain = []
    for op in ("Squeeze", "Slice", "Transpose", "Reshape"):
        node = graph.producer(name)
        if node is None or node.op_type != op:
            return None
        chain.append(node)
        name = node.input[0]
    _, cut, transposed, unpacked = chain
    shape = graph.constant(unpacked.input[1])
    starts, axes = graph.constant(cut.input[1]), graph.constant(cut.input[3])
    if shape is None or starts is None or axes is None or axes.tolist() != [0]:
        return None
    if list(attribute(transposed, "perm", ())) != [2, 0, 3, 1, 4] or shape.size != 5:
        return None
    return int(starts[0]), name, int(shape[3]), int(shape[4])


def drop_unused_tokens(graph: Graph) -> int:
    """Compute only the one token that is used, where every other is thrown away at the end.

    Of a ViT that is judged by its class token, the last block is computed for that token alone; all it needs of the
    others are their keys and values.

    Args:
        graph: Changed in place.

    Returns:
        How many nodes have less to do.
    """
    for node in graph.nodes:
        token = graph.constant(node.input[1]) if node.op_type == "Gather" else None
        if token is not None and token.ndim == 0 and attribute(node, "axis", 0) == 1:
            smaller = _smaller(graph, node)
            if smaller:
                _take_early(graph, node, smaller, int(token))
                return len(smaller)
    return 0


def _smaller(graph: Graph, taken: onnx.NodeProto) -> dict[str, list[int]]:
    """Nodes all of whose results end in the token taken: positions of the inputs that hold tokens, by output."""
    shape = graph.shape(taken.input[0])
    if shape is None or len(shape) != 3 or shape[1] is None:
        return {}
    tokens = shape[1]
    ends = {taken.output[0]}
    found: dict[str, list[int]] = {}
    for node in reversed(graph.nodes):
        name = node.output[0]
        users = graph.consumers(name)
        if node.op_type not in _TOKENWISE or name in graph.outputs or not users:
            continue
        positions = _positions(graph, node, tokens)
        if positions and all(user.output[0] in ends and _by_token(user, name) for user in users):
            found[name] = positions
            ends.add(name)
    return found


def _by_token(user: onnx.NodeProto, name: str) -> bool:
    """Whether a node takes a tensor token by token: of attention only the queries are."""
    return user.op_type != "MultiHeadAttention" or name not in user.input[1:]


def _positions(graph: Graph, node: onnx.NodeProto, tokens: int) -> list[int]:
    """Positions of the inputs that hold tokens; none where the node does not treat them one by one."""
    if node.op_type == "LayerNormalization" and attribute(node, "axis", -1) != -1:
        return []
    if node.op_type == "MultiHeadAttention":
        return [0]
    positions = []
    for position, name in enumerate(node.input):
        shape = graph.shape(name)
        if graph.constant(name) is not None:
            # A constant may differ from channel to channel, not from token to token.
            if len(shape or ()) > (2 if node.op_type == "MatMul" and position == 1 else 1):
                return []
        elif shape is None or len(shape) != 3 or shape[1] != tokens:
            return []
        else:
            positions.append(position)
    return positions


def _take_early(
    graph: Graph, taken: onnx.NodeProto, smaller: dict[str, list[int]], token: int
) -> None:
    index = graph.add("token", np.array([token], np.int64))
    axis = graph.add("token.axis", np.array([1], np.int64))
    gathered: dict[str, str] = {}
    changes: dict[str, Sequence[onnx.NodeProto]] = {}
    for node in graph.nodes:
        if node.output[0] not in smaller:
            continue
        changed = onnx.NodeProto()
        changed.CopyFrom(node)
        nodes = []
        for position in smaller[node.output[0]]:
            name = node.input[position]
            if name in smaller:
                continue
            if name not in gathered:
                gathered[name] = f"{name}.token"
                nodes.append(
                    helper.make_node(
                        "Gather", [name, index], [gathered[name]], gathered[name], axis=1
                    )
                )
            changed.input[position] = gathered[name]
        changes[node.output[0]] = [*nodes, changed]
    squeezed = helper.make_node("Squeeze", [taken.input[0], axis], [taken.output[0]], taken.name)
    changes[taken.output[0]] = [squeezed]
    graph.replace(changes)

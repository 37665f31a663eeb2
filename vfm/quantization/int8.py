"""A model in 8 bits: a quarter of the bytes, and two to four times as fast on a CPU."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import onnx
from vfm_runtime.errors import suggest
from vfm_runtime.tasks.base import Arrays

from vfm.quantization import int8_conv, int8_matmul
from vfm.quantization.fuse_attention import fuse
from vfm.quantization.graph import Graph, QuantizeError
from vfm.quantization.instrument import largest_difference
from vfm.quantization.int8_matmul import Extent, Layer
from vfm.quantization.smoothquant import norms, smooth

Method = Literal["auto", "dynamic", "static"]
METHODS = ("auto", "dynamic", "static")

_MAX_CHANGE = 1e-3
_GAIN = 0.98
_FEW = 4

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Int8:
    """What was brought to 8 bits."""

    method: str
    """`dynamic` or `static`."""
    quantised: tuple[str, ...]
    """Names of the nodes in 8 bits."""
    kept: dict[str, str]
    """Why a node stays in 32 bits, by its name."""
    errors: dict[str, float]
    """Error of each node alone, relative to its output, by its name."""
    num_bytes: int
    """Of the file."""
    source_bytes: int
    """Of the file in 32 bits."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for `parity.json`."""
        return {
            "method": self.method,
            "num_quantised": len(self.quantised),
            "kept": self.kept,
            "bytes": self.num_bytes,
            "source_bytes": self.source_bytes,
        }


class Plan(Protocol):
    """All that is needed to write a model in 8 bits, with any of its nodes left in 32."""

    method: str
    kept: dict[str, str]
    errors: dict[str, float]

    def build(self, names: Collection[str]) -> onnx.ModelProto:
        """Return the model with these nodes in 8 bits."""


def write_int8(
    source: Path,
    target: Path,
    samples: Sequence[Arrays],
    *,
    exclude: Collection[str] = (),
    method: Method = "auto",
) -> Int8:
    """Write a model in 8 bits, for the CPU.

    Args:
        source: An ONNX file in 32 bits.
        target: The file to write.
        samples: Real inputs, from which the ranges of the values are taken.
        exclude: Names of nodes that stay in 32 bits.
        method: `static` for ranges taken from the samples; `dynamic` for ranges found anew at every run, so that an
            answer depends a little on the other images of its batch; `auto` for the one that fits.

    Raises:
        QuantizeError: The model cannot be brought to 8 bits.
    """
    plan = make_plan(source, samples, method=method)
    require_known(exclude, plan)
    return write_plan(plan, source, target, dict.fromkeys(exclude, "excluded"))


def make_plan(source: Path, samples: Sequence[Arrays], *, method: Method = "auto") -> Plan:
    """Find out what can be brought to 8 bits, and what that costs each node.

    Args:
        source: An ONNX file in 32 bits.
        samples: Real inputs.
        method: As for `write_int8`.

    Raises:
        QuantizeError: There is nothing to bring to 8 bits, or no sample.
    """
    if method not in METHODS:
        raise QuantizeError(f"There is no method '{method}'. Methods: {', '.join(METHODS)}.")
    if not samples:
        raise QuantizeError(
            "There are no samples to take the ranges of values from. Give real inputs, 32 images or more."
        )
    graph = Graph.read(source)
    convolved, multiplied = int8_conv.multiplications(graph)
    if convolved > multiplied and method != "dynamic":
        return ConvPlan(graph, samples)
    return MatMulPlan(graph, samples, method)


def write_plan(plan: Plan, source: Path, target: Path, exclude: dict[str, str]) -> Int8:
    """Write the model of a plan.

    Args:
        plan: What can be brought to 8 bits.
        source: The file in 32 bits.
        target: The file to write.
        exclude: Why a node stays in 32 bits, by its name.
    """
    names = tuple(name for name in plan.errors if name not in exclude)
    model = plan.build(names)
    onnx.save(model, target)
    kept = plan.kept | exclude
    return Int8(plan.method, names, kept, plan.errors, _bytes(target), _bytes(source))


class MatMulPlan:
    """For models whose work is in products of matrices.

    Attributes:
        method: `dynamic` or `static`.
        kept: Why a node stays in 32 bits, by its name.
        errors: Of each node that can be in 8 bits, the error of its output.
    """

    method: str
    kept: dict[str, str]
    errors: dict[str, float]

    def __init__(self, graph: Graph, samples: Sequence[Arrays], method: Method) -> None:
        """Rewrite the graph for the CPU, and measure it.

        Args:
            graph: In 32 bits.
            samples: Real inputs.
            method: As for `write_int8`.
        """
        self.method = "dynamic" if method == "auto" else method
        self.graph = _fused(graph, samples[0])
        head = _head(self.graph)
        found = int8_matmul.layers(self.graph)
        self.kept = {layer.name: "head" for layer in found if layer.removed[0] in head}
        self.layers = [layer for layer in found if layer.name not in self.kept]
        if not self.layers:
            raise QuantizeError(
                "The model has no product with a constant matrix outside of its head, so there is nothing to bring "
                "to 8 bits by this method. Leave the method to 'auto', or ship fp32."
            )
        self._smooth(int8_matmul.extents(self.graph, self.layers, samples), samples)

    def build(self, names: Collection[str]) -> onnx.ModelProto:
        """Return the model with these nodes in 8 bits.

        Args:
            names: Of nodes.
        """
        return int8_matmul.replace(self.graph, self.layers, self._known, names).finish()

    def _smooth(self, known: dict[str, Extent], samples: Sequence[Arrays]) -> None:
        """Move large channels into the weights where that helps."""
        candidates = norms(self.graph, self.layers)
        before = self._errors(self.graph, known, samples)
        self.errors, self._known = before, self._fixed(known)
        if not candidates:
            return
        after = self._errors(*smooth(self.graph, candidates, known), samples)
        chosen = {
            output: fed
            for output, fed in candidates.items()
            if sum(after[layer.name] for layer in fed)
            < _GAIN * sum(before[layer.name] for layer in fed)
        }
        self.graph, known = smooth(self.graph, chosen, known)
        self.layers = self._found(self.graph)
        self._known = self._fixed(known)
        better = {layer.name for fed in chosen.values() for layer in fed}
        self.errors = {name: after[name] if name in better else e for name, e in before.items()}
        _log.info("%d of %d norms were smoothed.", len(chosen), len(candidates))

    def _errors(
        self, graph: Graph, known: dict[str, Extent], samples: Sequence[Arrays]
    ) -> dict[str, float]:
        return int8_matmul.errors(graph, self._found(graph), self._fixed(known), samples[:_FEW])

    def _found(self, graph: Graph) -> list[Layer]:
        return [layer for layer in int8_matmul.layers(graph) if layer.name not in self.kept]

    def _fixed(self, known: dict[str, Extent]) -> dict[str, Extent] | None:
        return known if self.method == "static" else None


class ConvPlan:
    """For models whose work is in convolutions.

    Attributes:
        method: `static`.
        kept: Why a node stays in 32 bits, by its name.
        errors: Of each node that can be in 8 bits, the error of its output.
    """

    method: str
    kept: dict[str, str]
    errors: dict[str, float]

    def __init__(self, graph: Graph, samples: Sequence[Arrays]) -> None:
        """Measure a graph.

        Args:
            graph: In 32 bits.
            samples: Real inputs.
        """
        self.method = "static"
        self.graph = graph
        head = _head(graph)
        found = int8_conv.convolutions(graph)
        self.kept = {node.name: "head" for node in found if node.output[0] in head}
        self.nodes = [node for node in found if node.name not in self.kept]
        if not self.nodes:
            raise QuantizeError(
                "All convolutions of the model belong to its head, so there is nothing to bring to 8 bits. Ship fp32."
            )
        self._known = int8_conv.extents(graph, self.nodes, samples)
        self.errors = int8_conv.errors(graph, self.nodes, self._known, samples[:_FEW])

    def build(self, names: Collection[str]) -> onnx.ModelProto:
        """Return the model with these nodes in 8 bits.

        Args:
            names: Of nodes.
        """
        return int8_conv.replace(self.graph, self.nodes, self._known, names).finish()


def _fused(graph: Graph, sample: Arrays) -> Graph:
    """The graph for the CPU's kernels, or as it was if that changes an answer."""
    plain = graph.finish()
    num_attentions, num_smaller = fuse(graph)
    difference = largest_difference(plain, graph.finish(), sample)
    if difference > _MAX_CHANGE:
        _log.warning(
            "The graph rewritten for the CPU answers differently by %.1e, so it stays as it was.",
            difference,
        )
        return Graph(plain)
    _log.info("%d attentions fused, %d nodes with one token.", num_attentions, num_smaller)
    return graph


def _head(graph: Graph) -> set[str]:
    """First outputs of the nodes after the backbone.

    They use a head's constants or what was made with them, or no constant of the backbone comes after them.
    """
    from_head: set[str] = set()
    for node in graph.nodes:
        own = any(_belongs(graph, name, "head") for name in node.input)
        if own or from_head.intersection(node.input):
            from_head.update(node.output)
    to_backbone: set[str] = set()
    for node in reversed(graph.nodes):
        own = any(_belongs(graph, name, "backbone") for name in node.input)
        if own or to_backbone.intersection(node.output):
            to_backbone.update((*node.input, *node.output))
    outputs = {node.output[0] for node in graph.nodes}
    after = outputs - to_backbone if to_backbone else set()
    return (outputs & from_head) | after | set(graph.outputs)


def _belongs(graph: Graph, name: str, part: str) -> bool:
    """Whether a constant is one of a part of the model; constants keep the names of torch's parameters."""
    return part in name.split(".") and graph.constant(name) is not None


def require_known(exclude: Collection[str], plan: Plan) -> None:
    """Refuse names of nodes that the model does not have.

    Args:
        exclude: Names of nodes.
        plan: Of the model.

    Raises:
        QuantizeError: With the names there are.
    """
    known = [*plan.errors, *plan.kept]
    for name in exclude:
        if name not in known:
            hint = suggest(name, known)
            raise QuantizeError(
                f"There is no node '{name}' to keep in 32 bits.{hint} Nodes: {', '.join(known)}."
            )


def _bytes(path: Path) -> int:
    sidecar = path.with_name(path.name + ".data")
    return sum(one.stat().st_size for one in (path, sidecar) if one.exists())

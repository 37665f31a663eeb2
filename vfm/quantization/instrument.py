"""Instrumented graphs: ranges of tensors and errors of nodes, measured while a graph runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from vfm_runtime.tasks.base import Arrays

from vfm.quantization.graph import Array, Graph

TINY = 1e-12
"""Least step, of a tensor that is 0 throughout."""


class Probe:
    """A copy of a graph to which nodes are added that measure something.

    Attributes:
        graph: The copy.
    """

    graph: Graph

    def __init__(self, graph: Graph) -> None:
        """Copy a graph, which is not changed."""
        self.graph = Graph(graph.finish())
        self._outputs: list[str] = []
        self._count = 0

    def add_constant(self, value: Array) -> str:
        """Add a constant and return its name."""
        return self.graph.add_constant("probe.constant", value)

    def add_node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node and return the name of its output."""
        self._count += 1
        name = f"probe.{self._count}"
        self.graph.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def add_output(self, tensor: str) -> None:
        """Let `run` answer a tensor too."""
        self._outputs.append(tensor)

    def add_errors(self, pairs: Mapping[str, str]) -> None:
        """Let `measure_errors` compare tensors with those that they are to be like.

        Args:
            pairs: Names of exact tensors by the names of inexact ones.
        """
        for inexact, exact in pairs.items():
            for tensor in (self.add_node("Sub", [exact, inexact]), exact):
                self.add_output(self.add_node("ReduceSumSquare", [tensor], keepdims=0))

    def finish(self) -> onnx.ModelProto:
        """Return the graph as a model that answers what was added."""
        return self.graph.finish(self._outputs)

    def run(
        self, samples: Sequence[Arrays], model: onnx.ModelProto | None = None
    ) -> Iterator[list[Array]]:
        """Run the graph, and answer for each sample the outputs in the order in which they were added.

        Args:
            samples: Inputs of the graph, batch by batch.
            model: What was made of `finish`, if it is to run in the graph's stead.
        """
        if not self._outputs:
            return
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(
            (model or self.finish()).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        for sample in samples:
            yield session.run(self._outputs, sample)

    def measure_errors(
        self, samples: Sequence[Arrays], model: onnx.ModelProto | None = None
    ) -> list[float]:
        """Return the norm of each difference of `add_errors` over the norm of the exact tensor, over all samples."""
        total = sum(np.array(answers, np.float64) for answers in self.run(samples, model))
        noise, power = np.reshape(total, (-1, 2)).T
        errors: list[float] = np.sqrt(noise / np.maximum(power, TINY)).tolist()
        return errors

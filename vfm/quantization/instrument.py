"""Running a graph for what happens inside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper
from vfm_runtime.tasks.base import Arrays

from vfm.quantization.graph import Array, Graph


class Probe:
    """A copy of a graph to which nodes are added that measure something.

    Attributes:
        graph: The copy.
    """

    graph: Graph

    def __init__(self, graph: Graph) -> None:
        """Copy a graph.

        Args:
            graph: It is not changed.
        """
        self.graph = Graph(graph.finish())
        self._answers: list[str] = []
        self._count = 0

    def constant(self, value: Array) -> str:
        """Add a constant and return its name.

        Args:
            value: Its value.
        """
        return self.graph.add("probe.constant", value)

    def node(self, op: str, inputs: Sequence[str], **attributes: Any) -> str:
        """Add a node and return the name of its output.

        Args:
            op: Its operator.
            inputs: Names of tensors.
            attributes: Of the operator.
        """
        self._count += 1
        name = f"probe.{self._count}"
        self.graph.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def answer(self, name: str) -> None:
        """Let `run` answer a tensor.

        Args:
            name: Of the tensor.
        """
        self._answers.append(name)

    def run(self, samples: Sequence[Arrays]) -> Iterator[list[Array]]:
        """Run the graph, and answer for each sample the tensors in the order in which they were named.

        Args:
            samples: Inputs of the graph.
        """
        if not self._answers:
            return
        session = open_graph(self.graph.finish(self._answers))
        for sample in samples:
            yield session.run(self._answers, sample)


def open_graph(model: onnx.ModelProto) -> Any:
    """Load a model on the CPU, from memory.

    Args:
        model: The model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def largest_difference(first: onnx.ModelProto, second: onnx.ModelProto, sample: Arrays) -> float:
    """Return the largest difference of two models' answers.

    Args:
        first: A model.
        second: Another with the same inputs and outputs.
        sample: What both are run on.
    """
    answers = [open_graph(model).run(None, sample) for model in (first, second)]
    pairs = zip(*answers, strict=True)
    return max(float(np.abs(a.astype(np.float64) - b).max(initial=0)) for a, b in pairs)

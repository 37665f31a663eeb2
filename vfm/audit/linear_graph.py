"""Patch contributions from a bundle: its graph, where a linear layer reads the mean over the places of a map."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

from vfm.audit.attribution import Map
from vfm.audit.source import AuditError

_PASSING = frozenset({"Reshape", "Flatten", "Squeeze", "Identity", "Cast", "Dropout"})
_POOLING = frozenset({"ReduceMean", "GlobalAveragePool"})
_TOLERANCE = 1e-3


class LinearGraph(NamedTuple):
    """The end of a graph: logits = ((mean of a map - center) / norm) @ weight.T + bias."""

    session: Any
    """Gives the map [N, D, h, w], the logits [N, C], and the norm where there is one."""
    weight: NDArray[np.float32]
    """[C, D]."""
    bias: NDArray[np.float32]
    """[C]."""
    center: NDArray[np.float32] | None
    """[D]; None where features are not centered."""

    def split_logit(self, pixels: NDArray[np.uint8], label: int) -> Map:
        """Return what each place adds to a logit, as `vfm.audit.attribution.split_logit` does.

        Args:
            pixels: Picture at the model's size, uint8 [1, H, W, 3].
            label: Index of the label.

        Raises:
            AuditError: The parts do not sum to the logit, so that the graph ends in another way than it seemed.
        """
        features, logits, *norms = self.session.run(None, {"pixels": pixels})
        values = features[0].transpose(1, 2, 0)
        if self.center is not None:
            values = values - self.center
        weight = self.weight[label] / (norms[0].reshape(-1)[0] if norms else 1.0)
        parts: Map = np.asarray(values @ weight / (values.shape[0] * values.shape[1]), np.float32)
        error = abs(float(parts.sum() + self.bias[label] - logits[0, label]))
        if error > _TOLERANCE * max(1.0, float(np.abs(logits).max())):
            raise AuditError(
                f"The patch contributions of the bundle miss its logit by {error:.3g}, so its graph ends in another "
                "way than a linear layer on a mean. Audit the checkpoint, or leave --explain out."
            )
        return parts


def open_linear_graph(path: Path) -> LinearGraph | None:
    """Find a linear layer on pooled features at the end of a graph; None where it ends in another way.

    Args:
        path: The file `model.onnx` of a bundle.
    """
    model = onnx.load(path)
    constants = {each.name: each for each in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    node = producers.get("scores")
    while node is not None and node.op_type in ("Softmax", "Cast", "Identity"):
        node = producers.get(node.input[0])
    if node is None or node.op_type != "Gemm" or not {*node.input[1:]} <= constants.keys():
        return None
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    weight, bias = (numpy_helper.to_array(constants[name]) for name in node.input[1:3])
    outputs, center = [node.output[0]], None
    node = producers.get(node.input[0])
    while node is not None and node.op_type not in _POOLING:
        if node.op_type == "Div" and len(outputs) == 1:
            outputs.append(node.input[1])
        elif node.op_type == "Sub" and center is None and node.input[1] in constants:
            center = numpy_helper.to_array(constants[node.input[1]])
        elif node.op_type not in _PASSING:
            return None
        node = producers.get(node.input[0])
    if node is None:
        return None
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_empty_tensor_value_info(name) for name in (node.input[0], *outputs)
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    if len(session.get_outputs()[0].shape) != 4:
        return None
    return LinearGraph(session, weight if attributes.get("transB") else weight.T, bias, center)

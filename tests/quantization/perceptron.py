"""A model of three layers, how to run it, and how to write it with all nodes in 8 bits that can be."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from vfm.quantization.int8 import plan_int8


def run(model, inputs):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    given = str(model) if not isinstance(model, onnx.ModelProto) else model.SerializeToString()
    session = onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def perceptron(path, seed=0, scale=1.0):
    """x [N, 8] to a norm, two products and a head; the head's weight has the name that torch gives it."""
    random = np.random.default_rng(seed)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    first = normal(8, 16)
    first[:, 0] *= scale
    constants = {
        **{"gain": normal(8), "shift": normal(8), "first": first, "bias": normal(16)},
        **{"second": normal(16, 8), "heads.0.head.weight": normal(8, 3)},
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gain", "shift"], ["normed"], "norm"),
        helper.make_node("MatMul", ["normed", "first"], ["product"], "one"),
        helper.make_node("Add", ["product", "bias"], ["wide"], "added"),
        helper.make_node("Relu", ["wide"], ["active"], "relu"),
        helper.make_node("MatMul", ["active", "second"], ["narrow"], "two"),
        helper.make_node("MatMul", ["narrow", "heads.0.head.weight"], ["y"], "three"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    return path


def rows(count=64, seed=1):
    return {"x": np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)}


def write_int8(source, target, samples):
    plan = plan_int8(source, samples)
    onnx.save(plan.build(plan.errors), target)
    return plan

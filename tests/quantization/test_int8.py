"""Bundles in 16 and 8 bits: the same answers but for a little, on any CPU, within a budget."""

import logging
import math

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from vfm_runtime.bundle.contract import METADATA_KEY
from vfm_runtime.media.image import open_image

from tests.quantization.perceptron import perceptron, rows, run, write_int8
from vfm.quantization import graph as graph_module, int8_conv
from vfm.quantization.fp16 import write_fp16
from vfm.quantization.graph import Graph, QuantizeError
from vfm.quantization.int8 import plan_int8
from vfm.quantization.int8_matmul import find_matmuls, measure_errors
from vfm.quantization.smoothquant import smooth

pytestmark = pytest.mark.slow

MODELS = ("test_vit", "davit_tiny", "test_efficientnet")
all_models = pytest.mark.parametrize("exported", MODELS, indirect=True)
vit = pytest.mark.parametrize("exported", ["test_vit"], indirect=True)
net = pytest.mark.parametrize("exported", ["test_efficientnet"], indirect=True)


def operators(path):
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.fixture
def source(exported):
    return exported.folder / "model.onnx"


@pytest.fixture
def pixels(exported, paths):
    return np.stack([exported.task.preprocess.resize(open_image(path))[0] for path in paths])


@pytest.fixture
def samples(pixels):
    return [{"pixels": pixels[i : i + 6]} for i in range(0, 24, 6)]


@pytest.fixture
def target(tmp_path):
    return tmp_path / "small.onnx"


@all_models
def test_half_answers_nearly_alike(source, pixels, target):
    write_fp16(source, target)
    before, after = run(source, {"pixels": pixels})[0], run(target, {"pixels": pixels})[0]
    assert after.dtype == np.float32
    assert 0 < np.abs(before - after).max() < 0.01
    model = onnx.load(target)
    kinds = {i.data_type for i in model.graph.initializer if math.prod(i.dims) > 5000}
    assert kinds == {TensorProto.FLOAT16}
    assert model.metadata_props[0].key == METADATA_KEY
    assert target.stat().st_size < 0.7 * source.stat().st_size


@vit
def test_half_keeps_softmax_norms_and_the_head_in_32_bits(source, target):
    write_fp16(source, target)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(target)).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}
    by_op = {}
    for node in inferred.node:
        by_op.setdefault(node.op_type, set()).add(kinds[node.output[0]])
    assert by_op["Softmax"] == by_op["LayerNormalization"] == by_op["Gemm"] == {TensorProto.FLOAT}
    assert by_op["Gelu"] == by_op["Conv"] == {TensorProto.FLOAT16}
    assert by_op["MatMul"] == {TensorProto.FLOAT, TensorProto.FLOAT16}


def test_half_refuses_weights_beyond_its_range(tmp_path, target):
    with pytest.raises(
        QuantizeError, match=r"weight 'first' reaches .*e\+06; 16 bits hold at most 65504"
    ):
        write_fp16(perceptron(tmp_path / "m.onnx", scale=1e6), target)
    assert not target.exists()


@all_models
def test_int8_answers_nearly_alike(exported, source, pixels, samples, target):
    plan = write_int8(source, target, samples)
    before, after = run(source, {"pixels": pixels})[0], run(target, {"pixels": pixels})[0]
    assert 1e-6 < np.abs(before - after).mean() < 0.02
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.9
    assert plan.method == ("dynamic" if "vit" in exported.task.backbone.name else "static")
    assert max(plan.errors.values()) < 0.06
    assert target.stat().st_size < 0.6 * source.stat().st_size
    model = onnx.load(target)
    assert model.metadata_props == onnx.load(source).metadata_props
    assert not {node.op_type for node in model.graph.node} & {"Einsum", "Constant"}


@vit
def test_patches_and_head_stay_in_32_bits(source, samples, target):
    plan = write_int8(source, target, samples)
    found, before = operators(target), operators(source)
    assert found.count("Conv") == before.count("Conv") == 1
    assert found.count("MatMulInteger") == len(plan.errors)
    # Scores and values of every attention, and the head, whose Gemm the quantizer writes as a product.
    assert found.count("MatMul") == 2 * before.count("Softmax") - 2 + before.count("Gemm")


@net
def test_convolutions_stay_in_8_bits_from_one_to_the_next(source, samples, target, tmp_path):
    plan = write_int8(source, target, samples)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
    found = operators(tmp_path / "optimised.onnx")
    assert found.count("QLinearConv") == len(plan.errors) == operators(source).count("Conv")
    assert "Conv" not in found
    assert found.count("QuantizeLinear") <= 1 + operators(source).count("ReduceMean")


def test_no_pair_of_a_convolution_can_saturate_in_either_order():
    weight = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32)
    weight[0, :2] = weight[0, :, 0, :2] = 3.0  # the worst: two large neighbours of one sign
    bits, step = int8_conv.quantize_weight(weight)
    assert np.abs(bits * step[:, None, None, None] - weight).max() <= 0.501 * step.max()
    # Neighbours of one sign or lone weights: the range is used as far as it goes.
    assert np.abs(bits).max() > 60
    for order in (bits, np.moveaxis(bits, 1, -1)):
        flat = order.reshape(6, -1, 2).astype(int)
        for sign in (1, -1):
            assert (255 * np.maximum(sign * flat, 0).sum(-1)).max() < 2**15


def test_a_channel_without_weights_keeps_its_bias(tmp_path, target):
    random = np.random.default_rng(0)
    weight = random.standard_normal((4, 3, 3, 3)).astype(np.float32)
    weight[1], weight[2] = 0, 1e-12  # as training leaves them, behind a norm
    bias = np.array([0.1, 3, -5, 0], np.float32)
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 20]>
        m (float[n, 3, 8, 8] x) => (float[n, 4] y) {
            wide = Conv<pads = [1, 1, 1, 1]>(x, w, b)
            axes = Constant<value_ints = [2, 3]>()
            y = ReduceMean<keepdims = 0>(wide, axes)
        }""")
    for name, values in (("w", weight), ("b", bias)):
        model.graph.initializer.append(numpy_helper.from_array(values, name))
    model.graph.node[0].name = "conv"
    onnx.save(model, tmp_path / "m.onnx")
    inputs = {"x": random.standard_normal((4, 3, 8, 8)).astype(np.float32)}
    write_int8(tmp_path / "m.onnx", target, [inputs])
    expected, found = run(tmp_path / "m.onnx", inputs)[0], run(target, inputs)[0]
    assert np.abs(found - expected).max() < 0.1
    np.testing.assert_allclose(found[:, 1:3], [[3, -5]] * 4, atol=0.1)


def test_smoothing_keeps_the_answers_and_lowers_the_error(tmp_path):
    graph = Graph.read(perceptron(tmp_path / "m.onnx"))
    gain = graph.get_constant("gain").copy()
    gain[2] = 60  # one channel far above the others
    graph._constants["gain"] = gain
    expected = run(graph.finish(), rows())[0]
    before = measure_errors(graph, find_matmuls(graph), [rows()])
    assert smooth(graph, [rows(seed=1), rows(seed=2)]) == 1
    np.testing.assert_allclose(run(graph.finish(), rows())[0], expected, rtol=1e-4, atol=1e-3)
    after = measure_errors(graph, find_matmuls(graph), [rows()])
    assert after["one"] < 0.5 * before["one"]
    assert after["two"] == pytest.approx(before["two"], rel=0.01)


def test_norms_that_feed_more_than_products_are_not_smoothed(tmp_path):
    model = onnx.load(perceptron(tmp_path / "m.onnx"))
    assert smooth(Graph(model), [rows()]) == 1
    model = onnx.load(tmp_path / "m.onnx")
    model.graph.node.append(helper.make_node("Relu", ["normed"], ["z"], "other"))
    model.graph.output.append(onnx.ValueInfoProto(name="z"))
    assert smooth(Graph(model), [rows()]) == 0


def test_error_of_a_product_is_that_of_its_output(tmp_path, target):
    source = perceptron(tmp_path / "m.onnx")
    plan = plan_int8(source, [rows()])
    assert plan.in_32_bits == {"three": "head"}
    graph = Graph.read(source)
    expected = run(graph.finish(["product"]), rows())[1]
    model = plan.build(["one"])
    assert [n.op_type for n in model.graph.node].count("MatMulInteger") == 1
    model.graph.output.append(onnx.ValueInfoProto(name="product"))
    measured = np.linalg.norm(run(model, rows())[1] - expected) / np.linalg.norm(expected)
    assert plan.errors["one"] == pytest.approx(measured, rel=1e-3)


def test_no_sum_of_products_can_saturate(tmp_path, target):
    write_int8(perceptron(tmp_path / "m.onnx"), target, [rows()])
    constants = {c.name: numpy_helper.to_array(c) for c in onnx.load(target).graph.initializer}
    weights = [value for value in constants.values() if value.dtype == np.int8 and value.ndim == 2]
    assert len(weights) == 2
    # CPUs without VNNI add two products of a value, 0 to 255, and a weight in 16 bits.
    assert all(60 < np.abs(weight.astype(int)).max() <= 64 for weight in weights)
    assert 2 * 255 * 64 < 2**15


def test_the_quantizer_of_onnx_runtime_warns_of_nothing(tmp_path, target, caplog):
    write_int8(perceptron(tmp_path / "m.onnx"), target, [rows()])
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_errors_say_what_to_do(tmp_path, target):
    source = perceptron(tmp_path / "m.onnx")
    with pytest.raises(QuantizeError, match="There are no samples"):
        write_int8(source, target, [])
    with pytest.raises(QuantizeError, match=r"There is no file .*Export the bundle first"):
        write_fp16(tmp_path / "none.onnx", target)
    model = onnx.load(source)
    for node in model.graph.node:
        node.input[:] = [f"head.{n}" if n in ("first", "second") else n for n in node.input]
    for constant in model.graph.initializer:
        if constant.name in ("first", "second"):
            constant.name = f"head.{constant.name}"
    onnx.save(model, source)
    with pytest.raises(
        QuantizeError, match=r"All products with constant matrices .* belong to its head"
    ):
        write_int8(source, target, [rows()])


def test_more_than_two_gigabytes_are_refused(tmp_path, target, monkeypatch):
    monkeypatch.setattr(graph_module, "MAX_PROTOBUF", 500)
    source = perceptron(tmp_path / "m.onnx")
    for write in (lambda: write_fp16(source, target), lambda: write_int8(source, target, [rows()])):
        with pytest.raises(QuantizeError, match="GB of weights; fp16 and int8 are made of at most"):
            write()

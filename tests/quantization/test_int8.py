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

from tests.quantization.perceptron import perceptron, rows, run
from vfm.quantization import graph as graph_module, int8, int8_conv, int8_matmul
from vfm.quantization.fp16 import write_fp16
from vfm.quantization.fuse_attention import drop_unused_tokens, fuse, fuse_attention
from vfm.quantization.graph import MICROSOFT, Graph, QuantizeError
from vfm.quantization.int8 import write_int8
from vfm.quantization.int8_matmul import extents, layers
from vfm.quantization.smoothquant import norms, smooth

pytestmark = pytest.mark.slow

VIT = ("test_vit", "davit_tiny")
all_models = pytest.mark.parametrize("exported", [*VIT, "test_efficientnet"], indirect=True)
transformers = pytest.mark.parametrize("exported", VIT, indirect=True)
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
@pytest.mark.parametrize("method", ["auto", "static"])
def test_int8_answers_nearly_alike(exported, source, pixels, samples, target, method):
    done = write_int8(source, target, samples, method=method)
    before, after = run(source, {"pixels": pixels})[0], run(target, {"pixels": pixels})[0]
    assert 1e-6 < np.abs(before - after).mean() < 0.02
    assert (before.argmax(1) == after.argmax(1)).mean() > 0.9
    assert done.method == (
        "dynamic" if method == "auto" and "vit" in exported.task.backbone.name else "static"
    )
    assert set(done.errors) == set(done.quantised)
    assert max(done.errors.values()) < 0.06
    assert done.num_bytes == target.stat().st_size < 0.5 * source.stat().st_size
    model = onnx.load(target)
    assert model.metadata_props == onnx.load(source).metadata_props
    assert not {node.op_type for node in model.graph.node} & {"Einsum", "Constant"}


@vit
def test_patches_and_head_stay_in_32_bits(source, samples, target):
    done = write_int8(source, target, samples)
    found = operators(target)
    assert found.count("Conv") == found.count("Gemm") == 1
    assert found.count("MultiHeadAttention") == operators(source).count("Softmax") - 1
    assert list(done.kept.values()) == ["head"]
    assert "MatMul" not in found


@vit
def test_static_answers_do_not_depend_on_the_batch(source, pixels, samples, target):
    differences = {}
    for method in ("static", "dynamic"):
        write_int8(source, target, samples, method=method)
        alone = np.concatenate([run(target, {"pixels": one[None]})[0] for one in pixels])
        differences[method] = np.abs(alone - run(target, {"pixels": pixels})[0]).max()
    assert differences["static"] < 1e-5 < differences["dynamic"]


@net
def test_convolutions_stay_in_8_bits_from_one_to_the_next(source, samples, target, tmp_path):
    done = write_int8(source, target, samples)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(target), options, providers=["CPUExecutionProvider"])
    found = operators(tmp_path / "optimised.onnx")
    assert found.count("QLinearConv") == len(done.quantised) == operators(source).count("Conv")
    assert "Conv" not in found
    assert found.count("QuantizeLinear") <= 1 + operators(source).count("ReduceMean")


@transformers
def test_fused_graph_answers_alike(source, pixels):
    graph = Graph.read(source)
    num_attentions, _ = fuse(graph)
    assert num_attentions >= 4
    model = graph.finish()
    assert {o.domain for o in model.opset_import} == {"", MICROSOFT}
    before, after = run(source, {"pixels": pixels})[0], run(model, {"pixels": pixels})[0]
    assert np.abs(before - after).max() < 1e-5


def token_model(tokens=5):
    """Two blocks of a residual stream [n, 5, 4], judged by the second token."""
    random = np.random.default_rng(0)
    weights = {name: random.standard_normal((4, 4)).astype(np.float32) for name in "abc"}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["one"], "one"),
        helper.make_node("MatMul", ["one", "b"], ["two"], "two"),
        helper.make_node("Softmax", ["one"], ["mixed"], "mixed", axis=1),
        helper.make_node("Add", ["two", "mixed"], ["three"], "three"),
        helper.make_node("MatMul", ["three", "c"], ["four"], "four"),
        helper.make_node("Gather", ["four", "token"], ["y"], "five", axis=1),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array(1), "token"))
    shape = ["n", tokens, 4]
    between = ("one", "two", "mixed", "three", "four")
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        constants,
        value_info=[helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in between],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_tokens_that_nothing_uses_are_dropped_up_to_what_mixes_them():
    graph = Graph(token_model())
    assert (
        drop_unused_tokens(graph) == 3
    )  # two, three, four; the softmax over tokens needs them all
    x = {"x": np.random.default_rng(1).standard_normal((2, 5, 4)).astype(np.float32)}
    np.testing.assert_allclose(run(graph.finish(), x)[0], run(token_model(), x)[0], atol=1e-6)
    gathers = [node.input[0] for node in graph.nodes if node.op_type == "Gather"]
    assert sorted(gathers) == ["mixed", "one"]
    assert drop_unused_tokens(graph) == 0


def test_attention_with_a_mask_is_left_alone():
    nodes = [
        helper.make_node("MatMul", ["q", "k"], ["scores"]),
        helper.make_node("Add", ["scores", "mask"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["shares"]),
        helper.make_node("MatMul", ["shares", "v"], ["y"]),
    ]
    names = ("q", "k", "v", "mask")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 4, 4]) for n in names]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, 4, 4])
    graph = Graph(helper.make_model(helper.make_graph(nodes, "g", values, [output])))
    assert fuse_attention(graph) == 0
    assert len(graph.nodes) == 4


@pytest.mark.parametrize("shape", [(64, 32), (7, 5), (1, 3)])
def test_no_pair_of_products_can_saturate(shape):
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    weight[:2, 0] = 3.0  # the worst: two large neighbours of one sign
    bits, step = int8_matmul.quantised(weight)
    assert np.abs(bits * step - weight).max() <= 0.501 * step.max()
    padded = np.pad(bits.astype(int), ((0, shape[0] % 2), (0, 0))).reshape(-1, 2, shape[1])
    for sign in (1, -1):
        assert (255 * np.maximum(sign * padded, 0).sum(1)).max() < 2**15
    # Neighbours of one sign or lone weights: the range is used as far as it goes.
    assert np.abs(bits).max() > 60


def test_no_pair_of_a_convolution_can_saturate_in_either_order():
    weight = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32)
    bits, _ = int8_conv.quantised(weight)
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
    write_int8(tmp_path / "m.onnx", target, [inputs], method="static")
    expected, found = run(tmp_path / "m.onnx", inputs)[0], run(target, inputs)[0]
    assert np.abs(found - expected).max() < 0.1
    np.testing.assert_allclose(found[:, 1:3], [[3, -5]] * 4, atol=0.1)


def test_smoothing_keeps_the_answers_and_lowers_the_error(tmp_path):
    graph = Graph.read(perceptron(tmp_path / "m.onnx"))
    gain = graph.constant("gain").copy()
    gain[2] = 60  # one channel far above the others
    graph._constants["gain"] = gain
    found = layers(graph)
    known = extents(graph, found, [rows()])
    chosen = norms(graph, found)
    assert {name: [layer.name for layer in fed] for name, fed in chosen.items()} == {
        "normed": ["one"]
    }
    after, narrower = smooth(graph, chosen, known)
    expected, given = run(graph.finish(), rows())[0], run(after.finish(), rows())[0]
    np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-3)
    again = extents(after, layers(after), [rows()])["normed"]
    np.testing.assert_allclose(narrower["normed"].high, again.high, rtol=1e-4)
    before = int8_matmul.errors(graph, found, known, [rows()])["one"]
    assert int8_matmul.errors(after, layers(after), narrower, [rows()])["one"] < 0.5 * before


def test_error_of_a_layer_is_that_of_its_output(tmp_path, target):
    source = perceptron(tmp_path / "m.onnx")
    done = write_int8(source, target, [rows()], exclude=["two"], method="dynamic")
    assert done.kept == {"three": "head", "two": "excluded"}
    assert done.quantised == ("one",)
    graph = Graph.read(source)
    expected = run(graph.finish(["wide"]), rows())[1]
    model = onnx.load(target)
    model.graph.output.append(onnx.ValueInfoProto(name="wide"))
    given = run(model, rows())[1]
    measured = np.linalg.norm(given - expected) / np.linalg.norm(expected)
    assert done.errors["one"] == pytest.approx(measured, rel=1e-3)


def test_errors_say_what_to_do(tmp_path, target):
    source = perceptron(tmp_path / "m.onnx")
    with pytest.raises(QuantizeError, match=r"There is no node 'tow' .*Did you mean 'two'\?"):
        write_int8(source, target, [rows()], exclude=["tow"])
    with pytest.raises(
        QuantizeError, match=r"There is no method 'fast'\. Methods: auto, dynamic, static"
    ):
        write_int8(source, target, [rows()], method="fast")
    with pytest.raises(QuantizeError, match="There are no samples"):
        write_int8(source, target, [])
    with pytest.raises(QuantizeError, match=r"There is no file .*Export the bundle first"):
        write_fp16(tmp_path / "none.onnx", target)


@net
def test_dynamic_has_nothing_to_do_in_a_convolutional_net(source, samples, target):
    with pytest.raises(
        QuantizeError, match=r"no product with a constant matrix .* Leave the method"
    ):
        write_int8(source, target, samples, method="dynamic")


def test_more_than_two_gigabytes_are_refused(tmp_path, target, monkeypatch):
    monkeypatch.setattr(graph_module, "MAX_PROTOBUF", 500)
    source = perceptron(tmp_path / "m.onnx")
    for write in (lambda: write_fp16(source, target), lambda: write_int8(source, target, [rows()])):
        with pytest.raises(QuantizeError, match="GB of weights; fp16 and int8 are made of at most"):
            write()


def test_a_rewriting_that_changes_answers_is_undone(tmp_path, target, monkeypatch, caplog):
    def spoil(graph):
        graph._constants["shift"] = graph.constant("shift") + 1
        return 0, 0

    monkeypatch.setattr(int8, "fuse", spoil)
    source = perceptron(tmp_path / "m.onnx")
    with caplog.at_level(logging.WARNING):
        write_int8(source, target, [rows()])
    assert "answers differently" in caplog.text
    assert np.abs(run(source, rows())[0] - run(target, rows())[0]).max() < 3

"""Eight bits that lose no more of a metric than is allowed."""

import math

import numpy as np
import onnx
import pytest

from tests.quantization.perceptron import perceptron, rows, run, write_int8
from vfm.quantization.graph import QuantizeError
from vfm.quantization.int8 import Int8Plan
from vfm.quantization.search import BudgetError, is_within, quantize_within_budget


@pytest.fixture
def target(tmp_path):
    return tmp_path / "small.onnx"


class Meter:
    """A metric that loses 2 points with every node in 8 bits."""

    def __init__(self):
        self.paths = []

    def __call__(self, path):
        assert np.isfinite(run(path, rows())[0]).all()
        self.paths.append(path)
        ops = [node.op_type for node in onnx.load(path).graph.node]
        return 1 - 0.02 * ops.count("MatMulInteger")


def test_budget_that_is_met_at_once(tmp_path, target):
    source = perceptron(tmp_path / "m.onnx")
    meter = Meter()
    done = quantize_within_budget(source, target, [rows()], meter, max_drop=4.1)
    assert meter.paths == [source, target]
    assert done == {
        **{"method": "dynamic", "num_quantised": 2, "kept": {"three": "head"}},
        **{"bytes": target.stat().st_size, "source_bytes": source.stat().st_size},
        **{"metric_before": 1.0, "metric_after": 0.96, "max_drop": 4.1},
        **{"drop": pytest.approx(4), "tried": [{"nodes_back": 0, "metric": 0.96}]},
    }


def test_budget_takes_the_worst_back_first(tmp_path, target):
    source = perceptron(tmp_path / "m.onnx")
    errors = write_int8(source, target, [rows()]).errors
    worst = max(errors, key=errors.get)
    done = quantize_within_budget(source, target, [rows()], Meter(), max_drop=2.1)
    assert [tuple(each.values()) for each in done["tried"]] == [(0, 0.96), (1, 0.98)]
    assert done["kept"] == {
        "three": "head",
        worst: f"error {errors[worst]:.4f}, cost too much of the metric",
    }
    assert done["num_quantised"] == 1
    assert Meter()(target) == done["metric_after"] == 0.98


def test_budget_that_cannot_be_met_leaves_no_file(tmp_path, target):
    source = perceptron(tmp_path / "m.onnx")
    message = (
        r"8 bits lose 2\.00 points of the metric \(1\.0000 to 0\.9800\) even with 1 of 2 nodes back in 32 bits; "
        r"at most 0 may be lost\. Allow more with --max_drop"
    )
    with pytest.raises(BudgetError, match=message):
        quantize_within_budget(source, target, [rows()], Meter(), max_drop=0)
    assert not target.exists()


def test_search_finds_the_fewest_nodes(monkeypatch, tmp_path):
    names = [f"n{i}" for i in range(40)]
    back = []

    def build(chosen):
        back.append(40 - len(chosen))
        return onnx.ModelProto()

    errors = {name: 1 / (1 + i) for i, name in enumerate(names)}
    plan = Int8Plan("dynamic", {}, errors, build)
    monkeypatch.setattr("vfm.quantization.search.plan_int8", lambda *_: plan)
    source = tmp_path / "m.onnx"
    source.touch()
    done = quantize_within_budget(
        source,
        tmp_path / "t.onnx",
        [{}],
        lambda path: 0.9 if path == source else 0.8 + 0.01 * min(back[-1], 10),
        max_drop=3.001,
    )
    assert [each["nodes_back"] for each in done["tried"]] == [0, 1, 2, 4, 8, 6, 7]
    assert list(done["kept"]) == names[:7]
    assert back[-1] == 7


def test_errors_say_what_to_do(tmp_path, target):
    source = perceptron(tmp_path / "m.onnx")
    with pytest.raises(QuantizeError, match=r"max_drop is nan\. Give the points that may be lost"):
        quantize_within_budget(source, target, [rows()], lambda _: 1.0, max_drop=math.nan)
    with pytest.raises(QuantizeError, match=r"The metric of .* is nan\. Give data with labels"):
        quantize_within_budget(source, target, [rows()], lambda _: math.nan, max_drop=1)


def test_a_loss_as_large_as_allowed_is_allowed():
    # One of 200 images is half a point, and a little more by the last digit of a float.
    losses = [100 * (k / 200 - (k - 1) / 200) for k in range(100, 201)]
    assert max(losses) > 0.5
    assert all(is_within(loss, 0.5) for loss in losses)
    assert not is_within(0.5001, 0.5)

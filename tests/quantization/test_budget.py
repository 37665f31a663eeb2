"""Eight bits that lose no more of a metric than is allowed."""

import math

import numpy as np
import onnx
import pytest

from tests.quantization.perceptron import perceptron, rows, run
from vfm.quantization import int8
from vfm.quantization.graph import QuantizeError
from vfm.quantization.int8 import write_int8
from vfm.quantization.search import BudgetError, is_within, within_budget


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
        return 1 - 0.02 * ops.count("DynamicQuantizeMatMul")


def test_budget_that_is_met_at_once(tmp_path, target):
    source = perceptron(tmp_path / "m.onnx")
    meter = Meter()
    done = within_budget(source, target, [rows()], meter, max_drop=4.1)
    assert meter.paths == [source, target]
    assert (done.before, done.after, done.tried) == (1.0, 0.96, ((0, 0.96),))
    assert done.int8.quantised == ("one", "two")
    plain = done.to_dict()
    assert plain["kept"] == {"three": "head"}
    assert (plain["metric_before"], plain["max_drop"], plain["num_quantised"]) == (1.0, 4.1, 2)
    assert str(done) == (
        "2 nodes in 8 bits, 1 in 32: metric 1.0000 to 0.9600, 4.00 of at most 4.1 points lost"
    )


def test_budget_takes_the_worst_back_first(tmp_path, target):
    source = perceptron(tmp_path / "m.onnx")
    errors = write_int8(source, target, [rows()]).errors
    worst = max(errors, key=errors.get)
    done = within_budget(source, target, [rows()], Meter(), max_drop=2.1)
    assert done.tried == ((0, 0.96), (1, 0.98))
    assert done.int8.kept[worst] == f"error {errors[worst]:.4f}, cost too much of the metric"
    assert len(done.int8.quantised) == 1
    assert worst not in done.int8.quantised
    assert Meter()(target) == done.after == 0.98


def test_budget_that_cannot_be_met_leaves_no_file(tmp_path, target):
    source = perceptron(tmp_path / "m.onnx")
    message = (
        r"8 bits lose 2\.00 points of the metric \(1\.0000 to 0\.9800\) even with 1 of 2 nodes back in 32 bits; "
        r"at most 0 may be lost\. Allow more with --max_drop"
    )
    with pytest.raises(BudgetError, match=message):
        within_budget(source, target, [rows()], Meter(), max_drop=0)
    assert not target.exists()


def test_search_finds_the_fewest_nodes(monkeypatch, tmp_path):
    class Plan:
        method, kept = "dynamic", {}
        errors = {f"n{i}": 1 / (1 + i) for i in range(40)}  # noqa: RUF012

    written = []

    def write(plan, source, target, back):
        written.append(len(back))
        return int8.Int8("dynamic", (), back, plan.errors, 1, 2)

    monkeypatch.setattr("vfm.quantization.search.make_plan", lambda *_, **__: Plan())
    monkeypatch.setattr("vfm.quantization.search.write_plan", write)
    source = tmp_path / "m.onnx"
    done = within_budget(
        source,
        tmp_path / "t.onnx",
        [{}],
        lambda path: 0.9 if path == source else 0.8 + 0.01 * min(written[-1], 10),
        max_drop=3.001,
    )
    assert [number for number, _ in done.tried] == [0, 1, 2, 4, 8, 6, 7]
    assert list(done.int8.kept) == [f"n{i}" for i in range(7)]


def test_errors_say_what_to_do(tmp_path, target):
    source = perceptron(tmp_path / "m.onnx")
    with pytest.raises(QuantizeError, match=r"max_drop is nan\. Give the points that may be lost"):
        within_budget(source, target, [rows()], lambda _: 1.0, max_drop=math.nan)
    with pytest.raises(QuantizeError, match=r"The metric of .* is nan\. Give data with labels"):
        within_budget(source, target, [rows()], lambda _: math.nan, max_drop=1)


def test_a_loss_as_large_as_allowed_is_allowed():
    # One of 200 images is half a point, and a little more by the last digit of a float.
    losses = [100 * (k / 200 - (k - 1) / 200) for k in range(100, 201)]
    assert max(losses) > 0.5
    assert all(is_within(loss, 0.5) for loss in losses)
    assert not is_within(0.5001, 0.5)

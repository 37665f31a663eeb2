"""Costs of serving: replicas, break-even, and comparison of models."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from vfm.cli import main
from vfm.cost.serving import (
    ServingError,
    ServingTimes,
    compute_own_cost,
    count_replicas,
    describe_load,
    describe_machine,
    find_break_even,
    simulate_latency,
)
from vfm.cost.serving_page import find_pareto, plot_break_even

CONSTANT = ServingTimes([0.01] * 50)


def test_a_queue_that_is_seldom_busy_adds_little():
    assert simulate_latency(CONSTANT, 0.1, 1) == pytest.approx(0.01, abs=1e-3)
    # One server, constant service, 80 % busy: far above the service time; the mean wait is 2 services (M/D/1).
    busy = simulate_latency(CONSTANT, 80, 1)
    assert 0.05 < busy < 0.2
    assert simulate_latency(CONSTANT, 80, 2) < busy / 3


def test_replicas_keep_the_limit_and_the_utilization():
    assert count_replicas(CONSTANT, 100, 1.0, 0.5) == 2
    assert count_replicas(CONSTANT, 80, 1.0, 1.0) == 1
    tight = count_replicas(CONSTANT, 80, 0.012, 1.0)
    assert tight > 1
    assert (
        simulate_latency(CONSTANT, 80, tight) <= 0.012 < simulate_latency(CONSTANT, 80, tight - 1)
    )


@pytest.mark.parametrize(
    ("rate", "p99", "message"),
    [
        (
            10,
            0.005,
            "99 of 100 images take up to 10.0 ms here with nothing else to do, more than --p99 5. Allow more",
        ),
        (
            1e7,
            1,
            "--rps 1e\\+07 takes 200,000 replicas of 100 images/s, more than 10,000. Give a lower rate.",
        ),
    ],
)
def test_services_that_cannot_be_are_refused(rate, p99, message):
    with pytest.raises(ServingError, match=message):
        count_replicas(CONSTANT, rate, p99, 0.5)


def test_own_replicas_pay_from_some_number_of_images():
    # 100 images/s, half of the time, 730 hours: 131.4 million images a month and replica, which costs 73 $.
    assert compute_own_cost(1e6, 100, 0.1, 0.5) == pytest.approx(73)
    assert compute_own_cost(200e6, 100, 0.1, 0.5) == pytest.approx(146)
    assert find_break_even(100, 0.1, 0.5, 0.19) == pytest.approx(73 / 0.19 * 1000)
    assert find_break_even(100, 100, 0.5, 0.19) is None


def test_models_that_another_beats_are_told_apart():
    assert find_pareto([(1, 0.9), (2, 0.95), (2, 0.9), (3, 0.95)]) == [True, True, False, False]


def write_run(folder, name, **changes):
    (folder / name).mkdir()
    metric = {"name": "accuracy", "value": 0.9}
    content = {"bundle": name, "machine": describe_machine(), "metric": metric}
    content |= {"usd_per_million": 2.0, "p50_alone_ms": 5.0} | changes
    (folder / name / "serve.json").write_text(json.dumps(content), encoding="utf-8")
    return str(folder / name)


def test_models_of_one_machine_are_compared(tmp_path, capsys):
    better = {"name": "accuracy", "value": 0.95}
    runs = [write_run(tmp_path, "a"), write_run(tmp_path, "b", metric=better, usd_per_million=1.0)]
    assert main(["cost", "compare", *runs, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["pareto"]) for row in rows] == [("a", False), ("b", True)]
    assert main(["cost", "compare", *runs, "-o", str(tmp_path / "page.html")]) == 0
    out = capsys.readouterr().out
    assert out.index("b  ") < out.index("a  ")
    assert "All measured on one machine: cpu " in (tmp_path / "page.html").read_text(
        encoding="utf-8"
    )


def test_figures_that_do_not_compare_are_refused(tmp_path, capsys):
    a = write_run(tmp_path, "a")
    other = describe_machine() | {"cpu": "abacus"}
    b = write_run(tmp_path, "b", machine=other)
    c = write_run(tmp_path, "c", metric=None)
    d = write_run(tmp_path, "d", metric={"name": "auroc", "value": 0.9})
    for runs, text in (
        ([a, b], "on cpu abacus, cores"),
        ([a, b], "such figures do not compare. Measure both on one machine with vfm cost serve."),
        ([a, c], "states no accuracy. Measure it again with --results"),
        ([a, d], "The accuracies are of different metrics: accuracy, auroc. Give one --metric"),
        ([a], "compares with nothing. Give two or more."),
        ([a, str(tmp_path)], "holds no serve.json. Give folders that vfm cost serve wrote"),
    ):
        assert main(["cost", "compare", *runs]) == 2
        assert text in capsys.readouterr().err


def test_a_busy_machine_is_said(monkeypatch):
    monkeypatch.setattr("vfm.cost.serving.os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert describe_load().startswith("1000 processes wait for ")
    monkeypatch.setattr("vfm.cost.serving.os.getloadavg", lambda: (0.5, 0.0, 0.0))
    assert describe_load() is None


def test_the_break_even_is_drawn():
    api = {"name": "x", "usd_per_1000_images": 0.19, "date": "2026-05-01", "break_even": 384_210.5}
    content = {
        "images_per_second": 100,
        "usd_per_hour": 0.1,
        "utilization": 0.5,
        "rps": 10,
        "apis": [api],
    }
    with Image.open(BytesIO(plot_break_even(content))) as image:
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rps", "0", "--p99", "50"], "--rps is 0.0. Give a number above 0."),
        (
            ["--rps", "1", "--p99", "50", "--utilization", "2"],
            "--utilization is 2.0. Give a number above 0, at most 1.",
        ),
        (
            ["--rps", "1", "--p99", "50", "--results", "no.json"],
            "--results no.json has no results on a test split",
        ),
        (["--rps", "1", "--p99", "50", "--device", "x"], "The price table has no device 'x'."),
    ],
)
def test_wrong_calls_say_so(capsys, words, message):
    assert main(["cost", "serve", "bundle", *words]) != 0
    assert message in capsys.readouterr().err

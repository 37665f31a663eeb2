import os
import re
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families
from vfm_runtime.server.metrics import Metrics, measure_memory

FACTS = {"task": "classification", "precision": "fp32", "device": "cpu"}


@pytest.fixture
def metrics():
    return Metrics()


def samples(metrics):
    """Value by name and labels."""
    body, _ = metrics.render()
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))): (
            sample.value
        )
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


def test_text_and_its_type(metrics):
    body, kind = metrics.render()
    assert kind.startswith("text/plain; version=")
    names = re.findall(r"^# TYPE (\S+) (\S+)$", body.decode(), re.MULTILINE)
    assert names == [
        ("vfm_requests_total", "counter"),
        ("vfm_request_seconds", "histogram"),
        ("vfm_rejected_total", "counter"),
        ("vfm_queue_rows", "gauge"),
        ("vfm_batch_rows", "histogram"),
        ("vfm_queue_seconds", "histogram"),
        ("vfm_compute_seconds", "histogram"),
        ("vfm_drift_alerts_total", "counter"),
        ("vfm_reloads_total", "counter"),
        ("vfm_reload_failures_total", "counter"),
        ("vfm_model_info", "gauge"),
        ("vfm_memory_bytes", "gauge"),
    ]


def test_requests(metrics):
    metrics.add_model("toy", "1", **FACTS)
    metrics.record_request("/predict", 200, 0.02, model="toy", version="1")
    metrics.record_request("/predict", 200, 0.3, model="toy", version="1")
    metrics.record_request("/v2/health/live", 200, 0.001)
    found = samples(metrics)
    predict = ("model=toy", "route=/predict")
    assert found["vfm_requests_total", *predict, "status=200", "version=1"] == 2
    live = ("model=", "route=/v2/health/live", "status=200", "version=")
    assert found["vfm_requests_total", *live] == 1
    assert found["vfm_request_seconds_sum", *predict] == pytest.approx(0.32)
    assert found["vfm_request_seconds_bucket", "le=0.025", *predict] == 1
    assert found["vfm_request_seconds_bucket", "le=0.5", *predict] == 2


def test_clients_cannot_make_labels(metrics):
    metrics.add_model("toy", "1", **FACTS)
    for number in range(50):
        name = f"evil{number}"
        metrics.record_request("/predict", 404, 0.01, model=name, version="1")
        metrics.record_request("/predict", 404, 0.01, model="toy", version=name)
    assert "evil" not in metrics.render()[0].decode()
    other = ("model=other", "route=/predict", "status=404", "version=other")
    assert samples(metrics)["vfm_requests_total", *other] == 100


def test_models(metrics):
    def infos():
        return {key[1:]: value for key, value in samples(metrics).items() if "info" in key[0]}

    metrics.add_model("toy", "1", **FACTS)
    assert samples(metrics)["vfm_reload_failures_total", "model=toy"] == 0
    metrics.add_model("toy", "1", task="classification", precision="int8", device="cpu")
    metrics.reloads.labels("toy").inc()
    rest = ("model=toy", "precision=int8", "task=classification", "version=1")
    assert infos() == {("device=cpu", *rest): 1}
    assert samples(metrics)["vfm_reloads_total", "model=toy"] == 1
    metrics.remove_model("toy", "1")
    metrics.remove_model("toy", "1")
    assert infos() == {}
    metrics.record_request("/predict", 404, 0.01, model="toy", version="1")
    route = ("model=other", "route=/predict", "status=404", "version=other")
    assert samples(metrics)["vfm_requests_total", *route] == 1


def test_batches(metrics):
    batches = metrics.select_batch_metrics("toy", "1")
    batches.queue_rows.set(5)
    batches.queue_rows.set(3)
    batches.queue_seconds.observe(0.004)
    for rows, seconds in ((8, 0.2), (2, 0.1)):
        batches.batch_rows.observe(rows)
        batches.compute_seconds.observe(seconds)
    found = samples(metrics)
    toy = ("model=toy", "version=1")
    assert found["vfm_queue_rows", *toy] == 3
    assert found["vfm_queue_seconds_sum", *toy] == 0.004
    assert found["vfm_batch_rows_count", *toy] == 2
    assert found["vfm_batch_rows_sum", *toy] == 10
    assert found["vfm_batch_rows_bucket", "le=2.0", *toy] == 1
    assert found["vfm_compute_seconds_sum", *toy] == pytest.approx(0.3)


def test_memory(metrics):
    assert 2**20 < measure_memory() < 2**40
    assert samples(metrics)["vfm_memory_bytes",] == pytest.approx(measure_memory(), rel=0.2)


WORKER = """
import sys
from vfm_runtime.server.metrics import Metrics

metrics = Metrics()
facts = {"task": "classification", "precision": "fp32", "device": "cpu"}
metrics.add_model("old", "1", **facts)
metrics.remove_model("old", "1")
metrics.add_model("toy", "1", **facts)
metrics.record_request("/predict", 200, 0.01, model="toy", version="1")
metrics.reloads.labels("toy").inc()
metrics.select_batch_metrics("toy", "1").queue_rows.set(4)
print("ready", flush=True)
sys.stdin.readline()
sys.stdout.write(metrics.render()[0].decode())
"""


def test_several_workers(tmp_path):
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    workers[0].kill()
    workers[0].wait()
    text, _ = workers[1].communicate("go\n")
    workers[2].communicate("go\n")
    # What was answered stays counted; what waited with the worker that was killed does not wait any more.
    assert 'vfm_queue_rows{model="toy",version="1"} 8.0' in text
    assert 'route="/predict",status="200",version="1"} 3.0' in text
    assert 'vfm_reloads_total{model="toy"} 3.0' in text
    info = re.findall(r"vfm_model_info{.*model=\"(\w+)\".*} (\S+)", text)
    assert sorted(info) == [("old", "0.0"), ("toy", "1.0")]
    (memory,) = re.findall(r"^vfm_memory_bytes (\S+)$", text, re.MULTILINE)
    assert float(memory) > 2**20


def test_several_workers_told_too_late(monkeypatch, tmp_path):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    text = f"^PROMETHEUS_MULTIPROC_DIR is {tmp_path}, but .* Set it before the workers start.$"
    with pytest.raises(RuntimeError, match=text):
        Metrics()

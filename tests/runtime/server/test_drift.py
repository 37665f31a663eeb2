"""A server says when its images have changed."""

import asyncio
import time

import numpy as np
import pytest
import vfm_runtime
from vfm_runtime.drift.reference import DriftReference
from vfm_runtime.server.metrics import Metrics
from vfm_runtime.server.repository import Repository
from vfm_runtime.server.settings import Settings
from vfm_runtime.tasks.base import score_drift_values

from tests.runtime import toy, toy_several


def pictures(low, high, count):
    shape = (count, toy.SIDE, toy.SIDE, 3)
    return np.random.default_rng(0).integers(low, high, shape, dtype=np.uint8)


@pytest.fixture
def watched(tmp_path):
    """A bundle that knows what noise of all levels looks like."""
    folder = toy_several.build(tmp_path / "bundle")
    model = vfm_runtime.load(folder, device="cpu")
    outputs = model.run({"pixels": pictures(0, 256, 2000)})
    numbers = {name: len(head.labels) for name, head in model.task_type.heads.items()}
    DriftReference.fit(score_drift_values(outputs), numbers).write(folder)
    toy.write_vfm_json(folder, toy_several.CONTRACT)
    return folder


@pytest.mark.parametrize(("low", "high", "alerts"), [(0, 256, 0), (0, 100, 1)])
def test_windows_unlike_the_reference_are_counted(watched, low, high, alerts):
    metrics = Metrics()

    async def main():
        repository = Repository(Settings(bundles=(str(watched),), max_queue=600), metrics)
        served = repository.find_model()
        assert served.model.monitor.report().num_images == 0  # the warm-up does not count
        inputs = {"pixels": pictures(low, high, 500)}
        await served.batcher.submit(inputs, time.monotonic() + 30)
        assert served.model.monitor.report().num_windows == 1
        await repository.close()

    asyncio.run(main())
    text = metrics.render()[0].decode()
    line = f'vfm_drift_alerts_total{{model="bundle",version="1"}} {float(alerts)}'
    assert (line in text) is bool(alerts)

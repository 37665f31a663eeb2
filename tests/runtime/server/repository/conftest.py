import json
import shutil

import pytest
from vfm_runtime.server import repository as repository_module
from vfm_runtime.server.metrics import Metrics
from vfm_runtime.server.repository import Repository
from vfm_runtime.server.settings import Settings

from tests.runtime import toy
from tests.runtime.server.repository.swaps import (
    weights,
)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """Three bundles that differ in their weights."""
    folder = tmp_path_factory.mktemp("bundles")
    for seed in (1, 2, 3):
        path = toy.build(folder / str(seed), onefile=False)
        toy.save_model(path / "model.onnx", json.dumps(toy.CONTRACT), weights=weights(seed))
        toy.write_vfm_json(path)
    return folder


@pytest.fixture
def put(bundles, tmp_path):
    """Copies a bundle to a place in the test's own folder."""

    def put(seed, name):
        return shutil.copytree(bundles / str(seed), tmp_path / name)

    return put


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def make(metrics):
    def make(*words, **options):
        options = {"device": "cpu", "precision": "fp32", "num_threads": 1, "drain": 5, **options}
        return Repository(Settings(bundles=tuple(map(str, words)), **options), metrics)

    return make


@pytest.fixture
def loads(monkeypatch):
    """Folders that have been loaded."""
    seen = []
    load = repository_module.load

    def counted(folder, **options):
        seen.append(folder)
        return load(folder, **options)

    monkeypatch.setattr(repository_module, "load", counted)
    return seen

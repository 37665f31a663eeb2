"""Bundles that are put in the place of others while clients ask, and such that do not hold together."""

import concurrent.futures
import json
import threading
import time

import pytest
from vfm_runtime.server.metrics import Metrics
from vfm_runtime.server.repository import Repository

from tests.runtime import toy
from tests.runtime.server.live import PATIENCE_S, Live, wait_until
from tests.runtime.server.repository.swaps import weights

JPEG = "image/jpeg"


def new_bundle(folder, seed):
    toy.build(folder, onefile=False)
    toy.save_model(folder / "model.onnx", json.dumps(toy.CONTRACT), weights=weights(seed))
    toy.write_vfm_json(folder)
    return folder


def copy_slowly(source, target, manifest):
    """File by file and piece by piece, into the files that are there, as `cp -r` does it."""
    paths = [path for path in sorted(source.rglob("*")) if path.is_file()]
    paths.sort(key=lambda path: (path.name == "vfm.json") == (manifest == "last"))
    for path in paths:
        content = path.read_bytes()
        with (target / path.relative_to(source)).open("wb") as file:
            for at in range(0, len(content), 10_000):
                file.write(content[at : at + 10_000])
                file.flush()
                time.sleep(0.01)


def test_a_reference_of_another_model(tmp_path, settings_for):
    """Found when the bundle is loaded: the one before it then goes on."""
    folder = new_bundle(tmp_path / "toy", 1)
    for reference, said in (
        ({"histograms": {}, "labels": {"labels": [0.5, 0.5]}}, "as the model has labels, 3"),
        ({"histograms": {"distance": {"edges": [], "shares": [1]}}, "labels": {}}, "'distance'"),
    ):
        (folder / "reference.json").write_text(json.dumps({"num_images": 9, **reference}))
        toy.write_vfm_json(folder)
        with pytest.raises(ValueError, match=said):
            Repository(settings_for(bundles=(str(folder),)), Metrics())


@pytest.mark.parametrize("manifest", ["first", "last"])
def test_bundles_that_are_copied_slowly_and_at_once(tmp_path, settings_for, jpeg, manifest):
    for name, seed in (("a", 1), ("b", 1), ("new", 2)):
        new_bundle(tmp_path / name, seed)
    words = tuple(str(tmp_path / name) for name in "ab")
    server = Live(settings_for(bundles=words, reload_every=0.02))
    try:
        old = server.service.repository.list_models()
        done, answers = threading.Event(), {"a": [], "b": []}

        def client(name):
            while not done.is_set():
                status, _, body = server.ask(f"/predict?model={name}", jpeg, JPEG)
                assert status == 200, body
                answers[name].append(json.loads(body)["answer"]["score"])

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client, name) for name in "ab"]
            places = [tmp_path / name for name in "ab"]
            copies = [pool.submit(copy_slowly, tmp_path / "new", p, manifest) for p in places]
            try:
                for copying in copies:
                    copying.result(PATIENCE_S)
                wait_until(lambda: not set(old) & set(server.service.repository.list_models()))
            finally:
                time.sleep(0.1)
                done.set()
            for asked in clients:
                asked.result(PATIENCE_S)
        # Of the old bundle or of the new one, never of a mixture.
        assert len(set(answers["a"]) | set(answers["b"])) == 2
        assert answers["a"][-1] == answers["b"][-1] != answers["a"][0]
    finally:
        server.stop()

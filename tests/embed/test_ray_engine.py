"""`vfm embed --engine ray`: the rows of this process by two workers, one of which is killed."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from vfm_runtime.tasks.embedding import EmbeddingSpec

from tests.embed.test_embed import read, run
from tests.image_folders import write_image_folder
from vfm.embed import ray_engine, update

pytest.importorskip("lancedb")


@pytest.mark.slow
def test_a_killed_worker_loses_and_doubles_nothing(weights, tmp_path, capsys, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    root = write_image_folder(tmp_path / "images", num_classes=2, images_per_class=60)
    (root / "broken.png").write_bytes(b"no image")
    local, clustered = tmp_path / "local", tmp_path / "clustered"
    assert run(root, local, weights) == 0
    write, killed = update._write, []

    def write_and_kill(*arguments):
        write(*arguments)
        if not killed:  # errands of both workers are under way
            titles = {p.parent.name: p.read_bytes() for p in Path("/proc").glob("[0-9]*/cmdline")}
            killed.extend(int(pid) for pid, title in titles.items() if b"ray::EmbedWorker" in title)
            os.kill(killed[0], signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(update, "_CHUNK", 8)
        patch.setattr(update, "_write", write_and_kill)
        patch.setattr(ray_engine, "_BATCHES", 4)
        more = ["--engine", "ray", "--workers", "2", "--batch-size", "4", "--device", "cpu"]
        assert run(root, clustered, weights, *more) == 0
    assert killed
    shown = capsys.readouterr()
    assert "120 of 121 images embedded now" in shown.out
    assert "broken.png" in (clustered / "unreadable.csv").read_text()
    columns = ("label", "sha256", "vfm_source", "vfm_stamp")
    (vectors, rows), (expected, expected_rows) = read(clustered, *columns), read(local, *columns)
    assert rows == expected_rows
    np.testing.assert_allclose(vectors, expected, atol=1e-5)

    assert run(root, clustered, weights, "--engine", "ray", "--workers", "3") == 1
    error = capsys.readouterr().err
    assert (
        "--workers is 3, and the cluster of Ray has 2 CPUs, one for each worker. Give 1 to" in error
    )
    # A worker that reads other weights than this process is refused.
    opening = {"model": "test_vit", "base": weights, "device": "cpu"}
    said = r"has other weights of test_vit \(fingerprint"
    with (
        pytest.raises(ray_engine.EngineError, match=said),
        ray_engine.open_ray_engine(opening, EmbeddingSpec(), batch_size=1) as embed,
    ):
        next(embed([None]))
    ray.shutdown()

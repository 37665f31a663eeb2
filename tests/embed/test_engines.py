"""`vfm embed --engine`: the rows of one process by two, or by two workers of Ray, one of which is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from vfm_runtime.tasks.embedding import EmbeddingSpec

from tests.embed.test_embed import read, run
from tests.image_folders import write_image_folder
from vfm.embed import ray_engine, update
from vfm.embed.workers import EngineError

pytest.importorskip("lancedb")


@pytest.mark.slow
def test_a_killed_worker_loses_and_doubles_nothing(weights, tmp_path, capsys, monkeypatch):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's workers stand back behind all else by default, and starve beside tests that run at the same time.
    monkeypatch.setenv("RAY_worker_niceness", "0")
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
        patch.setattr(ray_engine, "ERRAND", 4)
        more = ["--engine", "ray", "--workers", "2", "--batch-size", "4", "--device", "cpu"]
        assert run(root, clustered, weights, *more) == 0
    assert killed
    shown = capsys.readouterr()
    assert "120 of 121 images embedded now" in shown.out
    assert "broken.png" in (clustered / "unreadable.csv").read_text()
    compare_stores(clustered, local)

    assert run(root, clustered, weights, "--engine", "ray", "--workers", "3") == 1
    error = capsys.readouterr().err
    assert (
        "--workers is 3, and the cluster of Ray has 2 CPUs, one for each worker. Give 1 to" in error
    )
    # A worker that reads other weights than this process is refused.
    opening = {"model": "test_vit", "base": weights, "device": "cpu"}
    said = r"has other weights of test_vit \(fingerprint"
    with (
        pytest.raises(EngineError, match=said),
        ray_engine.open_ray_engine(opening, EmbeddingSpec(), batch_size=1) as embed,
    ):
        next(embed([None]))
    ray.shutdown()


def compare_stores(store, expected):
    columns = ("label", "sha256", "vfm_source", "vfm_stamp")
    (vectors, rows), (others, other_rows) = read(store, *columns), read(expected, *columns)
    assert rows == other_rows
    np.testing.assert_allclose(vectors, others, atol=1e-5)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_goes_on(weights, tmp_path, capsys):
    root = write_image_folder(tmp_path / "images", num_classes=2, images_per_class=300)
    (root / "broken.png").write_bytes(b"no image")
    local, store = tmp_path / "local", tmp_path / "store"
    assert run(root, local, weights) == 0
    more = ["--engine", "lightning", "--workers", "2", "--batch-size", "2", "--device", "cpu"]
    begin = "import sys; from vfm.cli import main; sys.exit(main(sys.argv[1:]))"
    words = ["embed", root, "--to", store, "--model", "test_vit", "--base", weights, *more]
    command = [sys.executable, "-c", begin, *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not (spawned := find_spawned(process.pid)):
            assert process.poll() is None
            time.sleep(0.1)
        os.kill(spawned[0], signal.SIGKILL)
        error = process.communicate()[1]
    assert process.returncode == 1
    assert "A process that embeds has ended: process " in error
    assert "What is written stays: run the same command again" in error

    capsys.readouterr()
    assert run(root, store, weights, *more) == 0
    assert "of 601 images embedded now" in capsys.readouterr().out
    assert "broken.png" in (store / "unreadable.csv").read_text()
    compare_stores(store, local)

    assert run(root, store, weights, "--engine", "lightning", "--workers", "999") == 1
    error = capsys.readouterr().err
    assert "--workers is 999, and this machine has" in error


def find_spawned(parent):
    """Find the processes with models, by their command line and their parent."""
    spawned = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title, status = (folder / "cmdline").read_bytes(), (folder / "status").read_text()
        except OSError:
            continue
        if b"spawn_main" in title and f"PPid:\t{parent}\n" in status:
            spawned.append(int(folder.name))
    return spawned if len(spawned) == 2 else []

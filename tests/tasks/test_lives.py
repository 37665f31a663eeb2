"""What happens to jobs: signals to a whole group of processes, kills, restarts, two jobs at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from tests.tasks.tiny import fit, require_equal, shapes, stored, trainer, vit
from vfm.cli import main
from vfm.cli.resume import claim_run
from vfm.tasks import ClassificationTask, Optim

ROOT = Path(__file__).parents[2]
DATA = {"num_images": 160, "num_workers": 2}


def averaging(**changes: Any) -> ClassificationTask:
    """A task with the average of its weights, and patience."""
    return vit(optim=Optim(lr=3e-3, ema=0.9), patience=5, **changes)


GROUP = """
import os, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import lightning as L
from lightning.pytorch import Callback
from tests.tasks.test_lives import DATA, averaging
from tests.tasks.tiny import fit, shapes

class Signal(Callback):
    def on_train_batch_start(self, run, task, batch, batch_idx):
        if (run.current_epoch, batch_idx) == (1, 1):
            # From outside the group, and with time for the workers to die first.
            kill = ["kill", "-s", sys.argv[2], "--", f"-{os.getpgid(0)}"]
            subprocess.run(kill, start_new_session=True, check=True)
            time.sleep(0.5)

L.seed_everything(3)
fit(Path(sys.argv[1]), averaging(), shapes(**DATA), max_epochs=3, callbacks=[Signal()])
"""


def start(script: str, *words: str) -> subprocess.Popen[str]:
    """Start a job as a scheduler does, in a process group of its own; an interrupt counts, wherever the tests run."""
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    return subprocess.Popen(
        [sys.executable, "-c", heed + script, *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'export'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["TERM", "INT"])
def test_a_signal_to_all_processes_of_a_job_saves_and_the_rest_is_as_if_unbroken(
    tmp_path: Path, name: str
) -> None:
    job = start(GROUP, str(tmp_path / name), name)
    L.seed_everything(3)
    whole = averaging()
    data = shapes(**DATA | {"num_workers": 0})
    fit(tmp_path / "whole", whole, data, max_epochs=3)
    printed, _ = job.communicate(timeout=600)
    last = tmp_path / name / "checkpoints" / "last.ckpt"
    assert job.returncode == 128 + getattr(signal, f"SIG{name}"), printed
    assert f"Stopped by SIG{name} and saved; go on with --ckpt_path {last}" in printed
    saved = stored(last)
    assert saved["global_step"] == saved["averaging_state"]["n_averaged"] == 7
    L.seed_everything(9)
    rest = averaging()
    trainer(tmp_path / name, max_epochs=3).fit(rest, datamodule=data, ckpt_path=last)
    require_equal(whole.state_dict(), rest.state_dict())


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    class Interrupt(L.Callback):
        def on_train_batch_start(self, run: Any, task: Any, batch: Any, batch_idx: int) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    # A job that a shell started in the background ignores it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path, vit(), callbacks=[Interrupt()])
    assert caught.value.code == 1
    assert not list(tmp_path.rglob("*.ckpt"))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning leaves it ignored


@pytest.mark.parametrize("function", ["test", "validate"])
def test_a_trainer_that_averaged_scores_the_weights_of_the_file(
    tmp_path: Path, function: str
) -> None:
    task = averaging()
    run = fit(tmp_path, task, max_epochs=2)
    best = tmp_path / "checkpoints" / "best.ckpt"
    options: dict[str, Any] = {"datamodule": shapes(), "verbose": False}
    scores = getattr(run, function)(task, ckpt_path=best, **options)
    require_equal(task.state_dict(), stored(best)["state_dict"])
    loaded = ClassificationTask.load(best)
    assert scores == getattr(trainer(tmp_path / "new"), function)(loaded, **options)


def test_a_test_that_is_stopped_did_not_succeed(
    tmp_path: Path, best: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    step = ClassificationTask.test_step

    def stop(task: Any, batch: Any, batch_idx: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        step(task, batch, batch_idx)

    monkeypatch.setattr(ClassificationTask, "test_step", stop)
    words = ["--ckpt_path", str(best), "--data.batch_size", "4", "--data.num_workers", "0"]
    assert main(["test", *words, "--trainer.accelerator", "cpu"]) == 128 + signal.SIGTERM


def test_jobs_that_start_at_once_have_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: claim_run(tmp_path / "runs"), range(24)))
    assert sorted(map(int, numbers)) == list(range(24))
    assert len(list((tmp_path / "runs").iterdir())) == 24


RECIPE = """
model:
  class_path: ClassificationTask
  init_args: {backbone: test_vit, pretrained: false, image_size: 32, head: MLPHead}
data:
  class_path: SyntheticData
  init_args: {num_images: 48, num_classes: 3}
trainer: {accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""
FIT = ["fit", "--config", "ok.yaml", "--ckpt_path", "last"]


@pytest.mark.slow
def test_last_is_the_newest_of_runs_like_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ok.yaml").write_text(RECIPE)

    def say(*words: str, epochs: int = 1) -> str:
        assert main([*words, "--trainer.max_epochs", str(epochs)]) == 0
        return capsys.readouterr().out

    assert "No checkpoint in runs yet" in say(*FIT, "--model.optim.lr", "0.001")
    printed = say(*FIT)
    assert "No checkpoint in runs is of a run like this one: training starts from" in printed
    assert "runs/0/checkpoints/last.ckpt: model.optim.lr is null, not 0.001" in printed
    printed = say(*FIT, "--data.seed", "4", "--seed_everything", "3")
    assert "runs/1/checkpoints/last.ckpt: seed_everything is 3, not 0; data.seed is 4" in printed
    # Length, workers and patience may change; a run that went on is like the one before it.
    free = ["--data.num_workers", "0", "--model.patience", "7"]
    assert "Going on from runs/1/checkpoints/last.ckpt" in say(*FIT, *free, epochs=2)
    assert "Going on from runs/3/checkpoints/last.ckpt" in say(*FIT, epochs=3)
    # Who names no model takes the newest, and a named file is gone on from in any case.
    assert "Going on from runs/4/checkpoints/last.ckpt" in say("fit", *FIT[-2:], epochs=4)
    file = ["--ckpt_path", "runs/0/checkpoints/last.ckpt"]
    printed = say(*FIT[:-2], *file, "--model.optim.lr", "0.01", epochs=2)
    assert "Other than the run that goes on: model.optim.lr is 0.01, not 0.001\n" in printed
    assert stored(Path("runs/6/checkpoints/last.ckpt"))["epoch"] == 1


@pytest.mark.slow
def test_two_jobs_at_once_are_each_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "ok.yaml").write_text(RECIPE)
    script = (
        f"import os, sys; os.chdir({str(tmp_path)!r}); from vfm.cli import main; sys.exit(main())"
    )
    rates = ("0.001", "0.0005")
    words = ["--data.num_workers", "1", "--trainer.max_epochs"]
    jobs = [start(script, *FIT, "--model.optim.lr", rate, *words, "9999") for rate in rates]
    runs = tmp_path / "runs"
    while len(list(runs.glob("*/checkpoints/last.ckpt"))) < len(jobs):
        assert all(job.poll() is None for job in jobs)
        time.sleep(0.05)
    for job in jobs:
        os.killpg(job.pid, signal.SIGTERM)
    assert [job.wait(timeout=600) for job in jobs] == [128 + signal.SIGTERM] * 2
    stopped = {path: stored(path)["epoch"] for path in runs.glob("*/checkpoints/last.ckpt")}
    assert len(stopped) == 2
    for rate in rates:
        epochs = str(max(stopped.values()) + 3)
        rest = start(script, *FIT, "--model.optim.lr", rate, *words, epochs)
        printed, _ = rest.communicate(timeout=600)
        assert rest.returncode == 0, printed
        (path,) = (path for path in stopped if str(path.relative_to(tmp_path)) in printed)
        assert f"Going on from {path.relative_to(tmp_path)}" in printed
        assert stored(path)["vfm"]["recipe"]["model"]["init_args"]["optim"]["lr"] == float(rate)

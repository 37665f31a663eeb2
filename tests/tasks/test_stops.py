"""Runs that end early: by a signal, by a loss that is no number, by a rank that stalls, for lack of memory."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch import Callback

from tests.tasks.tiny import fit, require_equal, shapes, stored, trainer, vit
from vfm.cli.errors import explain
from vfm.tasks import ClassificationTask, Optim
from vfm.training.nonfinite import NonFiniteLossError, replay
from vfm.training.saving import Preemption, WholeCheckpointIO
from vfm.training.watchdog import EXIT_STATUS, StallWatch

ROOT = Path(__file__).parents[2]


def averaging() -> ClassificationTask:
    return vit(optim=Optim(lr=3e-3, ema=0.9))


class Terminate(Callback):
    """Sends SIGTERM as a scheduler does, at one batch of training or validation."""

    def __init__(self, stage: str, epoch: int, batch: int) -> None:
        self.place = (stage, epoch, batch)

    def on_train_batch_start(self, run: Any, task: Any, batch: Any, batch_idx: int) -> None:
        self._at("train", run, batch_idx)

    def on_validation_batch_start(
        self, run: Any, task: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        self._at("val", run, batch_idx)

    def _at(self, stage: str, run: Any, batch_idx: int) -> None:
        if self.place == (stage, run.current_epoch, batch_idx):
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    "place", [("train", 1, 0), ("train", 1, 1), ("train", 1, 2), ("val", 1, 0), ("val", 1, 1)]
)
def test_sigterm_saves_and_the_rest_is_as_if_unbroken(
    tmp_path: Path, place: tuple[str, int, int]
) -> None:
    L.seed_everything(3)
    whole = averaging()
    expected = fit(tmp_path / "whole", whole, max_epochs=3).callback_metrics
    L.seed_everything(3)
    with pytest.raises(SystemExit) as caught:
        fit(tmp_path / "cut", averaging(), max_epochs=3, callbacks=[Terminate(*place)])
    assert caught.value.code == 143
    assert not isinstance(getattr(signal.getsignal(signal.SIGTERM), "__self__", None), Preemption)
    L.seed_everything(9)
    rest, run = averaging(), trainer(tmp_path / "cut", max_epochs=3)
    run.fit(rest, datamodule=shapes(), ckpt_path=tmp_path / "cut/checkpoints/last.ckpt")
    require_equal(whole.state_dict(), rest.state_dict())
    for name in ("val/accuracy", "val/loss"):
        assert run.callback_metrics[name] == expected[name]
    best = [stored(tmp_path / k / "checkpoints" / "best.ckpt")["epoch"] for k in ("whole", "cut")]
    assert best[0] == best[1]


def test_sigterm_waits_for_the_end_of_an_accumulated_step(tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        fit(
            tmp_path,
            vit(),
            accumulate_grad_batches=2,
            callbacks=[Terminate("train", 0, 0)],
        )
    saved = stored(tmp_path / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == 1
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] == 2


def test_a_checkpoint_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    io = WholeCheckpointIO()
    io.save_checkpoint({"epoch": 1}, path)

    def stop(content: Any, file: Any) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        io.save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [p.name for p in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_training_writes_its_checkpoints_whole(tmp_path: Path) -> None:
    run = fit(tmp_path, vit())
    assert isinstance(run.strategy.checkpoint_io, WholeCheckpointIO)


class Poison(Callback):
    """Makes the loss of one image no number."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_fit_start(self, run: Any, task: Any) -> None:
        plain = task.compute_losses

        def compute_losses(raw: Any, batch: Any) -> dict[str, torch.Tensor]:
            factor = float("nan") if self.hit else 1.0
            return {name: value * factor for name, value in plain(raw, batch).items()}

        task.compute_losses = compute_losses
        self.hit = False

    def on_train_batch_start(self, run: Any, task: Any, batch: Any, batch_idx: int) -> None:
        self.hit = self.name in batch["name"] and run.current_epoch == 1


def test_a_loss_that_is_no_number_stops_with_names_batch_and_state(tmp_path: Path) -> None:
    data = shapes()
    data.setup("fit")
    name = data.records["train"][5].name
    task = vit()
    with pytest.raises(NonFiniteLossError) as caught:
        fit(tmp_path, task, data, max_epochs=2, callbacks=[Poison(name)])
    text = str(caught.value)
    assert "The loss is nan in epoch 1, step " in text
    assert name in text
    folder = tmp_path / "nonfinite"
    assert f"Batch and state from before the step: {folder}" in text
    losses = replay(folder).images
    assert name in losses
    assert len(losses) == 16
    assert all(value > 0 for value in losses.values())
    require_equal(stored(folder / "state.ckpt")["state_dict"], task.state_dict())


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    task = vit()
    torch.nn.init.constant_(task.backbone.model.norm.weight, float("nan"))
    with pytest.raises(NonFiniteLossError) as caught:
        fit(tmp_path, task)
    assert "1 weights are not finite themselves (backbone.model.norm.weight)" in str(caught.value)
    assert "--model.optim.lr (now 0.003)" in str(caught.value)


class NoMemory(Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_out_of_memory_names_the_settings_to_change(tmp_path: Path) -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        fit(tmp_path, vit(), callbacks=[NoMemory()])
    text = explain(caught.value)
    assert "CUDA out of memory. Tried to allocate 2.00 GiB." in text
    assert "--trainer.precision bf16-mixed (now 32-true)" in text
    assert "--data.batch_size 8 --trainer.accumulate_grad_batches 2 (now 16): the same step" in text
    assert "--model.grad_checkpointing true" in text
    assert "--model.adapt lora, ln or linear" in text


STALL = """
import sys, time
from pathlib import Path
from lightning.pytorch import Callback
from tests.tasks.tiny import shapes, trainer, vit
from vfm.training.watchdog import StallWatch

class Stall(Callback):
    def on_train_batch_start(self, run, task, batch, batch_idx):
        if run.global_rank == 1 and batch_idx == 1:
            where_it_hangs()

def where_it_hangs():
    time.sleep(600)

trainer(
    Path(sys.argv[1]), devices=2, strategy="ddp", callbacks=[Stall(), StallWatch(seconds=8)]
).fit(vit(), datamodule=shapes(num_workers=0))
"""


@pytest.mark.slow
def test_a_stalled_rank_ends_the_job_with_every_ranks_stack(tmp_path: Path) -> None:
    script = tmp_path / "stall.py"
    script.write_text(STALL)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode not in (0, None)
    assert "rank 0 has made no progress for 8 s" in done.stderr
    assert "rank 1 has made no progress for 8 s" in done.stderr
    assert "where_it_hangs" in done.stderr


@pytest.mark.slow
def test_one_process_is_watched_on_request(tmp_path: Path) -> None:
    assert EXIT_STATUS == 75
    with pytest.raises(ValueError, match=r"StallWatch got seconds 0\. Give a time above 0\."):
        StallWatch(0)
    script = tmp_path / "alone.py"
    script.write_text(
        "import time\nfrom types import SimpleNamespace\nfrom vfm.training.watchdog import StallWatch\n"
        "watch = StallWatch(0.5, alone=True)\n"
        "watch.on_train_start(SimpleNamespace(world_size=1, global_rank=0), None)\n"
        "def where_it_hangs():\n    time.sleep(60)\nwhere_it_hangs()\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == EXIT_STATUS
    assert "where_it_hangs" in done.stderr


KILL = """
import os, signal, sys
from pathlib import Path
import lightning as L
from lightning.pytorch import Callback
from tests.tasks.tiny import fit, shapes, vit

class Kill(Callback):
    def on_train_batch_start(self, run, task, batch, batch_idx):
        if (run.current_epoch, batch_idx) == (2, 1):
            os.kill(os.getpid(), signal.SIGKILL)

L.seed_everything(3)
fit(Path(sys.argv[1]), vit(), shapes(num_workers=0), max_epochs=4, callbacks=[Kill()])
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_end(tmp_path: Path) -> None:
    script = tmp_path / "kill.py"
    script.write_text(KILL)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "cut")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == -signal.SIGKILL
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert stored(last)["epoch"] == 1
    L.seed_everything(3)
    whole = vit()
    expected = fit(tmp_path / "whole", whole, shapes(num_workers=0), max_epochs=4).callback_metrics
    L.seed_everything(9)
    rest, run = vit(), trainer(tmp_path / "cut", max_epochs=4)
    run.fit(rest, datamodule=shapes(num_workers=0), ckpt_path=last)
    require_equal(whole.state_dict(), rest.state_dict())
    assert run.callback_metrics["val/accuracy"] == expected["val/accuracy"]


def test_a_watch_goes_to_other_processes():
    assert pickle.loads(pickle.dumps(StallWatch(5.0))).seconds == 5.0

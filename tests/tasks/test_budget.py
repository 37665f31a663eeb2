"""Meters of time and energy, and budgets that end a training."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from vfm_runtime.errors import OptionError

from tests.tasks.tiny import shapes, vit
from vfm.training.budget import Budget, CostMeter, read_costs
from vfm.training.meter import EnergyMeter, RunMeter


def write_counter(folder: Path, name: str, microjoules: int, span: int = 1000) -> Path:
    zone = folder / name
    zone.mkdir(parents=True, exist_ok=True)
    (zone / "energy_uj").write_text(f"{microjoules}\n", encoding="ascii")
    (zone / "max_energy_range_uj").write_text(f"{span}\n", encoding="ascii")
    return zone / "energy_uj"


def test_the_processor_counts_its_energy_past_the_end_of_its_counter(tmp_path):
    first = write_counter(tmp_path, "intel-rapl:0", 900)
    write_counter(tmp_path, "intel-rapl:0:0", 5)  # a part of the first
    second = write_counter(tmp_path, "intel-rapl:1", 10)
    meter = EnergyMeter(tmp_path)
    first.write_text("100")
    assert meter.read() == pytest.approx(200e-6)
    first.write_text("950")
    second.write_text("60")
    assert meter.read() == pytest.approx((1050 + 50) / 1e6)
    assert meter.source == "RAPL, processor packages alone"


def test_energy_that_nothing_counts_is_no_zero(tmp_path):
    meter = EnergyMeter(tmp_path)
    assert meter.read() is None
    assert meter.source.startswith(
        "not measurable here: no GPU whose driver counts energy (NVML), and no readable "
    )
    run = RunMeter(tmp_path)
    run.go_on({"hours": 2.0, "kwh": None})
    assert run.kwh is None
    assert 2 < run.hours < 2.1


def test_energy_is_counted_over_resumes_if_all_of_it_is_known(tmp_path):
    path = write_counter(tmp_path, "intel-rapl:0", 0, span=10**12)
    run = RunMeter(tmp_path)
    run.go_on({"hours": 2.0, "kwh": 1.5})
    path.write_text(str(36 * 10**11 % 10**12))
    assert run.kwh == pytest.approx(1.5 + 0.6 / 3.6)
    run.go_on({"hours": 2.0, "kwh": None})
    assert run.kwh is None


def train(
    folder: Path, budget: Budget | None, ckpt: str | None = None, epochs: int = 50
) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        default_root_dir=folder,
        callbacks=[budget] if budget else [],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(vit(), shapes(), ckpt_path=ckpt)
    return trainer


def test_a_budget_ends_a_training_with_a_checkpoint_that_goes_on(tmp_path, caplog, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("vfm.training.meter.time.perf_counter", lambda: clock[0])

    class Tick(Budget):
        def on_train_batch_end(self, *args):
            clock[0] += 360  # a tenth of an hour a step
            super().on_train_batch_end(*args)

    with (
        pytest.warns(UserWarning, match=r"8\d% of the budget is used \(0\.\d+ of 1 hours\)."),
        caplog.at_level(logging.INFO),
    ):
        trainer = train(tmp_path, Tick(hours=1))
    assert trainer.global_step == 10
    assert (
        "The budget is used up (1 of 1 hours): training stops, and is saved; go on with --ckpt_path"
        in caplog.text
    )
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 10
    costs = read_costs(last.parent)
    assert costs["meter"]["hours"] == pytest.approx(1)
    assert costs["quote"] is None
    # What was used counts, also in money.
    trainer = train(tmp_path, Tick(usd=3, usd_per_hour=2), ckpt=str(last))
    assert trainer.global_step == 15
    assert read_costs(last.parent)["meter"]["usd"] == pytest.approx(3)


def test_every_run_is_metered(tmp_path):
    trainer = train(tmp_path, None, epochs=1)
    content = json.loads((tmp_path / "checkpoints" / "cost.json").read_text(encoding="utf-8"))
    assert content["meter"]["hours"] > 0
    assert sum(isinstance(c, CostMeter) for c in trainer.callbacks) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "A Budget has no limit. Give hours, usd or kwh."),
        ({"hours": 0}, "hours of the Budget is 0. Give a number above 0."),
        (
            {"usd": 5},
            "The Budget is 5 \\$, but an hour of this machine has no price. Give usd_per_hour too, or hours.",
        ),
    ],
)
def test_a_budget_without_a_sense_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Budget(**options)


def test_energy_is_no_budget_where_it_is_not_measurable(tmp_path, monkeypatch):
    monkeypatch.setattr(RunMeter, "kwh", None)
    with pytest.raises(
        OptionError, match=r"The Budget is 1 kWh, but energy is .* Give hours or usd."
    ):
        train(tmp_path, Budget(kwh=1), epochs=1)

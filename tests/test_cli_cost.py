"""`vfm cost`, `vfm fit --estimate` and budgets: figures, their sources, and what is said where there are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.tasks.tiny import CLI_VIT
from vfm.cli import main
from vfm.cli.errors import UsageError
from vfm.cli.estimate import MeteredTrial, estimate_seconds, pop_estimate

WORDS = [word for pair in CLI_VIT.items() for word in pair]


def write_recipe(folder: Path) -> str:
    path = folder / "recipe.yaml"
    arguments = {"backbone": "test_vit", "pretrained": False, "image_size": 32}
    recipe = {
        "model": {"class_path": "ClassificationTask", "init_args": arguments},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "precision": "auto"},
    }
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return str(path)


def write_prices(folder: Path) -> str:
    path = folder / "mine.yaml"
    path.write_text(
        "devices:\n  here: {usd_per_hour: 2, watts: 50, source: invoice 7, date: 2026-11-01}\n",
        encoding="utf-8",
    )
    return str(path)


def test_a_training_is_estimated(tmp_path, capsys):
    prices = write_prices(tmp_path)
    words = ["cost", "train", write_recipe(tmp_path), "--data", "640", "--json"]
    assert main([*words, "--prices", prices]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["steps"] == 2 * 640 / content["batch_size"]
    quote = content["quote"]
    hours = quote["hours"]["value"]
    assert hours == pytest.approx(content["steps"] * content["seconds_per_step_here"] / 3600)
    assert quote["usd"]["value"] == pytest.approx(2 * hours)
    assert quote["co2_kg"]["value"] == pytest.approx(0.05 * hours * 0.436)
    assert quote["price_source"] == "2 $ an hour of here (invoice 7, 2026-11-01)"
    rows = {(r["adapt"], r["precision"], r["grad_checkpointing"]): r for r in content["memory"]}
    kind = content["memory"][0]["precision"]  # what auto chose
    full = rows["full", kind, False]
    assert full["device"] == full["weights"] + full["step"]
    assert full["step"] > rows["ln", kind, False]["step"] > rows["linear", kind, False]["step"]
    assert full["step"] > rows["full", kind, True]["step"]
    assert full["ddp"] == full["device"] + 4 * full["num_trainable"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--device", "a100-40"],
            "vfm: The price table has no device 'a100-40'. Did you mean 'a100-40gb'? Choices: here, a100-40gb, "
            "a100-80gb, h100-80gb, h200-141gb. Add it to a file of your own, with source and date: --prices mine.yaml.",
        ),
        (
            ["--device", "a100-40gb"],
            "vfm: How fast a100-40gb trains this cannot be measured here. Give --efficiency, the fraction of its peak "
            "that is reached, such as 0.3, or --like florence for that of a published run.",
        ),
        (
            ["--like", "florense"],
            "vfm: --like florense is no published run that vfm knows. Choices: florence;",
        ),
        (["--efficiency", "2"], "vfm: --efficiency is 2.0. Give a fraction above 0, at most 1."),
        (["--num-devices", "0"], "vfm: --num-devices is 0. Give 1 or more."),
    ],
)
def test_what_cannot_be_estimated_says_so(tmp_path, capsys, words, message):
    assert main(["cost", "train", write_recipe(tmp_path), "--data", "640", *words]) != 0
    assert message in capsys.readouterr().err


def test_a_recipe_that_is_not_there_is_named(capsys):
    assert main(["cost", "train", "none.yaml", "--data", "10"]) == 2
    assert "There is no recipe none.yaml. Give files such as" in capsys.readouterr().err


def test_a_fit_is_quoted_and_metered(tmp_path, capsys):
    prices = write_prices(tmp_path)
    root = ["--trainer.default_root_dir", str(tmp_path / "runs")]
    words = ["fit", *WORDS, *root, "--trainer.max_epochs", "2", "--estimate", "--prices", prices]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "Quote, from " in out
    assert "$ an hour of here (invoice 7, 2026-11-01)" in out
    (run,) = (tmp_path / "runs").iterdir()
    content = json.loads((run / "checkpoints" / "cost.json").read_text(encoding="utf-8"))
    assert content["quote"]["usd"]["low"] < content["quote"]["usd"]["high"]
    assert content["meter"]["hours"] > 0
    assert content["meter"]["usd"] == pytest.approx(2 * content["meter"]["hours"])


def test_the_whole_training_is_estimated_from_a_trial():
    trial = MeteredTrial()
    trial.startup, trial.steps, trial.changes = 10.0, [1.0, 1.2, 1.1], [3.1]
    trial.validated, trial.epoch_steps, trial.epoch_validated = [0.5], 20, 8
    trial.min_steps = 100
    trainer = {"max_epochs": 3, "max_steps": -1, "check_val_every_n_epoch": 1}
    recipe = {"trainer": trainer, "model": {"init_args": {"min_steps": 0}}}
    span, steps = estimate_seconds(trial, recipe)
    # 3 epochs of 20 steps of 1.1 s, 2 s between them, validations of 8 x 0.5 s, and the start.
    assert (span.value, steps) == (pytest.approx(10 + 3 * (22 + 2 + 4)), 60)
    assert span.low == pytest.approx(0.85 * span.value)
    recipe["model"]["init_args"]["min_steps"] = "auto"
    assert estimate_seconds(trial, recipe)[1] == 100
    trainer["max_epochs"] = -1
    with pytest.raises(
        UsageError, match=r"--estimate needs a training with an end. Give --trainer.max_epochs."
    ):
        estimate_seconds(trial, recipe)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--prices=p.yaml"], "--prices is for a quote. Add --estimate, or leave it out."),
        (["--estimate=3"], "--estimate takes no value. Give it alone: vfm fit ... --estimate"),
        (
            ["--estimate", "--ckpt_path=last"],
            "--estimate quotes a training from its beginning, and --ckpt_path goes on",
        ),
    ],
)
def test_estimates_that_cannot_be_are_refused(words, message):
    with pytest.raises(UsageError, match=message):
        pop_estimate(words)

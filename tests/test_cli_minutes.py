"""`vfm fit --trainer.minutes`: the training that a trial plans, its end in time, going on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tasks.tiny import CLI_VIT, stored
from vfm.cli import main, minutes
from vfm.cli.errors import UsageError
from vfm.cli.minutes import Plan, TimedTrial, find_minutes, plan_training


def make_trial(**changes: object) -> TimedTrial:
    trial = TimedTrial()
    trial.startup, trial.steps, trial.changes = 10.0, [1.0, 1.2, 1.1], [3.1]
    trial.validated, trial.epoch_steps, trial.epoch_validated = [0.5], 20, 8
    for name, value in changes.items():
        setattr(trial, name, value)
    return trial


def test_epochs_and_validations_fill_the_time() -> None:
    plan = plan_training(make_trial(), 1000)
    # An epoch is 20 x 1.1 s and 2 s more, a validation 4 s, and 5 % of 990 s are spare.
    assert plan.epochs % plan.validate_every == 0
    taken = plan.epochs * 24 + plan.epochs / plan.validate_every * 4
    assert 0.85 * 940 < taken <= 941
    assert plan.seconds == 990
    assert plan.list_words() == [
        "--model.min_steps=0",
        "--trainer.max_steps=-1",
        f"--trainer.max_epochs={plan.epochs}",
        f"--trainer.check_val_every_n_epoch={plan.validate_every}",
        "--trainer.max_time=00:00:16:30",
    ]


def test_long_validations_are_few() -> None:
    plan = plan_training(make_trial(validated=[10.0]), 1000)
    assert plan.epochs / plan.validate_every * 80 <= 0.16 * 941
    assert plan_training(make_trial(epoch_validated=0, validated=[]), 1000).epochs > 30


def test_epochs_of_one_step_are_planned() -> None:
    plan = plan_training(make_trial(steps=[], changes=[2.0], epoch_steps=1), 100)
    assert 25 <= plan.epochs <= 43


def test_too_little_time_says_how_much_would_do() -> None:
    message = (
        r"--trainer.minutes does not suffice for one epoch of 20 steps, 1.10 s each, and a validation of 4 s. Give 0.7 "
        "more minutes, fewer images, a smaller --model.image_size, or a smaller backbone."
    )
    with pytest.raises(UsageError, match=message):
        plan_training(make_trial(), 30)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.minutes=0"], "--trainer.minutes is 0. Give a number above 0."),
        (["--trainer.minutes=soon"], "--trainer.minutes is soon. Give a number above 0."),
        (
            ["--trainer.minutes=5", "--trainer.max_epochs=3"],
            "--trainer.minutes and --trainer.max_epochs both say how long. Give one of them.",
        ),
    ],
)
def test_what_is_no_time_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_minutes([], words)


def test_a_recipe_may_say_the_minutes_and_the_call_goes_before_it() -> None:
    recipe = {"trainer": {"minutes": 5, "devices": 1}}
    recipes, words, minutes = find_minutes([recipe], ["--trainer.minutes=7", "--x=1"])
    assert (recipes, words, minutes) == ([{"trainer": {"devices": 1}}], ["--x=1"], 7)
    assert find_minutes([recipe], [])[2] == 5


def test_a_training_ends_in_time_and_goes_on_by_the_same_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(trial: TimedTrial, seconds: float) -> Plan:
        # Of 13 steps, 3 an epoch, those that end the warm-up or begin an epoch are not like the others.
        assert (trial.epoch_steps, trial.epoch_validated) == (3, 2)
        assert (len(trial.steps), len(trial.changes), len(trial.validated)) == (6, 4, 5)
        assert 0 < seconds < 600
        return Plan(4, 2, 300.0)

    monkeypatch.setattr(minutes, "plan_training", plan)
    words = CLI_VIT | {
        "--trainer.minutes": "10",
        "--trainer.default_root_dir": str(tmp_path),
        "--ckpt_path": "last",
    }
    call = ["fit", *(word for pair in words.items() for word in pair)]
    assert main(call) == 0
    out = capsys.readouterr().out
    assert "10 minutes: 4 epochs, 12 steps of" in out
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    last = stored(tmp_path / "0/checkpoints/last.ckpt")
    trainer = last["vfm"]["recipe"]["trainer"]
    assert last["epoch"] + 1 == trainer["max_epochs"] == 4
    assert trainer["max_time"] == "00:00:05:00"
    assert main(call) == 0
    out = capsys.readouterr().out
    assert "Going on from" in out
    assert "10 minutes: " not in out

"""`vfm fit --trainer.minutes`: the training that a trial plans, its end in time, going on."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from vfm_runtime.errors import OptionError

from tests.tasks.tiny import CLI_VIT, stored
from vfm.cli import main, minutes
from vfm.cli.errors import UsageError
from vfm.cli.minutes import find_minutes, list_trainer_words
from vfm.data import ImageData
from vfm.training.optim import Optim
from vfm.training.planning import Plan, TimedTrial, plan_training


def make_trial(**changes: object) -> TimedTrial:
    trial = TimedTrial()
    trial.startup, trial.steps, trial.changes = 10.0, [1.0, 1.2, 1.1], [3.1]
    trial.validated, trial.epoch_steps, trial.epoch_validated = [0.5], 20, 8
    trial.enough_steps = 1000
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
    assert list_trainer_words(plan.list_trainer_options()) == [
        "--model.min_steps=0",
        "--trainer.max_steps=-1",
        f"--trainer.max_epochs={plan.epochs}",
        f"--trainer.check_val_every_n_epoch={plan.validate_every}",
        "--trainer.max_time=00:00:16:30",
    ]


def test_long_validations_are_few() -> None:
    plan = plan_training(make_trial(validated=[10.0]), 1000)
    assert plan.epochs / plan.validate_every * 80 <= 0.16 * 941
    unjudged = make_trial(epoch_validated=0, validated=[])
    assert plan_training(unjudged, 1000).epochs > 30
    (note,) = plan_training(unjudged, 28).notes
    assert note == (
        "There is no time for a whole epoch: 15 of its 20 steps, which see 75% of the 0 training images once. Give 0.2 "
        "more minutes for all."
    )


def test_epochs_of_one_step_are_planned() -> None:
    plan = plan_training(make_trial(steps=[], changes=[2.0], epoch_steps=1), 100)
    assert 25 <= plan.epochs <= 43


def test_too_little_time_says_how_much_would_do() -> None:
    message = (
        r"--trainer.minutes does not suffice for 10 of the 20 steps of an epoch, 1.10 s each, and a validation of 4 s. "
        "Give 0.4 more minutes for all of it, a smaller --model.image_size, or a smaller backbone."
    )
    with pytest.raises(OptionError, match=message):
        plan_training(make_trial(), 20)


def test_a_part_of_an_epoch_is_trained_where_there_is_no_time_for_it() -> None:
    plan = plan_training(make_trial(num_images=160, accumulated=2), 28)
    # Of 17.1 s, 2.5 s may be spent on validation, and the rest is for steps of 1.1 s.
    assert (plan.epochs, plan.steps) == (1, 13)
    assert plan.limits == {"limit_train_batches": 26, "limit_val_batches": 5}
    (note,) = plan.notes
    assert note == (
        "There is no time for a whole epoch: 13 of its 20 steps, which see 65% of the 160 training images once, and a "
        "validation on 62% of its images. Give 0.2 more minutes for all."
    )


def test_batches_are_smaller_where_there_are_few_steps() -> None:
    optim = Optim(lr=1e-3, backbone_factor=0.3, layer_decay=None)
    plan = plan_training(make_trial(batch_size=16, optim=optim), 1000)
    # 940 s are 855 steps of 16, which are 1,710 of 8.
    assert (plan.batch_size, plan.learning_rate) == (8, 0.000707)
    assert plan.steps == plan.epochs * 40
    assert plan.epochs == plan_training(make_trial(), 1000).epochs
    assert plan.notes[0].startswith(
        "Batches of 8 in place of 16, for more steps, at a learning rate of 0.00071"
    )
    # No batch gets smaller than 4, and none changes where there are steps enough.
    assert plan_training(make_trial(batch_size=16, optim=optim), 200).batch_size == 4
    assert plan_training(make_trial(batch_size=16, optim=optim), 2000).batch_size is None
    # A part of an epoch has the more batches, and so has the validation.
    part = plan_training(make_trial(batch_size=16, optim=optim), 28)
    assert part.steps == 53
    assert part.limits["limit_val_batches"] == 20


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


@pytest.mark.parametrize(("limit", "validated"), [("0", 0), ("0.5", 1)])
def test_the_trial_validates_no_more_than_the_training(
    limit: str,
    validated: int,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def plan(trial: TimedTrial, seconds: float) -> Plan:
        assert trial.epoch_validated == validated
        assert bool(trial.validated) == bool(validated)
        raise OptionError("Planned enough.")

    monkeypatch.setattr(minutes, "plan_training", plan)
    words = CLI_VIT | {
        "--trainer.limit_val_batches": limit,
        "--trainer.minutes": "10",
        "--trainer.default_root_dir": str(tmp_path),
    }
    assert main(["fit", *(word for pair in words.items() for word in pair)]) == 2
    assert "Planned enough." in capsys.readouterr().err


def test_a_training_ends_in_time_and_goes_on_by_the_same_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(trial: TimedTrial, seconds: float) -> Plan:
        # Of 13 steps, 3 an epoch, those that end the warm-up or begin an epoch are not like the others.
        assert (trial.epoch_steps, trial.epoch_validated) == (3, 2)
        assert (len(trial.steps), len(trial.changes), len(trial.validated)) == (6, 4, 5)
        assert 0 < seconds < 600
        assert (trial.batch_size, trial.num_images, trial.accumulated) == (16, 48, 1)
        return Plan(4, 2, 300.0, 24, 8, trial.optim.lr, notes=("Noted.",))

    monkeypatch.setattr(minutes, "plan_training", plan)
    words = CLI_VIT | {
        "--data.batch_size": "null",
        "--trainer.minutes": "10",
        "--trainer.default_root_dir": str(tmp_path),
        "--ckpt_path": "last",
    }
    call = ["fit", *(word for pair in words.items() for word in pair)]
    setup = ImageData.setup

    def warn_and_set_up(data: ImageData, stage: str) -> None:
        warnings.warn("Two images are alike.", stacklevel=1)
        setup(data, stage)

    monkeypatch.setattr(ImageData, "setup", warn_and_set_up)
    with pytest.warns(UserWarning, match="Two images are alike") as warned:
        assert main(call) == 0
    # The trial, which set up the same data, said nothing.
    assert [str(one.message) for one in warned].count("Two images are alike.") == 1
    out = capsys.readouterr().out
    assert "10 minutes: 4 epochs, 24 steps, a validation after each 2.\nNoted.\n" in out
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    last = stored(tmp_path / "0/checkpoints/last.ckpt")
    trainer = last["vfm"]["recipe"]["trainer"]
    assert last["epoch"] + 1 == trainer["max_epochs"] == 4
    assert trainer["max_time"] == "00:00:05:00"
    assert last["global_step"] == 24
    # The call is kept as it was, so that the same one goes on; what was planned stands with the model and the data.
    assert last["vfm"]["recipe"]["data"]["init_args"]["batch_size"] is None
    assert last["vfm"]["recipe"]["model"]["init_args"]["optim"]["lr"] is None
    assert last["vfm"]["data"]["spec"]["init_args"]["batch_size"] == 8
    assert last["vfm"]["model"]["init_args"]["optim"]["lr"] > 0
    assert main(call) == 0
    out = capsys.readouterr().out
    assert "Going on from" in out
    assert "10 minutes: " not in out

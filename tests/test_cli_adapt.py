"""What is said of wrong adaptations, devices and checkpoints on the command line."""

import pytest
import yaml

from tests.test_cli import check_message, place, words_of
from vfm.cli import main
from vfm.cli.resume import resolve

__all__ = ["place"]  # a fixture, used by its name

WRONG = [
    (
        "fit $R --trainer.accelerator gpu --trainer.devices 99",
        2,
        "needs 99 GPUs; this machine has",
        "Give --trainer.",
    ),
    ("fit $R --ckpt_path adapter.safetensors", 2, "is an adapter, without the backbone's weights"),
    ("test --ckpt_path last", 2, "there is no */checkpoints/last.ckpt in runs", "Train first"),
    ("fit $R --model.adapt lorra", 2, "--model.adapt is 'lorra'", "Did you mean 'lora'?"),
    ("fit $R --model.adapt lorra", 2, "Choices: full, linear, ln, lora, effort, partial, LoRA, "),
    ("fit $R --model.adapt LinearHead", 2, "there is no such Adaptation"),
    ("fit $R --model.adapt LoRA --model.adapt.r x", 2, "--model.adapt.r is 'x'. Expected a whole"),
    ("fit $R --model.adapt LoRA --model.adapt.rank 2", 2, "LoRA takes: r, alpha, dropout, targets"),
    ("fit $R --model.adapt LoRA --model.adapt.r 0", 2, "vfm: adapt.r is 0; it must be 1 or more"),
    ("fit $R --model.adapt lora --model.adapt.r 2", 2, "lora takes no arguments of its own"),
    ("fit $R --model.adapt.r 2", 2, "must be named before its arguments", "--model.adapt LoRA"),
    (
        "fit $R --model.adapt lora --model.adapt_options.targets [query]",
        2,
        "finds no layer in",
        "adapt_options.targets",
    ),
    ("fit $R --model.adapt effort --model.adapt_options.r 0", 2, "r is 0; it must be 1 or more"),
]


@pytest.mark.parametrize(("words", "status", "expected"), [(w, s, e) for w, s, *e in WRONG])
def test_wrong_call(words, status, expected, place, capsys):
    assert main(words_of(words)) == status
    check_message(capsys.readouterr(), expected)


def test_last_is_the_newest_checkpoint_of_the_folder_that_recipes_name(tmp_path, capsys):
    import os

    for number, age in ((0, 10), (1, 30), (10, 20)):
        path = tmp_path / "mine" / str(number) / "checkpoints" / "last.ckpt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    newest = str(tmp_path / "mine" / "0" / "checkpoints" / "last.ckpt")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"trainer: {{default_root_dir: {tmp_path / 'mine'}}}")
    recipes = [yaml.safe_load(recipe.read_text())]
    words = ["--ckpt_path=last", "--trainer.max_epochs=3"]
    found = resolve("fit", words, recipes, "runs", lambda path: [])
    assert found == ["--trainer.max_epochs=3", f"--ckpt_path={newest}"]
    assert f"Going on from {newest}" in capsys.readouterr().out
    typed = [*words, f"--trainer.default_root_dir={tmp_path / 'other'}"]
    assert resolve("fit", typed, recipes, "runs", lambda path: []) == typed[1:]
    assert "training starts from the beginning" in capsys.readouterr().out
    plain = ["--ckpt_path=x.ckpt"]
    assert resolve("fit", plain, recipes, "runs", lambda path: []) == plain

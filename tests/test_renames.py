"""Old names of arguments, attributes and classes go on working, each with a warning; options come in any order."""

import importlib
import inspect
import json
import subprocess
import sys

import pytest
import yaml
from torch import nn

from tests.test_cli import place, resolved, words_of
from vfm import BoxAugment, ClassificationTask, LinearHead, Optim, renames
from vfm.cli import main
from vfm.cli.words import join_values
from vfm.data import ImageData
from vfm.renames import update_class_paths
from vfm.spec import build

__all__ = ["place"]  # a fixture, used by its name

OLD_RECIPE = """
model:
  class_path: ClassificationTask
  init_args:
    backbone: test_vit
    pretrained: false
    image_size: 32
    probe_first: true
    optim: {warmup: 0.25, clip: 2.0}
data:
  class_path: SyntheticScenes
  init_args: {augment: {calm: 0.5, colours: strong}}
"""


def find_class(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", renames.KEYS)
def test_the_new_names_exist_and_the_old_ones_do_not(path):
    cls = find_class(path)
    names = {*inspect.signature(cls).parameters, *dir(cls)}
    for old, new in renames.KEYS[path].items():
        assert new in names
        assert old not in names


@pytest.mark.parametrize("path", sorted({*renames.CLASSES.values()}))
def test_the_new_paths_exist(path):
    assert find_class(path if "." in path else f"vfm.{path}")


def test_python_takes_old_names():
    with pytest.warns(DeprecationWarning, match="Optim's clip is now max_grad_norm"):
        assert Optim(clip=0.5, warmup_ratio=0.1).max_grad_norm == 0.5
    with pytest.warns(DeprecationWarning, match="BoxAugment's calm is now close_mosaic"):
        assert BoxAugment(calm=0.5) == BoxAugment(close_mosaic=0.5)
    with pytest.raises(TypeError, match="clip"):
        Optim(clip=0.5, max_grad_norm=0.5)
    with pytest.warns(
        DeprecationWarning, match="ClassificationTask's probe_first is now lp_ft"
    ) as caught:
        task = ClassificationTask("test_vit", pretrained=False, probe_first=True)
    assert caught[0].filename == __file__
    assert task.spec["init_args"]["lp_ft"] is True


def test_a_spec_holds_old_names():
    spec = ClassificationTask("test_vit", pretrained=False).spec
    del spec["init_args"]["lp_ft"]
    spec["init_args"] |= {"probe_first": True, "optim": {"lr": 1.0, "final": 0.5}}
    with pytest.warns(DeprecationWarning, match="is now") as caught:
        task = build(spec, base=ClassificationTask)
    assert {str(warning.message) for warning in caught} == {
        "ClassificationTask's probe_first is now lp_ft.",
        "Optim's final is now min_lr_ratio.",
    }
    assert task.optim == Optim(lr=1.0, min_lr_ratio=0.5)


def test_a_name_of_ones_own_stays():
    class Mine(ClassificationTask):
        def __init__(self, backbone: str, probe_first: str) -> None:
            super().__init__(backbone, pretrained=False)
            self.mine = probe_first

    assert Mine("test_vit", probe_first="x").mine == "x"


def test_a_head_may_have_old_attributes():
    with pytest.warns(DeprecationWarning, match=r"Old\.reads is now uses"):

        class Old(LinearHead):
            reads = ("tokens",)

    assert Old.uses == ("tokens",)
    assert isinstance(Old(), nn.Module)


def test_recipes_and_options_hold_old_names(place, capsys):
    (place / "old.yaml").write_text(OLD_RECIPE)
    with pytest.warns(DeprecationWarning, match="is now"):
        config = resolved(words_of("fit --config old.yaml --model.optim.freeze 0.5"), capsys)
    model = config["model"]["init_args"]
    assert model["lp_ft"] is True
    assert model["optim"]["warmup_ratio"] == 0.25
    assert model["optim"]["max_grad_norm"] == 2.0
    assert model["optim"]["freeze_ratio"] == 0.5
    assert config["data"]["init_args"]["augment"]["close_mosaic"] == 0.5
    assert config["data"]["init_args"]["augment"]["colors"] == "strong"
    words = words_of(
        "fit $R --model.optim '{clip: 3.0}' --data DeepfakeData --data.root x --data.ties video"
    )
    with pytest.warns(DeprecationWarning, match="is now"):
        config = resolved(words, capsys)
    assert config["model"]["init_args"]["optim"]["max_grad_norm"] == 3.0
    assert config["data"]["init_args"]["group_by"] == "video"


@pytest.mark.slow
def test_a_fresh_process_knows_short_names_and_old_ones(place):
    """Where nothing else has imported the classes that a recipe names."""
    (place / "old.yaml").write_text(
        "model: {class_path: DeepfakeTask, init_args: {backbone: test_vit, pretrained: false}}\n"
        "data: {class_path: FakesData, init_args: {root: x, ties: video}}\n"
    )
    code = "import sys; from vfm.cli import main; sys.exit(main(sys.argv[1:]))"
    words = [sys.executable, "-c", code, "fit", "--config", "old.yaml", "--print_config"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "class_path: vfm.DeepfakeTask" in done.stdout
    assert "group_by: video" in done.stdout


def test_flags_and_recipes_come_in_any_order(place, capsys):
    usual = resolved(words_of("fit $R --data.num_images 8 --trainer.max_epochs 7"), capsys)
    assert usual["data"]["init_args"]["num_images"] == 8
    words = words_of("fit --trainer.max_epochs 7 --data.num_images 8 $R")
    assert resolved(words, capsys) == usual
    words = words_of("fit --model.head.dropout 0.5 $R --model.head LinearHead")
    head = resolved(words, capsys)["model"]["init_args"]["head"]["init_args"]
    assert head["dropout"] == 0.5
    config = resolved(words_of("fit --data.seed 3 --data DigitsData $M"), capsys)
    assert config["data"]["init_args"]["seed"] == 3


def test_dashes_are_underscores(place, capsys):
    usual = resolved(words_of("fit $R --data.num_images 8 --trainer.max_epochs 7"), capsys)
    assert resolved(words_of("fit $R --data.num-images 8 --trainer.max-epochs=7"), capsys) == usual
    assert main(["models", "test-vit", "--json"]) == 2  # values are left alone
    assert "'test-vit'" in capsys.readouterr().err


def test_every_command_takes_dashes_and_underscores(place, capsys):
    for word in ("--max-drop", "--max_drop"):
        assert main(["export", "a.ckpt", "--images", "x", word, "much"]) == 2
        assert "--max_drop is 'much'" in capsys.readouterr().err
    for word in ("--max-batch", "--max_batch"):
        assert main(["serve", "x=nowhere", word, "many"]) == 2
        assert "--max-batch: invalid int" in capsys.readouterr().err


def test_options_are_joined_to_their_values():
    words = ["a", "--max-drop", "-1", "-o", "x-y", "--json", "b", "--dry-run", "false", "--last"]
    assert join_values(words, switches={"--json", "--dry_run"}, short={"-o": "--out"}) == [
        *("a", "--max_drop=-1", "--out=x-y", "--json=true", "b", "--dry_run=false", "--last"),
    ]


def test_a_printed_recipe_has_new_names_alone(place, capsys):
    printed = json.dumps(resolved(words_of("fit $R"), capsys))
    for old in ("probe_first", '"clip"', '"warmup"', '"freeze"', '"final"'):
        assert old not in printed
    assert yaml.safe_load(printed)


@pytest.mark.parametrize("home", ["vfm.deepfake.data.procedural", "vfm.data.fakes.procedural"])
def test_specs_of_every_earlier_layout_are_read(home):
    spec = {"class_path": f"{home}.SyntheticFakes", "init_args": {"num_identities": 8}}
    with pytest.warns(DeprecationWarning, match="is now vfm.deepfake.data.synthetic"):
        data = build(update_class_paths(spec), base=ImageData)
    assert type(data).__name__ == "SyntheticDeepfakes"

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.tiny import VIT as TINY
from vfm import ClassificationTask, DetectionTask
from vfm.cli import main
from vfm.deepfake.task import DeepfakeTask
from vfm.models.adapt import AdaptOptions
from vfm.spec import build
from vfm.tasks import BaseTask
from vfm.tasks.options import TASK_DEFAULTS, TaskOptions
from vfm.training.optim import Optim

VIT = "vit_tiny_patch16_224"
TASKS = [ClassificationTask, DetectionTask, DeepfakeTask]


def test_every_option_has_a_type_and_a_default():
    assert TASK_DEFAULTS.keys() == TaskOptions.__annotations__.keys()


@pytest.mark.parametrize("kind", TASKS)
def test_each_task_shows_all_options_with_its_own_defaults(kind):
    arguments = inspect.signature(kind).parameters
    defaults = {name: arguments[name].default for name in TASK_DEFAULTS}
    assert defaults == dict(kind.option_defaults)
    assert "pretrained: Fetch the weights" in inspect.getdoc(kind.__init__)


def test_defaults_differ_as_they_did():
    default = {kind: inspect.signature(kind).parameters for kind in TASKS}
    assert [default[kind]["adapt"].default for kind in TASKS] == ["full", "full", "ln"]
    assert [default[kind]["fit"].default for kind in TASKS] == [None, "squash", "squash"]
    assert [default[kind]["optim"].default.lr for kind in TASKS] == [None, 5e-4, 3e-4]
    assert default[DetectionTask]["optim"].default.ema == 0.998
    assert default[DeepfakeTask]["optim"].default.weight_decay == 0.0


@pytest.mark.parametrize("kind", TASKS)
def test_options_are_recorded_with_their_defaults_and_rebuilt(kind):
    options = AdaptOptions(r=2)
    task = kind(
        VIT,
        pretrained=False,
        adapt="lora",
        adapt_options=options,
        image_size=32,
        backbone_args=TINY,
    )
    arguments = task.spec["init_args"]
    assert arguments.keys() >= TASK_DEFAULTS.keys()
    assert arguments["adapt_options"] == dataclasses.asdict(options)
    assert arguments["optim"] == dataclasses.asdict(kind.option_defaults["optim"]) | {
        "betas": [0.9, 0.999]
    }
    again = build(task.spec, base=BaseTask)
    assert again.spec == task.spec
    assert again.optim == task.optim


def test_an_unknown_option_fails_as_python_does():
    with pytest.raises(TypeError, match="nonsense"):
        ClassificationTask(VIT, pretrained=False, nonsense=1)


class Frozen(ClassificationTask):
    """A task of a user, with a default of its own and what else comes passed on."""

    def __init__(self, backbone: str, **kwargs: Any) -> None:
        super().__init__(backbone, **{"optim": Optim(lr=0.5), **kwargs})


def test_a_derived_task_may_pass_all_else_on():
    task = Frozen(VIT, pretrained=False, patience=3)
    assert task.optim.lr == 0.5
    assert task.spec["init_args"] == {"backbone": VIT, "pretrained": False, "patience": 3}


@pytest.mark.parametrize("name", ["ClassificationTask", "DetectionTask", "DeepfakeTask"])
def test_the_command_line_shows_types_defaults_and_help(name, capsys):
    assert main(["fit", "--model.help", name]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "--model.pretrained {true,false} Fetch the weights that timm names for the backbone. (type: bool, default: "
        "True)",
        "A local file of backbone weights, in place of timm's: .safetensors, .pth, or a checkpoint of vfm. (type: Path "
        "| null, default: null)",
        "--model.adapt_options.r R (type: int | null, default: null)",
        "Rate of stochastic depth in the backbone. (type: float, default: 0.0)",
    ):
        assert part in text


def test_the_command_line_refuses_a_wrong_type(capsys):
    words = ["--model", "ClassificationTask", "--model.backbone", VIT, "--model.drop_path", "much"]
    code = main(["fit", *words, "--data", "FolderData", "--data.root", str(Path.cwd())])
    assert code != 0
    assert "--model.drop_path is 'much'. Expected a number" in capsys.readouterr().err

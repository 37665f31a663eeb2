"""The command line: what it does, and what it says when it is called wrongly."""

import csv
import json
import shlex
import subprocess
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its log keeps the stderr of its import
import pytest
import torch
import yaml

from vfm import __version__
from vfm.cli import COMMANDS, TRAINING, main
from vfm.cli.command import run as run_function
from vfm.cli.errors import UsageError

# $M is a model, $D data, $R a whole recipe.
SHORT = {
    "$M": "--model ClassificationTask --model.backbone test_vit --model.pretrained false",
    "$D": "--data SyntheticData --data.num_images 24",
    "$R": "--config ok.yaml",
}
QUIET = shlex.split(
    "--trainer.accelerator cpu --trainer.enable_progress_bar false "
    "--trainer.enable_model_summary false"
)
RECIPE = """
model:
  class_path: ClassificationTask
  init_args: {backbone: test_vit, pretrained: false, image_size: 32}
data:
  class_path: SyntheticData
  init_args: {num_images: 24}
trainer: {max_epochs: 3}
"""
HEAD = """
from torch import nn
from vfm import ClassificationHead

class Mine(ClassificationHead):
    def build(self, info, num_labels):
        self.linear = nn.Linear(info.width, num_labels)

    def forward(self, features):
        return {"logits": self.linear(features.pooled)}
"""
CHECKPOINT = "runs/0/checkpoints/best.ckpt"

# The words after `vfm`, exit status, and what the message holds: the value given, the near choice.
WRONG = [
    ("fti", 2, "'fti'", "Did you mean 'fit'?"),
    ("exprt", 2, "'exprt'", "Did you mean 'export'?"),
    (
        "nonsense",
        2,
        "'nonsense'",
        "Commands: fit, validate, test, predict, models, tune, pretrain, faces, doctor, calibrate, audit, "
        "embed, classify, search, index, duplicates, cluster, select, map, cost train, cost serve, cost compare, "
        "demo, export",
    ),
    ("fit", 2, "--model", "--data", "--config"),
    ("validate", 2, "--model", "--data"),
    ("fit $M", 2, "Missing: --data", "--data FolderData"),
    ("fit $D", 2, "Missing: --model", "--model ClassificationTask"),
    ("fit --modle.backbone x", 2, "'modle.backbone'", "'model'"),
    ("fit $R --trianer.max_epochs 1", 2, "'trianer.max_epochs'", "'trainer.max_epochs'"),
    ("fit $R --trainer.max_epoch 1", 2, "'trainer.max_epoch'", "'trainer.max_epochs'"),
    ("fit $R --model.backbon x", 2, "'model.backbon'", "'backbone'"),
    ("fit $R --model.optim.lrr 1", 2, "'model.optim.lrr'", "'optim.lr'"),
    ("fit $R --model.head LinearHead --model.head.dropot 1", 2, "head.dropot'", "'dropout'"),
    ("fit $R --data.batchsize 4", 2, "'data.batchsize'", "'batch_size'"),
    ("fit --conf ok.yaml", 2, "'conf'", "'config'"),
    ("fit $R --trainer.max_ep 1", 2, "'trainer.max_ep'", "'trainer.max_epochs'"),
    ("fit $R extra", 2, "'extra'", "Options start with --"),
    ("fit $R -x 1", 2, "'-x'"),
    ("fit $R --trainer.max_epochs", 2, "--trainer.max_epochs", "expected one argument"),
    ("fit --config", 2, "--config", "expected one argument"),
    ("fit $R --trainer.max_epochs many", 2, "'many'", "a whole number"),
    ("fit $R --model.image_size big", 2, "--model.image_size is 'big'", "a whole number"),
    ("fit $R --model.pretrained maybe", 2, "'maybe'", "true or false"),
    ("fit $R --model.optim.lr fast", 2, "--model.optim.lr is 'fast'", "a number"),
    ("fit $R --data.batch_size 4.5", 2, "--data.batch_size is '4.5'", "a whole number"),
    ("fit $R --seed_everything x", 2, "--seed_everything is 'x'", "a whole number"),
    ("fit $R --model.fit corp", 2, "'corp'", "Did you mean 'crop'?"),
    ("fit $R --data.augment standrd", 2, "'standrd'", "Did you mean 'standard'?"),
    ("fit $R --trainer.precision bf16-mixd", 2, "'bf16-mixd'", "Did you mean 'bf16-mixed'"),
    ("fit $R --trainer.callbacks Nope", 2, "--trainer.callbacks", "Nope"),
    ("fit $D --model ClasificationTask", 2, "'ClasificationTask'", "'ClassificationTask'"),
    ("fit $M --data FolderDta", 2, "'FolderDta'", "Did you mean 'FolderData'?"),
    ("fit $R --model.head LinerHead", 2, "'LinerHead'", "Did you mean 'LinearHead'"),
    ("fit $R --model.head torch.nn.Linear", 2, "'torch.nn.Linear'", "It is no ClassificationHead"),
    ("fit $R --model.head mypkgg.Head", 2, "'mypkgg.Head'", "No module named 'mypkgg'"),
    ("fit $R --model.head vfm.models.heads.Nope", 2, "'vfm.models.heads.Nope'", "LinearHead"),
    ("fit $R --model.head ClassificationHead", 2, "--model.head", "Choices: LinearHead"),
    ("fit $R --model.head.dropout 0.1", 2, "--model.head must be named", "LinearHead"),
    ("fit $D --model.backbone test_vit", 2, "--model must be named", "ClassificationTask"),
    ("fit $M --data.root x", 2, "--data must be named", "FolderData"),
    ("fit $M --data FolderData", 2, "FolderData needs --data.root"),
    ("fit $M --data FolderData --data.root nowhere", 1, "folder nowhere does not exist"),
    ("fit --config nowhere.yaml", 2, "nowhere.yaml", "recipes/debug/digits.yaml"),
    ("fit $R --ckpt_path nowhere.ckpt", 1, "no checkpoint nowhere.ckpt", "last.ckpt"),
    ("test --ckpt_path ok.yaml", 1, "ok.yaml", "cannot be read as a checkpoint"),
    ("fit $R --model.weights nowhere.pth", 2, "no weights file nowhere.pth", ".safetensors"),
    ("fit $R --model.optim.lr=-1", 2, "optim.lr is -1", "above 0", "--model.optim.lr"),
    ("fit $R --data.batch_size 0", 2, "batch_size is 0", "1 or more"),
    ("fit $R --data.num_workers=-1", 2, "num_workers is -1", "0 or more"),
    ("fit $R --data.num_classes 1", 2, "num_classes is 1", "2 or more"),
    ("fit $R --trainer.accelerator gpuu", 2, "'gpuu'", "cuda"),
    ("fit $R --model.backbone test_vti", 2, "'test_vti'", "test_vit"),
    ("fit $R --model.backbone vit_tiny_patch16_224.nope", 2, "'nope'", "augreg_in21k"),
    ("fit $R --model.backbone_args '{dept: 2}'", 2, "'dept'", "--model.backbone_args"),
    (
        "fit $R --model.pretrained true",
        2,
        "The weights of 'test_vit' are not on this machine",
        "--model.weights",
    ),
    ("test $R --trainer.accelerator cpu", 1, "has not been trained", "--ckpt_path"),
    ("export", 2, "Missing: checkpoints, --images"),
    ("export a.ckpt", 2, "Missing: --images"),
    ("export a.ckpt --images x", 1, "no folder x", "--images"),
    ("export a.ckpt --images x --imgs y", 2, "'imgs'", "Did you mean 'images'?"),
    ("export a.ckpt --images x --opset new", 2, "--opset is 'new'", "a whole number"),
    ("demo --epoch 1", 2, "'epoch'", "Did you mean 'epochs'?"),
    ("demo here", 2, "'here'", "Options start with --"),
    ("demo -o", 2, "--out", "expected one argument"),
]
WRONG_YAML = [
    ("model: [", "bad.yaml is not valid YAML"),
    ("just words", "just words"),
    ("modle: {class_path: ClassificationTask}", "modle", "'model'"),
    ("trainer: {max_epoch: 1}", "'trainer.max_epoch'", "'trainer.max_epochs'"),
    ("trainer: {max_epochs: many}", "--trainer.max_epochs is 'many'"),
    ("model: {init_args: {backbon: x}}", "'model.backbon'", "'backbone'"),
    ("model: {init_args: {optim: {lrr: 1}}}", "'model.optim.lrr'", "'optim.lr'"),
    ("model: {init_args: {optim: {lr: -1}}}", "optim.lr is -1", "above 0"),
    ("model: {init_args: {fit: corp}}", "'corp'", "'crop'"),
    (
        "model: {init_args: {head: {class_path: LinearHead, init_args: {dropot: 1}}}}",
        "dropot",
        "'dropout'",
    ),
    ("model: {init_args: {head: {class_path: LinerHead}}}", "'LinerHead'", "'LinearHead'"),
    ("data: {class_path: FolderDta}", "'FolderDta'", "'FolderData'"),
    ("data: {init_args: {batchsize: 4}}", "'data.batchsize'", "'batch_size'"),
]


def words_of(text):
    for short, whole in SHORT.items():
        text = text.replace(short, whole)
    return shlex.split(text)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder with a recipe; what main adds to the import path is taken back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "ok.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A working folder with two runs, and a third one whose head is not part of vfm."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "ok.yaml").write_text(RECIPE)
    (folder / "foreign_head.py").write_text(HEAD)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        words = ["fit", "--config", "ok.yaml", "--trainer.max_epochs", "1", *QUIET]
        assert main([*words, "--trainer.accumulate_grad_batches", "2"]) == 0
        assert main(words) == 0
        assert main([*words, "--model.head", "foreign_head.Mine"]) == 0
    sys.modules.pop("foreign_head")
    return folder


@pytest.fixture
def at_trained(trained, monkeypatch):
    monkeypatch.chdir(trained)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return trained


def check_message(captured, expected):
    message = captured.err[captured.err.index("vfm: ") :]
    assert len(message.strip().splitlines()) <= 10
    for text in expected:
        assert text in message
    said = captured.out + captured.err
    for text in ("usage:", "Traceback", "Union subtypes", "NestedArg"):
        assert text not in said


@pytest.mark.parametrize(("words", "status", "expected"), [(w, s, e) for w, s, *e in WRONG])
def test_wrong_call(words, status, expected, place, capsys):
    assert main(words_of(words)) == status
    check_message(capsys.readouterr(), expected)


@pytest.mark.parametrize(("text", "expected"), [(t, e) for t, *e in WRONG_YAML])
def test_wrong_recipe(text, expected, place, capsys):
    (place / "bad.yaml").write_text(text)
    assert main(["fit", "--config", "ok.yaml", "--config", "bad.yaml"]) == 2
    check_message(capsys.readouterr(), expected)


def test_recipe_without_class(place, capsys):
    (place / "bad.yaml").write_text("model: {init_args: {backbone: test_vit}}")
    assert main(words_of("fit --config bad.yaml $D")) == 2
    check_message(capsys.readouterr(), ["--model must be named", "ClassificationTask"])


def test_debug_raises(place):
    with pytest.raises(UsageError, match=r"'trainer\.max_epoch'"):
        main(words_of("fit $R --trainer.max_epoch 1 --debug"))
    with pytest.raises(UsageError, match="no command 'fti'"):
        main(["fti", "--debug"])


def test_help_and_version(capsys):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        said = capsys.readouterr().out
        for name in [*TRAINING, *COMMANDS]:
            assert f"\n  {name} " in said
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vfm {__version__}\n"


@pytest.mark.parametrize("command", ["", "duplicates", "cluster", "select", "map", "index"])
def test_help_imports_nothing_heavy(command):
    # A store is searched for duplicates and drawn without torch, which takes seconds and hundreds of megabytes.
    words = [*command.split(), "--help"]
    code = (
        "import sys; from vfm.cli import main\n"
        f"assert main({words}) == 0\n"
        "assert not {'torch', 'lightning', 'timm'} & set(sys.modules)\n"
        f"assert {command!r} or 'jsonargparse' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: vfm {command}" in done.stdout


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("fit", ["--model", "--data", "--trainer.max_epochs", "--config"]),
        ("export", ["--images", "--opset", "--overwrite", "ONNX bundle"]),
        ("demo", ["--epochs", "--seed", "--out"]),
    ],
)
def test_help_of_a_command(command, options, capsys):
    assert main([command, "--help"]) == 0
    said = capsys.readouterr().out
    for option in options:
        assert option in said


def resolved(words, capsys):
    assert main([*words, "--print_config"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_later_recipes_and_options_win(place, capsys):
    (place / "more.yaml").write_text("trainer: {max_epochs: 5}\ndata: {init_args: {seed: 4}}")
    words = ["fit", "--config", "ok.yaml", "--config", "more.yaml"]
    config = resolved(words, capsys)
    assert config["trainer"]["max_epochs"] == 5
    assert config["data"]["init_args"]["seed"] == 4
    assert config["data"]["init_args"]["num_images"] == 24
    config = resolved([*words, "--trainer.max_epochs", "7"], capsys)
    assert config["trainer"]["max_epochs"] == 7
    words = ["fit", "--config", "more.yaml", "--config", "ok.yaml"]
    (place / "more.yaml").write_text("trainer: {max_epochs: 5}")
    assert resolved(words, capsys)["trainer"]["max_epochs"] == 3


def test_short_overrides(place, capsys):
    words = "fit $R --model.backbone test_efficientnet --model.head LinearHead "
    words += "--model.head.dropout 0.1 --model.optim.lr 0.5 --data.num_images 48"
    config = resolved(words_of(words), capsys)
    model = config["model"]["init_args"]
    assert model["backbone"] == "test_efficientnet"
    assert model["head"]["class_path"].endswith(".LinearHead")
    head = model["head"]["init_args"]
    assert (head["dropout"], head["reads"]) == (0.1, "pooled")
    assert model["optim"]["lr"] == 0.5
    assert model["image_size"] == 32
    assert config["data"]["init_args"]["num_images"] == 48


def test_printed_config_is_a_recipe(place, capsys):
    words = words_of("fit $R --model.optim.warmup_ratio 0.25 --model.head LinearHead")
    printed = resolved(words, capsys)
    (place / "printed.yaml").write_text(yaml.safe_dump(printed))
    words = ["fit", "--config", "printed.yaml"]
    assert resolved(words, capsys) == printed
    assert main([*words, "--trainer.fast_dev_run", "true", *QUIET]) == 0


def test_fit_writes_a_run_each(trained):
    assert sorted(p.name for p in (trained / "runs").iterdir() if p.is_dir())[:3] == list("012")
    for number, accumulate in ((0, 2), (1, 1)):
        run = trained / "runs" / str(number)
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["trainer"]["accumulate_grad_batches"] == accumulate
        assert config["model"]["init_args"]["backbone"] == "test_vit"
        with (run / "metrics.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert any(row["val/accuracy"] for row in rows)
        assert len(list(run.glob("events.out.tfevents.*"))) == 1
        assert (run / "checkpoints" / "best.ckpt").is_file()
        assert (run / "checkpoints" / "last.ckpt").is_file()


def test_test_needs_only_the_checkpoint(at_trained, capsys):
    assert main(["test", "--ckpt_path", CHECKPOINT, *QUIET]) == 0
    folder = at_trained / Path(CHECKPOINT).parent
    results = json.loads((folder / "results.json").read_text())["test"]
    for name in ("accuracy", "macro_f1"):
        value = results[name]
        assert 0 <= value["low"] <= value["value"] <= value["high"] <= 1
    assert results["num_samples"] == sum(map(sum, results["confusion_matrix"])) > 0
    assert (folder / "confusion_matrix_test.png").read_bytes().startswith(b"\x89PNG")
    assert main(["validate", f"--ckpt_path={CHECKPOINT}", *QUIET]) == 0
    both = json.loads((folder / "results.json").read_text())
    assert both["test"] == results
    assert (folder / "confusion_matrix_val.png").is_file()
    with (folder.parent / "metrics.csv").open() as file:
        (logged,) = [row["val/accuracy"] for row in csv.DictReader(file) if row["val/accuracy"]]
    assert both["val"]["accuracy"]["value"] == pytest.approx(float(logged))


def test_predict_needs_only_the_checkpoint(at_trained):
    assert main(["predict", "--ckpt_path", CHECKPOINT, *QUIET]) == 0
    with (at_trained / "runs" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 0
    assert {row["label"] for row in rows} <= {f"class_{k}" for k in range(4)}
    assert all(0.25 <= float(row["score"]) <= 1 and not row["error"] for row in rows)


def test_fit_resumes_with_the_stored_recipe(at_trained):
    words = ["--ckpt_path", "runs/0/checkpoints/last.ckpt", "--trainer.max_epochs", "2"]
    before = {p.name for p in (at_trained / "runs").iterdir()}
    assert main(["fit", *words]) == 0
    (new,) = {p.name for p in (at_trained / "runs").iterdir() if p.is_dir()} - before
    run = at_trained / "runs" / new
    config, first = (
        yaml.safe_load((at_trained / "runs" / n / "config.yaml").read_text()) for n in (new, "0")
    )
    assert config["trainer"] == first["trainer"] | {"max_epochs": 2}
    assert config["data"] == first["data"] or config["data"]["init_args"]["num_images"] == 24
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert content["epoch"] == 1
    with (run / "metrics.csv").open() as file:
        assert {row["epoch"] for row in csv.DictReader(file)} == {"1"}


def test_foreign_code_needs_trust(at_trained, capsys):
    words = ["test", "--ckpt_path", "runs/2/checkpoints/best.ckpt", *QUIET]
    assert main(words) == 1
    check_message(capsys.readouterr(), ["'foreign_head.Mine'", "--trust foreign_head"])
    assert "foreign_head" not in sys.modules
    assert main([*words, "--trust", "foreign_head"]) == 0
    assert "foreign_head" in sys.modules


def test_export_takes_trust_as_the_message_says(at_trained, photos, capsys):
    words = ["export", "runs/2/checkpoints/best.ckpt", "--images", str(photos), "-o", "bundle"]
    assert main(words) == 1
    check_message(capsys.readouterr(), ["'foreign_head.Mine'", "--trust foreign_head"])
    assert main([*words, "--trust", "foreign_head"]) == 0, capsys.readouterr().err


def test_function_as_a_command(tmp_path):
    calls = []

    def job(source: Path, *, out: Path = Path("here"), count: int = 3, sure: bool = False) -> None:
        """Do it."""
        calls.append((source, out, count, sure))

    run_function("job", job, ["a.txt"])
    run_function("job", job, ["a.txt", "-o", "there", "--count", "4", "--sure", "true"])
    run_function("job", job, ["--count=5", "b.txt"])
    assert calls == [
        (Path("a.txt"), Path("here"), 3, False),
        (Path("a.txt"), Path("there"), 4, True),
        (Path("b.txt"), Path("here"), 5, False),
    ]
    for words, text in [
        ([], "Missing: source"),
        (["a", "--cuont", "4"], "'cuont'. Did you mean 'count'?"),
        (["a", "--coun", "4"], "'coun'. Did you mean 'count'?"),
        (["a", "--count", "four"], "--count is 'four'. Expected a whole number"),
        (["a", "b"], "'b'"),
    ]:
        with pytest.raises(UsageError, match=text):
            run_function("job", job, words)
    assert len(calls) == 3

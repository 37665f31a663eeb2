"""Bundles, checkpoints, an adapter and recipes of version 0.1.0 go on working; tests/fixtures/make.py made them."""

import csv
import json
import re
import shlex
import shutil
import tarfile
from math import isfinite
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its log keeps the stderr of its import
import pytest
import torch
import vfm_runtime
from vfm_runtime.cli import main as runtime

import vfm
from tests.fixtures.helpers import PRECISIONS, ask, ask_one, write_data
from vfm.cli import main

FIXTURES = Path(__file__).parent / "fixtures"
RECIPES = FIXTURES / "recipes_0_1"
ANSWERS = json.loads((FIXTURES / "answers.json").read_text(encoding="utf-8"))
CHECKPOINTS = tuple(ANSWERS["checkpoints"])
LAST = "0/checkpoints/last.ckpt"
DATA = {"classification": "--data.root data/colors", "multilabel": "--data.root data"}
"""Where the images of a checkpoint lie now; those of the others are drawn in memory."""
NAMES = sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.yaml"))
SOON = (
    "classification/lora.yaml",
    "classification/lp_ft.yaml",
    "classification/multilabel.yaml",
    "cluster/fsdp2.yaml",
    "data/dfdc.yaml",
    "data/shards.yaml",
    "deepfake/ln_paired.yaml",
    "detection/finetune.yaml",
)
"""Recipes that are read in every run of the tests; together they name most of what recipes can."""
QUIET = shlex.split("--trainer.enable_progress_bar false --trainer.enable_model_summary false")


def later(name):
    return pytest.param(name, marks=pytest.mark.slow)


def unpack(kind, name, folder):
    with tarfile.open(FIXTURES / kind / f"{name}.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    root = tmp_path_factory.mktemp("old")
    for name in PRECISIONS:
        unpack("bundles", name, root)
    return root / "bundles"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("drawn") / "data")


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    return tmp_path


def require_alike(found, expected, where="answer"):
    """Everything that was answered then is answered now; there may be more."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            require_alike(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            require_alike(one, other, f"{where}[{number}]")
    elif isinstance(expected, float):
        # Pixels, logits and distances are larger than scores, and as much less exact.
        tolerance = 1e-4 if where.endswith("score") else 1e-3
        assert found == pytest.approx(expected, abs=tolerance, rel=tolerance), where
    else:
        assert found == expected, where


def test_fixtures_are_small():
    sizes = [path.stat().st_size for path in FIXTURES.rglob("*") if path.suffix in (".xz", ".json")]
    assert max(sizes) < 500_000
    assert sum(sizes) < 2_000_000


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_bundle_gives_the_answers_of_then(name, bundles):
    model = vfm_runtime.load(bundles / name, device="cpu", precision="fp32")
    require_alike(ask(model, bundles / name / "golden"), ANSWERS["bundles"][name])


@pytest.mark.parametrize("name", PRECISIONS)
def test_a_bundle_passes_its_check_in_every_precision(name, bundles, capsys):
    assert runtime(["check", str(bundles / name), "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for precision in PRECISIONS[name]:
        assert re.search(rf"^OK: \d+ golden answers, {precision} on cpu$", said, re.MULTILINE)
    assert runtime(["info", str(bundles / name), "--device", "cpu"]) == 0


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_gives_the_answers_of_then(name, bundles, tmp_path):
    model = vfm.load(unpack("checkpoints", name, tmp_path) / name / LAST, device="cpu")
    found = ask(model, bundles / name / "golden")
    require_alike(found, ANSWERS["checkpoints"][name]["answers"])


def test_an_adapter_gives_the_answers_of_then(bundles, tmp_path):
    pytest.importorskip("peft")
    unpack("adapters", "lora", tmp_path)
    adapter = tmp_path / "lora/0/checkpoints/adapter.safetensors"
    model = vfm.load(adapter, base=tmp_path / "backbone.safetensors", device="cpu")
    found = ask(model, bundles / "classification/golden")
    require_alike(found, ANSWERS["adapters"]["lora"])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_training_goes_on_in_mid_epoch(name, data, place):
    """From the stored step to the end, on the images and splits of then."""
    unpack("checkpoints", name, place)
    (place / "data").symlink_to(data, target_is_directory=True)
    before = torch.load(Path(name, LAST), weights_only=True)
    assert before["global_step"] == ANSWERS["checkpoints"][name]["global_step"]
    words = ["fit", "--ckpt_path", f"{name}/{LAST}", *shlex.split(DATA.get(name, "")), *QUIET]
    assert main(words) == 0
    run = Path(name, "1")
    with (run / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows if row["train/loss_step"]]
    assert steps[0] == before["global_step"]  # the first step of all is 0
    assert {int(row["epoch"]) for row in rows if row["epoch"]} == {before["epoch"]}
    assert all(isfinite(float(row["train/loss_step"])) for row in rows if row["train/loss_step"])
    after = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert after["global_step"] == steps[-1] + 1 > before["global_step"]
    assert all(value.isfinite().all() for value in after["state_dict"].values())
    old, new = before["vfm"]["data"], after["vfm"]["data"]
    if name == "deepfake":  # its faces are drawn, and another painter draws them now
        described = new["splits"] | {key: old["splits"][key] for key in ("data", "fingerprint")}
        assert described == old["splits"]
    else:
        assert new["fingerprint"] == old["fingerprint"]


@pytest.mark.parametrize("name", map(later, CHECKPOINTS))
def test_a_checkpoint_is_exported_anew(name, bundles, place):
    unpack("checkpoints", name, place)
    checkpoint, images = f"{name}/{LAST}", bundles / name / "golden"
    assert (
        main(["export", checkpoint, "--images", str(images), "-o", "new", "--num_images", "3"]) == 0
    )
    assert runtime(["check", "new", "--device", "cpu"]) == 0
    new, old = vfm_runtime.load("new", device="cpu"), vfm.load(checkpoint, device="cpu")
    path = images / "000.png"
    require_alike(ask_one(new, path), ask_one(old, path))


def command(path):
    """The words after `vfm` of the first training, or of the test, in a recipe's header."""
    text = path.read_text(encoding="utf-8")
    return shlex.split(re.search(r"^#\s+vfm ((?:fit|test) .+)$", text, re.MULTILINE)[1])


@pytest.mark.parametrize("name", [one if one in SOON else later(one) for one in NAMES])
def test_a_recipe_is_understood(name, place, capsys):
    shutil.copytree(RECIPES, place / "recipes")
    words = command(RECIPES / name)
    if words[0] == "test":
        # It names data alone, and a checkpoint that is not here.
        words = ["fit", "--config", "recipes/debug/deepfake.yaml", "--config", f"recipes/{name}"]
    assert main([*words, "--print_config"]) == 0
    assert "class_path" in capsys.readouterr().out

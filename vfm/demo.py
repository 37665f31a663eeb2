"""`vfm demo`: the whole job on scikit-learn's handwritten digits, with a report at the end."""

from __future__ import annotations

import csv
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from vfm_runtime.errors import StateError

from vfm.bundle.export import export
from vfm.data import DigitsData
from vfm.data.records import list_labels
from vfm.report import (
    Page,
    draw_contact_sheet,
    plot_bars,
    plot_confusion_matrix,
    plot_learning_curves,
)
from vfm.tasks import ClassificationTask, Optim
from vfm.tasks.results import read_results
from vfm.training.checkpoint import list_versions
from vfm.training.log_filters import filter_logs

_NUM_SHOWN = 24
_NUM_PARITY = 64

# What production would run. It answers for every file of a folder and for a batch of them, and must not have met torch.
_CLIENT = """
import json, sys, time
from pathlib import Path
start = time.perf_counter()
import vfm_runtime
imported = time.perf_counter()
model = vfm_runtime.load(sys.argv[1])
loaded = time.perf_counter()
paths = json.loads(sys.stdin.read())
predictions = model.predict(paths)
done = time.perf_counter()
assert "torch" not in sys.modules, "the runtime imported torch"
print(json.dumps({
    "predictions": [[p.label, p.score] for p in predictions],
    "device": model.device,
    "torch_imported": "torch" in sys.modules,
    "seconds": {"import": imported - start, "load": loaded - imported, "predict": done - loaded},
}))
"""

_NEXT = """
Your own images, in folders named by their class (my_images/cat/1.jpg ...):
  vfm fit --config recipes/classification/finetune.yaml --config recipes/data/folder.yaml --data.root my_images
  vfm test --ckpt_path runs/0/checkpoints/best.ckpt
  vfm export runs/0/checkpoints/best.ckpt --images my_images -o bundle
  vfm-runtime predict bundle my_images"""


def run_demo(*, out: Path = Path("vfm_demo"), seed: int = 0, epochs: int = 30) -> None:
    """Train a small ViT on handwritten digits, test it, export it, prove parity, predict without torch, and report.

    Args:
        out: Folder for the report, the checkpoint and the bundle.
        seed: Seed of the split, the weights and the order of training.
        epochs: Passes over the training images.
    """
    filter_logs()
    seconds: dict[str, float] = {}
    with _time_step("train", seconds):
        task, data, trainer = _train(out, seed, epochs)
    checkpoint = Path(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    with _time_step("test", seconds):
        trainer.test(task, data, ckpt_path=str(checkpoint), verbose=False)
    results = read_results(checkpoint.parent)["test"]
    with _time_step("write images", seconds):
        files = _write_images(out, data)
    bundle = out / "bundle"
    with _time_step("export and parity", seconds):
        export([str(checkpoint)], images=out / "odd_sizes", out=bundle, overwrite=True)
    with _time_step("predict without torch", seconds):
        client = _predict_without_torch(bundle, list(files))
    predictions = client.pop("predictions")
    right = [p[0] == truth for p, truth in zip(predictions, files.values(), strict=True)]
    parity = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    summary = {
        "data": "scikit-learn digits",
        "backbone": task.backbone.name,
        "num_parameters": sum(p.numel() for p in task.parameters()),
        "seed": seed,
        "test": results,
        "parity": {k: v for k, v in parity.items() if k != "images"},
        "runtime": {"accuracy": statistics.fmean(right)} | client,
        "seconds": seconds,
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": list_versions(),
        "curves": _read_curves(Path(trainer.log_dir or out)),
    }
    text = json.dumps(summary, indent=2) + "\n"
    (out / "report.json").write_text(text, encoding="utf-8")
    _write_page(out / "report.html", summary, _draw_sheet(files, predictions))
    accuracy = results["accuracy"]
    print(
        f"Test accuracy {accuracy['value']:.4f} [{accuracy['low']:.4f}, {accuracy['high']:.4f}]; "
        f"the runtime, without torch, {statistics.fmean(right):.4f}; {sum(seconds.values()):.0f} s\n"
        f"Report: {out / 'report.html'}\n{_NEXT}"
    )


@contextmanager
def _time_step(name: str, seconds: dict[str, float]) -> Iterator[None]:
    print(f"{name} ...", flush=True)
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


def _train(out: Path, seed: int, epochs: int) -> tuple[ClassificationTask, DigitsData, L.Trainer]:
    L.seed_everything(seed, verbose=False)
    data = DigitsData(batch_size=32, seed=seed)
    task = ClassificationTask(
        "vit_tiny_patch16_224",
        pretrained=False,
        image_size=32,
        fit="squash",
        backbone_args={"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
        optim=Optim(lr=1e-3),
    )
    trainer = L.Trainer(
        max_epochs=epochs,
        default_root_dir=out,
        logger=CSVLogger(out, name="run", version=""),
        enable_model_summary=False,
        enable_progress_bar=sys.stderr.isatty(),
        log_every_n_steps=10,
        num_sanity_val_steps=0,
    )
    trainer.fit(task, data)
    return task, data, trainer


def _write_images(out: Path, data: DigitsData) -> dict[str, str]:
    """Write the test digits as files, in folders named by their class, and some enlarged to all sorts of sizes.

    Returns:
        Label of each file by its path.
    """
    files: dict[str, str] = {}
    for number, record in enumerate(data.records["test"]):
        label = data.labels[list_labels(record)[0]]
        picture = Image.fromarray(np.asarray(record.source))
        path = out / "images" / label / f"{record.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        files[str(path)] = label
        if number < _NUM_PARITY:
            path = out / "odd_sizes" / f"{record.name}.png"
            path.parent.mkdir(exist_ok=True)
            size = (9 + 7 * (number % 11), 8 + 5 * (number % 13))
            picture.resize(size, Image.Resampling.BICUBIC).save(path)
    return files


def _predict_without_torch(bundle: Path, paths: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-c", _CLIENT, str(bundle)]
    run = subprocess.run(
        command, input=json.dumps(paths), capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise StateError(f"Predicting in a fresh interpreter failed:\n{run.stderr.strip()}")
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def _read_curves(folder: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Read loss and accuracy by epoch from the CSV log."""
    columns = {
        "loss": {"train": "train/loss_epoch", "validation": "val/loss"},
        "accuracy": {"validation": "val/accuracy"},
    }
    with (folder / "metrics.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {
        panel: {
            name: [(float(r["epoch"]) + 1, float(r[column])) for r in rows if r.get(column)]
            for name, column in lines.items()
        }
        for panel, lines in columns.items()
    }


def _write_page(path: Path, summary: dict[str, Any], sheet: bytes) -> None:
    results, parity, runtime = summary["test"], summary["parity"], summary["runtime"]
    accuracy, macro_f1, seconds = results["accuracy"], results["macro_f1"], summary["seconds"]
    labels = [row["label"] for row in results["per_class"]]
    difference, num_images = f"{parity['max_difference']:.1e}", parity["num_images"]
    interval = f"95 % interval {accuracy['low']:.4f} to {accuracy['high']:.4f}"
    compared = f"probability, torch against ONNX, {num_images} images"
    facts = {
        "Test accuracy": (f"{accuracy['value']:.4f}", interval),
        "Macro F1": (f"{macro_f1['value']:.4f}", f"{results['num_samples']} test images"),
        "Accuracy without torch": (f"{runtime['accuracy']:.4f}", "ONNX bundle, fresh interpreter"),
        "Largest difference": (difference, compared),
        "Time": (f"{sum(seconds.values()):.0f} s", "all steps"),
    }
    subtitle = f"A {summary['num_parameters']:,}-parameter ViT on scikit-learn's handwritten digits"
    page = Page("From images to production", subtitle)
    page.add_facts(facts)
    page.add_heading("Learning curve")
    curves = plot_learning_curves(summary["curves"], xlabel="epoch")
    page.add_figure(curves, "Loss and accuracy by epoch.")
    page.add_heading("Where it errs")
    matrix = plot_confusion_matrix(results["confusion_matrix"], labels)
    page.add_figure(matrix, "Test images by true and predicted label.")
    page.add_table(results["per_class"])
    page.add_heading("What the bundle answers, without torch")
    page.add_figure(
        sheet,
        "Test images with the runtime's label and score, wrong ones first: green is right, red is wrong.",
    )
    page.add_heading("Does the bundle agree with the model?")
    rows = {
        "Images, from files of many sizes": num_images,
        "Largest difference of a probability": difference,
        "Tolerance": f"{parity['tolerance']:.0e}",
        "Images whose label changed": parity["top1_changes"],
        "One image from file to answer, torch": f"{parity['torch_ms']:.2f} ms",
        "One image from file to answer, ONNX": f"{parity['onnx_ms']:.2f} ms",
    }
    page.add_table([{"": name, "value": value} for name, value in rows.items()])
    page.add_heading("Where the time went")
    page.add_figure(plot_bars(seconds, "seconds"), "Seconds by step.")
    page.add_table([{"step": f"runtime: {k}", "seconds": v} for k, v in runtime["seconds"].items()])
    page.add_heading("Next: your own images")
    page.add_code(_NEXT.strip())
    page.write(path)


def _draw_sheet(files: dict[str, str], predictions: list[tuple[str, float]]) -> bytes:
    """Draw all wrong and some right images, up to half of them wrong."""
    rows = list(zip(files.items(), predictions, strict=True))
    wrong = [row for row in rows if row[0][1] != row[1][0]][: _NUM_SHOWN // 2]
    right = [row for row in rows if row[0][1] == row[1][0]]
    step = max(1, len(right) // (_NUM_SHOWN - len(wrong)))
    shown = (wrong + right[::step])[:_NUM_SHOWN]
    return draw_contact_sheet(
        [np.asarray(Image.open(path).convert("RGB")) for (path, _), _ in shown],
        [f"{label} ({score:.2f}), true {truth}" for (_, truth), (label, score) in shown],
        marks=[truth == label for (_, truth), (label, _) in shown],
    )

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
from vfm_runtime.errors import VfmError

from vfm.bundle.export import export
from vfm.data import DigitsData
from vfm.data.dataset import list_labels
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
answers = model.predict(paths)
done = time.perf_counter()
assert "torch" not in sys.modules, "the runtime imported torch"
print(json.dumps({
    "answers": [[a.label, a.score] for a in answers],
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


class DemoError(VfmError, RuntimeError):
    """A step of the demo did not give what it must."""


def demo(*, out: Path = Path("vfm_demo"), seed: int = 0, epochs: int = 30) -> None:
    """Train a small ViT on handwritten digits, test it, export it, prove parity, predict without torch, and report.

    Args:
        out: Folder for the report, the checkpoint and the bundle.
        seed: Of the split, the weights and the order of training.
        epochs: Passes over the training images.
    """
    filter_logs()
    out = Path(out)
    clock = _Clock()
    with clock("train"):
        task, data, trainer = _train(out, seed, epochs)
    checkpoint = Path(trainer.checkpoint_callback.best_model_path)  # type: ignore[union-attr]
    with clock("test"):
        trainer.test(task, data, ckpt_path=str(checkpoint), verbose=False)
    results = read_results(checkpoint.parent)["test"]
    with clock("write images"):
        files = _write_images(out / "images", data)
        _write_odd_sizes(out / "odd_sizes", data)
    bundle = out / "bundle"
    with clock("export and parity"):
        export([str(checkpoint)], images=out / "odd_sizes", out=bundle, overwrite=True)
    with clock("predict without torch"):
        client = _predict_without_torch(bundle, list(files))
    summary = _summary(task, results, files, client, bundle, clock.seconds, seed)
    curves = _curves(Path(trainer.log_dir or out))
    _write_report(out, summary, curves, results, files, client)
    accuracy = summary["test"]["accuracy"]
    print(
        f"Test accuracy {accuracy['value']:.4f} [{accuracy['low']:.4f}, {accuracy['high']:.4f}]; "
        f"the runtime, without torch, {summary['runtime']['accuracy']:.4f}; {sum(clock.seconds.values()):.0f} s\n"
        f"Report: {out / 'report.html'}\n{_NEXT}"
    )


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


def _write_images(folder: Path, data: DigitsData) -> dict[str, str]:
    """Write the test digits as files, in folders named by their class: label by path."""
    files: dict[str, str] = {}
    for record in data.records["test"]:
        label = data.labels[list_labels(record)[0]]
        path = folder / label / f"{record.name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(record.source)).save(path)
        files[str(path)] = label
    return files


def _write_odd_sizes(folder: Path, data: DigitsData) -> None:
    """Write some test digits enlarged to all sorts of sizes, to compare model and bundle on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(data.records["test"][:_NUM_PARITY]):
        picture = Image.fromarray(np.asarray(record.source))
        size = (9 + 7 * (number % 11), 8 + 5 * (number % 13))
        picture.resize(size, Image.Resampling.BICUBIC).save(folder / f"{record.name}.png")


def _predict_without_torch(bundle: Path, paths: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-c", _CLIENT, str(bundle)]
    run = subprocess.run(
        command, input=json.dumps(paths), capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise DemoError(f"Predicting in a fresh interpreter failed:\n{run.stderr.strip()}")
    answer: dict[str, Any] = json.loads(run.stdout)
    return answer


def _summary(
    task: ClassificationTask,
    results: dict[str, Any],
    files: dict[str, str],
    client: dict[str, Any],
    bundle: Path,
    seconds: dict[str, float],
    seed: int,
) -> dict[str, Any]:
    parity = json.loads((bundle / "parity.json").read_text(encoding="utf-8"))
    right = [
        label == truth for (label, _), truth in zip(client["answers"], files.values(), strict=True)
    ]
    return {
        "data": "scikit-learn digits",
        "backbone": task.backbone.name,
        "num_parameters": sum(p.numel() for p in task.parameters()),
        "seed": seed,
        "test": results,
        "parity": {k: v for k, v in parity.items() if k != "images"},
        "runtime": {
            "accuracy": statistics.fmean(right),
            "device": client["device"],
            "torch_imported": client["torch_imported"],
            "seconds": client["seconds"],
        },
        "seconds": seconds,
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "versions": list_versions(),
    }


def _curves(folder: Path) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Loss and accuracy by epoch, from the CSV log."""
    wanted = {
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
        for panel, lines in wanted.items()
    }


def _write_report(
    out: Path,
    summary: dict[str, Any],
    curves: dict[str, Any],
    results: dict[str, Any],
    files: dict[str, str],
    client: dict[str, Any],
) -> None:
    labels = [row["label"] for row in results["per_class"]]
    parity, runtime = summary["parity"], summary["runtime"]
    accuracy = results["accuracy"]
    page = Page(
        "From images to production",
        f"A {summary['num_parameters']:,}-parameter ViT on scikit-learn's handwritten digits",
    )
    page.add_facts(
        {
            "Test accuracy": (
                f"{accuracy['value']:.4f}",
                f"95 % interval {accuracy['low']:.4f} to {accuracy['high']:.4f}",
            ),
            "Macro F1": (
                f"{results['macro_f1']['value']:.4f}",
                f"{results['num_samples']} test images",
            ),
            "Accuracy without torch": (
                f"{runtime['accuracy']:.4f}",
                "ONNX bundle, fresh interpreter",
            ),
            "Largest difference": (
                f"{parity['max_difference']:.1e}",
                f"probability, torch against ONNX, {parity['num_images']} images",
            ),
            "Time": (f"{sum(summary['seconds'].values()):.0f} s", "all steps"),
        }
    )
    page.add_heading("Learning curve")
    page.add_figure(plot_learning_curves(curves, xlabel="epoch"), "Loss and accuracy by epoch.")
    page.add_heading("Where it errs")
    matrix = np.asarray(results["confusion_matrix"])
    page.add_figure(
        plot_confusion_matrix(matrix, labels), "Test images by true and predicted label."
    )
    page.add_table(results["per_class"])
    page.add_heading("What the bundle answers, without torch")
    page.add_figure(
        _sheet(files, client["answers"]),
        "Test images with the runtime's label and score, wrong ones first: green is right, red is wrong.",
    )
    page.add_heading("Does the bundle agree with the model?")
    page.add_table(
        [
            {"": "Images, from files of many sizes", "value": parity["num_images"]},
            {"": "Largest difference of a probability", "value": f"{parity['max_difference']:.1e}"},
            {"": "Tolerance", "value": f"{parity['tolerance']:.0e}"},
            {"": "Images whose label changed", "value": parity["top1_changes"]},
            {"": "One image from file to answer, torch", "value": f"{parity['torch_ms']:.2f} ms"},
            {"": "One image from file to answer, ONNX", "value": f"{parity['onnx_ms']:.2f} ms"},
        ]
    )
    page.add_heading("Where the time went")
    page.add_figure(plot_bars(summary["seconds"], "seconds"), "Seconds by step.")
    page.add_table([{"step": f"runtime: {k}", "seconds": v} for k, v in runtime["seconds"].items()])
    page.add_heading("Next: your own images")
    page.add_code(_NEXT.strip())
    page.write(out / "report.html")
    text = json.dumps(summary | {"curves": curves}, indent=2) + "\n"
    (out / "report.json").write_text(text, encoding="utf-8")


def _sheet(files: dict[str, str], answers: list[tuple[str, float]]) -> bytes:
    rows = [
        (path, truth, label, score)
        for (path, truth), (label, score) in zip(files.items(), answers, strict=True)
    ]
    rows.sort(key=lambda row: row[1] == row[2])
    wrong = [row for row in rows if row[1] != row[2]][: _NUM_SHOWN // 2]
    right = [row for row in rows if row[1] == row[2]]
    step = max(1, len(right) // (_NUM_SHOWN - len(wrong)))
    shown = (wrong + right[::step])[:_NUM_SHOWN]
    return draw_contact_sheet(
        [np.asarray(Image.open(path).convert("RGB")) for path, *_ in shown],
        [f"{label} ({score:.2f}), true {truth}" for _, truth, label, score in shown],
        marks=[truth == label for _, truth, label, _ in shown],
    )


class _Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start

"""`vfm tune` for images with boxes: the same head, data and minutes over several backbones, and the best detector."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from vfm_runtime.errors import DataError

from vfm.bundle import ExportOptions
from vfm.bundle.export import write_bundle
from vfm.data import DetectionData
from vfm.models.heads import DenseHead
from vfm.models.licenses import find_terms
from vfm.report import Page, plot_intervals
from vfm.spec import build, get_class_path
from vfm.tasks import DetectionTask
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.results import RESULTS_FILE
from vfm.training.oom import read_peak_memory, reset_peak_memory
from vfm.training.planning import TRIAL, Plan, TimedTrial, plan_training
from vfm.training.precision import choose_precision
from vfm.tune.backbones import format_backbones
from vfm.tune.clock import Clock, measure_seconds
from vfm.tune.finish import MODEL_FILE, RECIPE_FILE

OPTIM: Mapping[str, Any] = {
    "lr": 1e-3,
    "weight_decay": 0.02,
    "warmup_ratio": 0.1,
    "max_grad_norm": 10.0,
    "backbone_factor": 0.3,
    "freeze_ratio": 0.0,
    "ema": 0.998,
}
"""Optimizer of recipes/detection/small_data.yaml."""
TASK: Mapping[str, Any] = {"min_steps": 0, "norm_stats": "keep", "lp_ft": True}
_PAGE_FILE = "report.html"
_RUNS = 12
_SPARE = 0.05
"""Fraction of the time for latencies, results and the page."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TriedDetector:
    """A detector that was trained, and what it costs."""

    settings: dict[str, Any]
    """Arguments of its task, as plain data."""
    batch_size: int
    plan: Plan
    checkpoint: Path
    results: Mapping[str, Any]
    """Metrics of the val split."""
    latency: float
    """Seconds of one image alone, from pixels to boxes."""
    memory: int
    """Most bytes beyond what was held before, in training."""
    minutes: float
    license: str | None
    states_test: bool
    """Whether the data has a test split."""

    @property
    def name(self) -> str:
        """Name of the backbone in timm."""
        return str(self.settings["backbone"])

    def to_row(self) -> dict[str, Any]:
        """Return a row of the table of backbones."""
        ap50 = self.results["AP50"]
        return {
            "backbone": self.name,
            "AP": self.results["AP"] or 0.0,
            "AP50": ap50["value"] or 0.0,
            "low": ap50["low"],
            "high": ap50["high"],
            "steps": self.plan.steps,
            "minutes": round(self.minutes, 1),
            "ms an image": 1000 * self.latency,
            "MiB": round(self.memory / 2**20),
            "licence": (self.license or "not stated")
            + " (!)" * (not find_terms(self.license).commercial),
        }


def tune_detectors(
    path: Path,
    backbones: Sequence[tuple[str, Path | None]],
    common: Mapping[str, Any],
    clock: Clock,
    *,
    export: ExportOptions | None,
    out: Path,
    seed: int,
) -> None:
    """Train a detector on each backbone for an equal part of the time, and finish the one with the best AP.

    Each learns from the train split, as the val split chooses its checkpoint and compares them; a test split is left
    alone.

    Args:
        path: Folder or file of images with boxes, in any layout that `vfm fit` reads.
        backbones: Names in timm, each with a file of its weights or None for timm's own.
        common: Arguments of all tasks.
        clock: Time budget that all backbones share.
        export: What to write of the finished detector; None for no bundle.
        out: Folder for model.ckpt, recipe.yaml, results.json and report.html, and a run for each backbone.
        seed: Seed of the split and of the trainings.

    Raises:
        DataError: There are too few images for a val split.
        OptionError: Not even a few steps fit into the time.
    """
    tried: list[TriedDetector] = []
    for index, (name, file) in enumerate(backbones):
        settings = {**common, "backbone": name, "weights": str(file) if file else None}
        seconds = (1 - _SPARE) * clock.left / (len(backbones) - index)
        tried.append(_try_backbone(settings, path, seconds, out / f"{index}-{name}", seed))
    rows = [one.to_row() for one in tried]
    best = max(tried, key=lambda one: float(one.results["AP"] or 0.0))
    print(
        format_backbones(rows), f"The best AP on the val split: {best.name}.", sep="\n", flush=True
    )
    shutil.copyfile(best.checkpoint, out / MODEL_FILE)
    _write_recipe(out / RECIPE_FILE, best, path, seed)
    values = {"backbones": rows, "chosen": best.name, "minutes": clock.elapsed / 60}
    text = json.dumps({"val": dict(best.results), "tune": values}, indent=2) + "\n"
    (out / RESULTS_FILE).write_text(text, encoding="utf-8")
    images = path if path.is_dir() else path.parent
    commands = [f"vfm test --ckpt_path {best.checkpoint}"] * best.states_test
    if export is None:
        commands.append(f"vfm export {out / MODEL_FILE} --images {images} -o bundle")
    else:
        commands.append(f"vfm-runtime predict {export.out} {images}")
    _write_page(out / _PAGE_FILE, rows, best, path, commands)
    print(f"Model: {out / MODEL_FILE}, fitted on the train split; val chose it")
    if export is not None:
        parity = write_bundle({"": Checkpoint.open(out / MODEL_FILE)}, export)
        print(f"Bundle: {export.out}; parity on {parity}")
    print(f"Page: {out / _PAGE_FILE}\nRecipe: {out / RECIPE_FILE}")
    print(f"Time: {clock.elapsed / 60:.1f} of {clock.total / 60:g} minutes")
    print("Next: " + "\n      ".join(commands))


def _try_backbone(
    settings: dict[str, Any], path: Path, seconds: float, folder: Path, seed: int
) -> TriedDetector:
    """Train a detector for some seconds, and judge it on the val split."""
    start = time.perf_counter()
    trial = TimedTrial()
    with tempfile.TemporaryDirectory() as nowhere:
        _fit(settings, path, seed, None, Path(nowhere), callbacks=[trial], **TRIAL)
    plan = plan_training(trial, seconds - (time.perf_counter() - start))
    print(
        f"{settings['backbone']}: {plan.steps} steps in {seconds / 60:.1f} minutes",
        *plan.notes,
        sep="\n",
        flush=True,
    )
    optim = {**OPTIM, "lr": plan.learning_rate or OPTIM["lr"]}
    settings = {**settings, "optim": optim}
    before = reset_peak_memory()
    trainer, task, data = _fit(
        settings,
        path,
        seed,
        plan.batch_size,
        folder,
        logger=CSVLogger(folder, name="", version=""),
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **plan.list_trainer_options(),
    )
    memory = read_peak_memory() - before
    checkpoint = folder / "checkpoints/best.ckpt"
    if not checkpoint.is_file():
        checkpoint = folder / "checkpoints/last.ckpt"
    trainer.limit_val_batches = 1.0
    trainer.validate(task, data, ckpt_path=checkpoint, verbose=False)
    results = json.loads((checkpoint.parent / RESULTS_FILE).read_text(encoding="utf-8"))["val"]
    minutes = (time.perf_counter() - start) / 60
    return TriedDetector(
        settings=settings,
        batch_size=data.batch_size,
        plan=plan,
        checkpoint=checkpoint,
        results=results,
        latency=_measure_latency(task),
        memory=memory,
        minutes=minutes,
        license=task.license,
        states_test=bool(data.records.get("test")),
    )


def _fit(
    settings: Mapping[str, Any],
    path: Path,
    seed: int,
    batch_size: int | None,
    folder: Path,
    **options: Any,
) -> tuple[L.Trainer, DetectionTask, DetectionData]:
    L.seed_everything(seed, verbose=False)
    head = {"class_path": get_class_path(DenseHead), "init_args": {}}
    arguments = {"head": head, "optim": dict(OPTIM), **TASK, **settings}
    spec = {"class_path": get_class_path(DetectionTask), "init_args": arguments}
    task: DetectionTask = build(spec, base=DetectionTask)
    data = DetectionData(path, batch_size=batch_size, seed=seed)
    trainer = L.Trainer(default_root_dir=folder, precision=choose_precision(), **options)
    trainer.fit(task, data)
    if not data.records.get("val"):
        raise DataError(
            f"{path} has no images to validate on, by which detectors are compared. Give more images, or a val split."
        )
    return trainer, task, data


@torch.inference_mode()
def _measure_latency(task: DetectionTask) -> float:
    """Measure the median seconds of one image, from black pixels to boxes."""
    task.eval()
    pixels = torch.zeros((1, *task.preprocess.size, 3), dtype=torch.uint8, device=task.device)
    return measure_seconds(lambda: task.answer(pixels)["scores"].sum().item(), _RUNS)


def _write_recipe(path: Path, best: TriedDetector, data: Path, seed: int) -> None:
    """Write the recipe by which `vfm fit` trains the same detector."""
    settings = {name: value for name, value in best.settings.items() if value is not None}
    recipe = {
        "seed_everything": seed,
        "model": {
            "class_path": "DetectionTask",
            "init_args": {
                **settings,
                **TASK,
                "head": {"class_path": "DenseHead"},
            },
        },
        "data": {
            "class_path": "DetectionData",
            "init_args": {"root": str(data), "batch_size": best.batch_size, "seed": seed},
        },
        "trainer": {
            "max_epochs": best.plan.epochs,
            "check_val_every_n_epoch": best.plan.validate_every,
        }
        | dict(best.plan.limits),
    }
    ap, ap50 = best.results["AP"] or 0.0, best.results["AP50"]["value"] or 0.0
    header = (
        f"# Written by vfm tune: AP {ap:.3f}, AP50 {ap50:.3f} on {best.results['num_samples']} images of the val "
        "split, which chose the\n# checkpoint and the backbone, so that both are a little too good.\n"
    )
    path.write_text(header + yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def _write_page(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    best: TriedDetector,
    data: Path,
    commands: Sequence[str],
) -> None:
    page = Page("The best detector for these images", f"vfm tune {data}: {len(rows)} backbones")
    interval = best.results["AP50"]
    page.add_facts(
        {
            "Chosen": (best.name, f"{best.plan.steps} steps"),
            "AP": (
                f"{best.results['AP'] or 0.0:.3f}",
                "mean over IoU of 0.5 to 0.95, as COCO has it",
            ),
            "Judged on": (
                f"{best.results['num_samples']} images",
                "of the val split, which chose the checkpoint and the backbone: a test split is stricter",
            ),
        }
    )
    page.add_heading("Backbones")
    points = {
        str(row["backbone"]): (row["ms an image"], row["AP50"], row["low"], row["high"])
        for row in rows
        if row["low"] is not None
    }
    if points:
        caption = "AP50 with its 95 % interval over images, by the milliseconds of an image on this machine."
        page.add_figure(
            plot_intervals(points, xlabel="ms an image (log scale)", ylabel="AP50"), caption
        )
    page.add_table([dict(row) for row in rows])
    page.add_text(
        "Each had the same head, images and time. Of a licence marked (!) it is not known that it permits commercial "
        f"use. Pictures of what the chosen one finds and misses: {best.checkpoint.parent / 'report_val.html'}. 95 % "
        f"interval of its AP50: {interval['low']:.3f} to {interval['high']:.3f}."
    )
    page.add_heading("Next")
    page.add_code("\n".join(commands))
    page.write(path)

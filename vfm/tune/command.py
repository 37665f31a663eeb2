"""`vfm tune`: from a folder of labelled images to the best model that they give in some minutes, and its bundle."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import OptionError

from vfm.bundle import ExportOptions
from vfm.data.auto import is_of_boxes
from vfm.preprocess import Fit
from vfm.tasks import ClassificationTask
from vfm.training.log_filters import filter_logs, silence_trainers
from vfm.tune.backbones import (
    TriedBackbone,
    format_backbones,
    split_backbones,
    try_backbone,
)
from vfm.tune.clock import Clock, OutOfTimeError
from vfm.tune.detectors import tune_detectors
from vfm.tune.finetuned import FineTuner
from vfm.tune.finish import (
    MODEL_FILE,
    RECIPE_FILE,
    build_frozen,
    find_image_folder,
    save_model,
    write_recipe,
    write_tuned_bundle,
)
from vfm.tune.images import LabeledPool, open_pool
from vfm.tune.learning_curve import measure_learning_curve
from vfm.tune.page import write_page
from vfm.tune.ways import HEADER, UntriedWay, Way
from vfm.tune.words import TuneResult

PAGE_FILE = "report.html"
RESULTS_FILE = "results.json"
_RESERVE, _EXPORT_RESERVE = 5.0, 20.0
"""Seconds for the page, and for an export."""
_EXPORT_PASSES = 300
"""Images through the backbone that an export takes."""

log = logging.getLogger(__name__)


@silence_trainers()
def tune(
    data: Path,
    *,
    backbone: str = "vit_small_patch14_reg4_dinov2.lvd142m",
    weights: Path | None = None,
    pretrained: bool = True,
    image_size: int | None = 224,
    fit: Fit | None = None,
    minutes: float = 10.0,
    num_images: int = 2000,
    label_column: str | None = None,
    label_separator: str | None = None,
    key_column: str | None = None,
    bit_depth: int | None = None,
    export: Path | None = None,
    out: Path = Path("tune"),
    seed: int = 0,
) -> None:
    """Find and fit the best model for a few labelled images within some minutes: frozen heads first, then fine-tuning.

    Of images with boxes, a detector on each backbone, trained for an equal part of the time.

    Args:
        data: Folder of class folders, table of images, or folder of IDX files. A test split that it states is left
            alone; all other images are learned from, and cross-validation judges. Images with boxes in any layout of
            vfm fit: the val split, or one that is drawn, judges.
        backbone: A name of timm; vfm models lists good ones. Several, with commas between them, are compared.
        weights: A local file of its weights, in place of timm's; for several backbones one each, with commas between.
        pretrained: Fetch the weights that timm names for it.
        image_size: Side of the square input in pixels; null for the backbone's own.
        fit: How other aspect ratios are met: crop, squash or letterbox.
        minutes: About how long all of it may take.
        num_images: Most images that are learned from; of more, as many of each class are drawn.
        label_column: Column of the labels of a table, `label` by default. Several, with commas between, hold 0 or 1 for
            a label each.
        label_separator: Text between the labels of one cell, for several labels an image.
        key_column: Column of a table with keys (patient, video, product), whose images are never divided.
        bit_depth: Bits that the values of images of 16 or 32 bits use, such as 12.
        export: Folder of a bundle to write of the finished model, proved on your images.
        out: Folder for model.ckpt, recipe.yaml, results.json and report.html.
        seed: Seed of the folds and of the trainings.

    Raises:
        OutOfTimeError: The time does not suffice for the features of the images.
    """
    clock = Clock(minutes)
    filter_logs()
    options = None
    if export is not None:
        options = ExportOptions(images=data if data.is_dir() else data.parent, out=export)
        options.check()
    out.mkdir(parents=True, exist_ok=True)
    common: dict[str, Any] = {"pretrained": pretrained, "image_size": image_size}
    if data.exists() and is_of_boxes(data):
        of_labels = {
            "--fit": fit,
            "--label-column": label_column,
            "--label-separator": label_separator,
            "--key-column": key_column,
            "--bit-depth": bit_depth,
        }
        if idle := [name for name, value in of_labels.items() if value is not None]:
            raise OptionError(
                f"{idle[0]} is for images with labels, and {data} has boxes. Leave it out, or train by vfm fit "
                "--config recipes/detection/small_data.yaml, whose data takes more options."
            )
        pairs = split_backbones(backbone, weights)
        tune_detectors(data, pairs, common, clock, export=options, out=out, seed=seed)
        return
    L.seed_everything(seed, verbose=False)
    pool = open_pool(
        data,
        num_images=num_images,
        seed=seed,
        label_column=label_column,
        label_separator=label_separator,
        key_column=key_column,
        bit_depth=bit_depth,
    )
    metric = "mAP" if pool.data.multilabel else "accuracy"
    common["fit"] = fit
    best, rows = _compare_backbones(split_backbones(backbone, weights), common, pool, clock, metric)
    frozen = best.heads.list_ways(best.seconds, best.image_size)
    print(HEADER, *(way.format_row() for way in frozen), sep="\n", flush=True)
    curve = measure_learning_curve(best.heads)
    reserve = _RESERVE
    if options is not None:
        reserve += _EXPORT_RESERVE + _EXPORT_PASSES * best.forward
    tuner = FineTuner(best, clock, reserve, out, partial(print, flush=True))
    fine_tuned = [*best.heads.list_untried(), *tuner.try_ways()]
    print(*(way.format_row() for way in fine_tuned), sep="\n", flush=True)
    finished = _finish(choose_way(frozen[0], fine_tuned), frozen[0], tuner)
    save_model(finished.task, out / MODEL_FILE)
    result = TuneResult(
        metric, frozen, fine_tuned, finished.way, curve, len(best.heads.pool.indices)
    )
    commands = _write_files(result, rows, finished, tuner, data, options)
    print("", *result.describe(), "", sep="\n")
    print(f"Model: {out / MODEL_FILE}, fitted on all {result.num_images} images")
    if options is not None:
        parity = write_tuned_bundle(out / MODEL_FILE, options, best.heads.pool)
        print(f"Bundle: {options.out}; parity on {parity}")
    print(f"Page: {out / PAGE_FILE}\nRecipe: {out / RECIPE_FILE}")
    print(f"Time: {clock.elapsed / 60:.1f} of {minutes:g} minutes")
    print("Next: " + "\n      ".join(commands))


def _compare_backbones(
    backbones: Sequence[tuple[str, Path | None]],
    common: dict[str, Any],
    pool: LabeledPool,
    clock: Clock,
    metric: str,
) -> tuple[TriedBackbone, list[dict[str, Any]]]:
    """Judge the frozen heads of each backbone; return the best one, and a row for each."""
    tried = []
    for index, (name, file) in enumerate(backbones):
        settings = {"backbone": name, "weights": str(file) if file else None, **common}
        try:
            tried.append(try_backbone(settings, pool, clock, len(backbones) - index))
        except OutOfTimeError as error:
            if not tried:
                raise
            log.warning("%s is not tried. %s", name, error)
    best = max(tried, key=lambda one: one.interval.value)
    rows = [one.to_row(metric) for one in tried]
    if len(rows) > 1:
        print(f"{format_backbones(rows)}\nThe rest is for {best.name}.", flush=True)
    return best, rows


def choose_way(frozen: Way, fine_tuned: Sequence[Way | UntriedWay]) -> Way:
    """Choose the way of the highest score to be expected on new images."""
    judged = [way for way in fine_tuned if isinstance(way, Way) and way.gain is not None]
    best = max(judged, key=lambda way: way.gain.expected, default=None)  # type: ignore[union-attr]
    return best if best is not None and best.gain.expected > 0 else frozen  # type: ignore[union-attr]


class _Finished(NamedTuple):
    """The finished model."""

    way: Way
    task: ClassificationTask
    scores: NDArray[np.float32]
    """Scores [n, C] of images that it had not learned from."""
    judged: NDArray[np.int64]
    """Indices of these images, [n]."""


def _finish(way: Way, frozen: Way, tuner: FineTuner) -> _Finished:
    """Fit the chosen way on all images; the best frozen head where the time is not enough."""
    heads = tuner.backbone.heads
    if way.steps:
        trial = tuner.trials[way.name]  # type: ignore[index]
        print(f"{way.name}: fitted on all {len(heads.pool.indices)} images", flush=True)
        try:
            task = tuner.fit_final(trial.name)
            return _Finished(way, task, np.concatenate(trial.scores), np.concatenate(trial.images))
        except OutOfTimeError as error:
            log.warning("%s The best frozen head is taken.", error)
    task = build_frozen(tuner.backbone, tuner.out)
    scores = np.mean(heads.best.scores, axis=0)
    return _Finished(frozen, task, scores.astype(np.float32), np.arange(len(scores)))


def _write_files(
    result: TuneResult,
    rows: Sequence[dict[str, Any]],
    finished: _Finished,
    tuner: FineTuner,
    data: Path,
    options: ExportOptions | None,
) -> list[str]:
    """Write results, page and recipe; return the commands to go on with."""
    out, pool = tuner.out, tuner.backbone.heads.pool
    values = result.to_dict() | {"backbones": rows, "minutes": tuner.clock.elapsed / 60}
    text = json.dumps({"cross-validation": values}, indent=2) + "\n"
    (out / RESULTS_FILE).write_text(text, encoding="utf-8")
    commands, images = [], find_image_folder(pool, data)
    if pool.data.records.get("test"):
        commands.append(f"vfm test --ckpt_path {out / MODEL_FILE}")
    if options is None:
        commands.append(f"vfm export {out / MODEL_FILE} --images {images} -o bundle")
    else:
        commands.append(f"vfm-runtime predict {options.out} {images}")
    write_page(
        out / PAGE_FILE,
        result,
        rows,
        pool,
        finished.scores,
        finished.judged,
        subtitle=f"vfm tune {data}: {result.num_images} images of {len(pool.data.labels)} classes, "
        f"{tuner.backbone.name}",
        commands=commands,
    )
    write_recipe(out / RECIPE_FILE, result, tuner)
    return commands

"""Finished model of `vfm tune`: the checkpoint, the recipe that makes the same, the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import yaml
from PIL import Image

from vfm.bundle import ExportOptions
from vfm.bundle.export import write_bundle
from vfm.bundle.parity import Parity
from vfm.data.records import Record
from vfm.tasks import ClassificationTask
from vfm.tasks.checkpoint import Checkpoint
from vfm.tune.backbones import TriedBackbone
from vfm.tune.finetuned import AUGMENT, BATCH, FineTuner
from vfm.tune.images import LabeledPool
from vfm.tune.words import TuneResult

MODEL_FILE = "model.ckpt"
RECIPE_FILE = "recipe.yaml"
_NUM_COMPARED = 64


def build_frozen(backbone: TriedBackbone, out: Path) -> ClassificationTask:
    """Return a task with the chosen frozen head, fitted on all images."""
    heads, pool = backbone.heads, backbone.heads.pool
    task = ClassificationTask(
        **backbone.settings,
        head=heads.best.build(),
        adapt="linear",
        multilabel=pool.data.multilabel,
    )
    # A random start would be another one.
    task.backbone.load_state_dict(backbone.task.backbone.state_dict())
    data = pool.select(range(len(pool.indices)))
    task.preprocess = task.preprocess.add_bit_depth(data.bit_depth)
    data.setup("fit")
    task.take_labels(data)
    heads.fill(task.head)
    task.record_data(data, out)
    return task


def save_model(task: ClassificationTask, path: Path) -> None:
    """Write a checkpoint of a task, whoever trained it."""
    trainer = L.Trainer(logger=False, enable_model_summary=False, default_root_dir=path.parent)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(path, weights_only=True)


def write_recipe(path: Path, result: TuneResult, tuner: FineTuner) -> None:
    """Write the recipe by which `vfm fit` makes the finished model from the same images."""
    way, data = result.chosen, tuner.pool.data
    spec = data.keep_split(path.parent)
    trainer: dict[str, Any] = {"limit_val_batches": 0}
    if way.steps:
        model = tuner.list_arguments(way.name)
        loading: dict[str, Any] = {"augment": AUGMENT, "batch_size": BATCH}
        trainer |= {"max_steps": way.steps, "max_epochs": -1, "precision": "auto"}
    else:
        model = tuner.backbone.settings | {"adapt": "linear", "multilabel": data.multilabel}
        head = tuner.backbone.heads.best.build().spec
        model["head"] = {**head, "init_args": _drop_empty(head["init_args"])}
        loading = {"augment": "none"}
        trainer |= {"max_epochs": 1}
    recipe = {
        "model": {"class_path": "ClassificationTask", "init_args": _drop_empty(model)},
        "data": {**spec, "init_args": _drop_empty(spec["init_args"] | loading)},
        "trainer": trainer,
    }
    interval = way.interval
    header = (
        f"# Written by vfm tune: {way.name}, {result.metric} {interval.value:.3f} (95 % interval {interval.low:.3f} to "
        f"{interval.high:.3f})\n# on {way.num_judged} images that were not learned from. It learns from all images: "
        "there is no validation.\n"
    )
    path.write_text(header + yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def find_image_folder(pool: LabeledPool, data: Path) -> Path:
    """Return a folder with some of the images: that of the data, or the first image's where that is a table."""
    source = pool.records[0].source
    return Path(source).parent if isinstance(source, str) and not data.is_dir() else data


def write_tuned_bundle(checkpoint: Path, options: ExportOptions, pool: LabeledPool) -> Parity:
    """Write the bundle of the finished model, proved on images that it learned from."""
    records = pool.records
    some = np.linspace(0, len(records) - 1, min(_NUM_COMPARED, len(records))).round().astype(int)
    paths = [_provide_file(records[i], checkpoint.parent / "images") for i in some]
    return write_bundle({"": Checkpoint.open(checkpoint)}, options, paths)


def _provide_file(record: Record, folder: Path) -> Path:
    """Return the file of an image; of one that lies in memory or in a tar file, a copy."""
    if isinstance(record.source, str):
        return Path(record.source)
    folder.mkdir(exist_ok=True)
    path = folder / f"{Path(record.name).stem}.png"
    if isinstance(record.source, np.ndarray):
        Image.fromarray(record.source).save(path)
    else:
        path.write_bytes(record.source.read())
    return path


def _drop_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}

"""`vfm tune`: which adaptation pays on your data, found by trying them on a sample within a time budget."""

from __future__ import annotations

import copy
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor
from vfm_runtime.errors import OptionError

from vfm.data import ImageData
from vfm.data.auto import SampledData, open_data
from vfm.heads_on_features.neighbors import score_neighbors
from vfm.metrics import compute_classification_results, compute_multilabel_results
from vfm.models.adapt import ADAPTATIONS, Adapt
from vfm.preprocess import Fit
from vfm.tasks import ClassificationTask, Optim
from vfm.training.feature_cache import load_features
from vfm.training.log_filters import filter_logs
from vfm.training.oom import read_peak_memory, reset_peak_memory
from vfm.types import Labels, require_target

_TRAINED: tuple[Adapt, ...] = ("linear", "ln", "lora", "full")
# The features of a linear probe are computed once.
_STEP_COST = {how: ADAPTATIONS[how].step_cost for how in _TRAINED if how != "linear"}
_LINEAR_EPOCHS = 50
_MOST_EPOCHS = 30
_FEWEST_EPOCHS = 3
_VAL_FRACTION = 0.5
_BATCH = 32
_HEADER = (
    "adaptation   score  95 % interval       time     memory        size   one image\n" + "-" * 77
)


class Trial(NamedTuple):
    """One adaptation as it did."""

    name: str
    score: float
    low: float
    """Lower end of the 95 % interval of the score."""
    high: float
    seconds: float
    peak_mib: float
    """Most memory beyond what was held before: of the GPU, or else of the process."""
    size_mib: float
    """Size of the weights that learned, the head's among them: what is to be kept besides the pretrained ones."""
    ms: float
    """Median time of one image on this machine, batch 1, from pixels to answer."""
    epochs: int
    lr: float | None

    def format_row(self) -> str:
        """Return a row below `_HEADER`."""
        return (
            f"{self.name:<10}  {self.score:6.3f}  {self.low:.3f} to {self.high:.3f}  {self.seconds:8.0f} s  "
            f"{self.peak_mib:5.0f} MiB  {self.size_mib:6.2f} MiB  {self.ms:7.1f} ms"
        )


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
    out: Path = Path("tune"),
    seed: int = 0,
) -> None:
    """Try kNN, linear, LN, LoRA and full fine-tuning on a sample of your images, and write the recipe of the best.

    Args:
        data: Folder of class folders, table of images, or folder of IDX files.
        backbone: A name of timm; vfm models lists good ones.
        weights: A local file of its weights, in place of timm's.
        pretrained: Fetch the weights that timm names for it.
        image_size: Side of the square input in pixels; null for the backbone's own.
        fit: How other aspect ratios are met: crop, squash or letterbox.
        minutes: About how long all of it may take.
        num_images: Most training images in the sample.
        out: Folder for tune.json and recipe.yaml.
        seed: Seed of the sample and of the trainings.

    Raises:
        OptionError: The time does not suffice for the smallest sample.
    """
    filter_logs()
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    start = time.perf_counter()
    source = open_data(data, seed=seed)
    source.setup("fit")
    source.setup("validate")
    settings: dict[str, Any] = {
        "backbone": backbone,
        "weights": str(weights) if weights else None,
        "pretrained": pretrained,
        "image_size": image_size,
        "fit": fit,
    }
    L.seed_everything(seed, verbose=False)
    task = ClassificationTask(**settings, adapt="linear", multilabel=source.multilabel)
    task.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    forward = _measure_time(task, lambda x: task.backbone(x).pooled, _BATCH, 4) / _BATCH
    left = minutes * 60 - (time.perf_counter() - start)
    num_train, epochs = _plan(forward, left, num_images, source)
    num_val = max(len(source.labels), int(_VAL_FRACTION * num_train))
    sample = SampledData(source, num_train=num_train, num_val=num_val, batch_size=_BATCH, seed=seed)
    sample.setup("fit")
    num_judged = len(sample.records["val"])
    print(
        f"{len(sample.records['train'])} images to learn from, {num_judged} to judge by; "
        f"{1 / forward:.0f} images/s through {backbone}"
    )
    trials = [_try_neighbors(task, sample)]
    print(_HEADER, trials[0].format_row(), sep="\n", flush=True)
    for how in _TRAINED:
        num_epochs = _LINEAR_EPOCHS if how == "linear" else epochs
        trials.append(_try_adaptation(how, settings, sample, num_epochs, out, seed))
        print(trials[-1].format_row(), flush=True)
    winner = max(trials[1:], key=lambda t: t.score)
    _write(out, trials, winner, settings, source, sample)
    print(_describe_winner(trials, winner, num_judged))
    print(f"Recipe: {out / 'recipe.yaml'}\nNext: vfm fit --config {out / 'recipe.yaml'}")


@torch.inference_mode()
def _measure_time(
    task: ClassificationTask, forward: Callable[[Tensor], Tensor], num_images: int, runs: int
) -> float:
    """Measure the median seconds of a pass from black pixels to a number, after one pass in six to warm up."""
    size = (num_images, *task.preprocess.size, 3)
    pixels = torch.zeros(size, dtype=torch.uint8, device=task.device)
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        forward(task.preprocess.normalize(pixels)).sum().item()
        times.append(time.perf_counter() - start)
    return statistics.median(times[math.ceil(runs / 6) :])


def _measure_latency(task: ClassificationTask) -> float:
    """Measure the milliseconds of one image, with adapters merged as an export has them."""
    plain, head = copy.deepcopy(task.backbone).eval(), task.head.eval()
    task.adaptation.merge(plain.model)
    return 1000 * _measure_time(task, lambda x: head.decode(head(plain(x)))["scores"], 1, 12)


def _plan(forward: float, seconds: float, most: int, data: ImageData) -> tuple[int, int]:
    """Choose the largest sample for which every training gets its fewest epochs, then as many epochs as fit.

    Returns:
        Number of training images, `most` at most, and epochs of each training but the linear one's.
    """
    # Forward passes an image: of an epoch of all trainings; of the features of both splits, and slack for the rest.
    per_epoch = sum(_STEP_COST.values()) + len(_STEP_COST) * _VAL_FRACTION
    fixed = 2 * (1 + _VAL_FRACTION)
    room = seconds / forward
    fewest = fixed + _FEWEST_EPOCHS * per_epoch
    num_train = min(most, len(data.records["train"]), int(room / fewest))
    if num_train < 2 * len(data.labels):
        needed = 2 * len(data.labels) * fewest * forward / 60
        raise OptionError(
            f"The time is enough for {max(0, num_train)} images of {len(data.labels)} classes, at {1 / forward:.1f} a "
            f"second. Give --minutes {math.ceil(needed + 1)} or more, a smaller --image-size, or a smaller --backbone."
        )
    epochs = int((room / num_train - fixed) / per_epoch)
    return num_train, max(_FEWEST_EPOCHS, min(_MOST_EPOCHS, epochs))


def _try_neighbors(task: ClassificationTask, data: SampledData) -> Trial:
    with _measure_cost() as cost:
        train, val = (
            load_features(task.backbone, task.preprocess, data, split, ("pooled",))
            for split in ("train", "val")
        )
        labels = train.target.label.numpy()
        target = labels if data.multilabel else np.eye(len(data.labels), dtype=np.float32)[labels]
        scores = score_neighbors(val.arrays["pooled"], train.arrays["pooled"], target)
    metric = _compute_score(scores, val.target.label.numpy(), data)
    task.take_labels(data)
    seconds, peak = cost
    return Trial("kNN", *metric, seconds, peak, 0.0, _measure_latency(task), 0, None)


def _try_adaptation(
    how: Adapt, settings: dict[str, Any], data: SampledData, epochs: int, out: Path, seed: int
) -> Trial:
    L.seed_everything(seed, verbose=False)
    with _measure_cost() as cost:
        task = ClassificationTask(
            **settings, adapt=how, multilabel=data.multilabel, optim=Optim(warmup_ratio=0.1)
        )
        trainer = L.Trainer(
            max_epochs=epochs,
            default_root_dir=out,
            precision="bf16-mixed" if torch.cuda.is_available() and how != "linear" else "32-true",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )
        trainer.fit(task, data)
    metric = _compute_score(*_predict(task, data), data)
    size = sum(p.numel() * p.element_size() for p in task.parameters() if p.requires_grad) / 2**20
    seconds, peak = cost
    return Trial(how, *metric, seconds, peak, size, _measure_latency(task), epochs, task.optim.lr)


@torch.inference_mode()
def _predict(task: ClassificationTask, data: SampledData) -> tuple[NDArray[Any], NDArray[Any]]:
    """Predict the validation images: scores [N, C], and labels [N] or [N, C]."""
    task.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    scores, target = [], []
    for batch in data.build_plain_loader("val"):
        if len(batch["image"]):
            scores.append(task.answer(batch["image"].to(task.device))["scores"].cpu().numpy())
            target.append(require_target(batch, Labels, task).label.numpy())
    return np.concatenate(scores), np.concatenate(target)


def _compute_score(
    scores: NDArray[Any], target: NDArray[Any], data: ImageData
) -> tuple[float, float, float]:
    compute = compute_multilabel_results if data.multilabel else compute_classification_results
    metric = compute(scores, target, data.labels)["mAP" if data.multilabel else "accuracy"]
    return metric["value"], metric["low"], metric["high"]


@contextmanager
def _measure_cost() -> Iterator[list[float]]:
    """Measure seconds, and MiB of memory beyond what was held before; both stand in the list afterwards."""
    cost: list[float] = []
    held = reset_peak_memory()
    start = time.perf_counter()
    yield cost
    cost += [time.perf_counter() - start, (read_peak_memory() - held) / 2**20]


def _write(
    out: Path,
    trials: list[Trial],
    winner: Trial,
    settings: dict[str, Any],
    source: ImageData,
    sample: SampledData,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    summary = {
        "score": "mAP" if sample.multilabel else "accuracy",
        "train_images": len(sample.records["train"]),
        "val_images": len(sample.records["val"]),
        "winner": winner.name,
        "trials": [trial._asdict() for trial in trials],
    }
    (out / "tune.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    model = {k: v for k, v in settings.items() if v is not None}
    model |= {"adapt": winner.name, "multilabel": sample.multilabel}
    model["optim"] = {"lr": ADAPTATIONS[winner.name].learning_rate}
    spec = source.spec
    data = {k: v for k, v in spec["init_args"].items() if v is not None}
    data["augment"] = "none" if winner.name == "linear" else "light"
    recipe = {
        "model": {"class_path": "ClassificationTask", "init_args": model},
        "data": {"class_path": spec["class_path"], "init_args": data},
        "trainer": {"max_epochs": winner.epochs},
    }
    header = (
        f"# Written by vfm tune: {winner.name} had the best {summary['score']} of a sample, {winner.score:.3f} "
        f"({winner.low:.3f} to {winner.high:.3f},\n# {summary['train_images']} images to learn from, "
        f"{summary['val_images']} to judge by).\n"
    )
    text = header + yaml.safe_dump(recipe, sort_keys=False)
    (out / "recipe.yaml").write_text(text, encoding="utf-8")


def _describe_winner(trials: list[Trial], winner: Trial, num_val: int) -> str:
    lines = [f"Best: {winner.name}."]
    if trials[0].score > winner.score:
        lines = [
            f"Best: kNN, without any training; the recipe is of the next best, {winner.name}. More images, or other "
            "ones, will help more than another adaptation."
        ]
    if close := [t.name for t in trials if t is not winner and t.high >= winner.score]:
        lines.append(
            f"Not told apart from it by {num_val} images: {', '.join(close)}; the cheaper may do as well."
        )
    lines.append(
        "A small ViT does not always win on a tiny set: compare --backbone convnext_tiny.fb_in22k_ft_in1k or "
        "tiny_vit_21m_224.dist_in22k_ft_in1k (vfm models --task classification)."
    )
    return "\n".join(lines)

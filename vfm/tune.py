"""`vfm tune`: which adaptation pays on your data, found by trying them on a sample within a time budget."""

from __future__ import annotations

import copy
import json
import logging
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from vfm_runtime.errors import VfmError

from vfm.data import ImageData
from vfm.data.auto import SampledData, open_data
from vfm.metrics import compute_classification_results, compute_multilabel_results
from vfm.metrics.knn import score_neighbors
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
_VAL_SHARE = 0.5
_BATCH = 32


class TuneError(VfmError, ValueError):
    """The time does not suffice for anything."""


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
    """Of the weights that learned, the head's among them: what is to be kept besides the pretrained ones."""
    ms: float
    """Median time of one image on this machine, batch 1, from pixels to answer."""
    epochs: int
    lr: float | None


class _Plan(NamedTuple):
    num_train: int
    num_val: int
    epochs: dict[str, int]


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
        seed: Of the sample and the trainings.

    Raises:
        TuneError: The time does not suffice for the smallest sample.
    """
    filter_logs()
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    start = time.perf_counter()
    source = open_data(data, seed=seed)
    settings: dict[str, Any] = {
        "backbone": backbone,
        "weights": str(weights) if weights else None,
        "pretrained": pretrained,
        "image_size": image_size,
        "fit": fit,
    }
    L.seed_everything(seed, verbose=False)
    task = ClassificationTask(**settings, adapt="linear", multilabel=_is_multilabel(source))
    forward = _forward_seconds(task)
    left = minutes * 60 - (time.perf_counter() - start)
    plan = _plan(forward, left, num_images, source)
    sample = SampledData(
        source, num_train=plan.num_train, num_val=plan.num_val, batch_size=_BATCH, seed=seed
    )
    sample.setup("fit")
    print(
        f"{len(sample.records['train'])} images to learn from, {len(sample.records['val'])} to judge by; "
        f"{1 / forward:.0f} images/s through {backbone}"
    )
    trials = [_knn(task, sample)]
    for how in _TRAINED:
        print(
            _row(trials[-1]) if len(trials) > 1 else _header() + "\n" + _row(trials[0]), flush=True
        )
        trials.append(_train(how, settings, sample, plan.epochs[how], Path(out), seed))
    print(_row(trials[-1]))
    winner = max(trials[1:], key=lambda t: t.score)
    _write(Path(out), trials, winner, settings, source, sample)
    print(_advice(trials, winner, len(sample.records["val"])))
    print(
        f"Recipe: {Path(out) / 'recipe.yaml'}\nNext: vfm fit --config {Path(out) / 'recipe.yaml'}"
    )


def _is_multilabel(data: ImageData) -> bool:
    data.setup("fit")
    return data.multilabel


def _forward_seconds(task: ClassificationTask) -> float:
    """Seconds of an image in a forward pass, median of three batches."""
    device = _device()
    task.to(device).eval()
    pixels = torch.zeros((_BATCH, *task.preprocess.size, 3), dtype=torch.uint8, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(4):
            start = time.perf_counter()
            task.backbone(task.preprocess.normalize(pixels)).pooled.sum().item()
            times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) / _BATCH


def _plan(forward: float, seconds: float, most: int, data: ImageData) -> _Plan:
    """The largest sample for which every training gets its fewest epochs, then as many epochs as fit."""
    available = len(data.records["train"])
    data.setup("validate")
    num_val_all = len(data.records["val"])
    per_epoch = (
        sum(_STEP_COST.values()) + len(_STEP_COST) * _VAL_SHARE
    )  # forwards an image, all trainings together
    fixed = 2 * (1 + _VAL_SHARE)  # features of both splits, and slack for what else takes time
    room = seconds / forward
    num_train = min(most, available, int(room / (fixed + _FEWEST_EPOCHS * per_epoch)))
    if num_train < 2 * len(data.labels):
        needed = 2 * len(data.labels) * (fixed + _FEWEST_EPOCHS * per_epoch) * forward / 60
        raise TuneError(
            f"The time is enough for {max(0, num_train)} images of {len(data.labels)} classes, at {1 / forward:.1f} a "
            f"second. Give --minutes {math.ceil(needed + 1)} or more, a smaller --image_size, or a smaller --backbone."
        )
    epochs = int((room / num_train - fixed) / per_epoch)
    epochs = max(_FEWEST_EPOCHS, min(_MOST_EPOCHS, epochs))
    num_val = min(num_val_all, max(len(data.labels), int(_VAL_SHARE * num_train)))
    return _Plan(
        num_train, num_val, {**dict.fromkeys(_STEP_COST, epochs), "linear": _LINEAR_EPOCHS}
    )


def _knn(task: ClassificationTask, data: SampledData) -> Trial:
    with _measured() as cost:
        stored = {
            split: load_features(task.backbone, task.preprocess, data, split, ("pooled",))
            for split in ("train", "val")
        }
        known = stored["train"].target.label.numpy()
        target = known if data.multilabel else np.eye(len(data.labels), dtype=np.float32)[known]
        scores = score_neighbors(
            stored["val"].arrays["pooled"], stored["train"].arrays["pooled"], target
        )
    found = _score(scores, stored["val"].target.label.numpy(), data)
    task.take_labels(data)
    return Trial("kNN", *found, cost["seconds"], cost["peak"], 0.0, _latency(task), 0, None)


def _train(
    how: Adapt, settings: dict[str, Any], data: SampledData, epochs: int, out: Path, seed: int
) -> Trial:
    L.seed_everything(seed, verbose=False)
    with _measured() as cost:
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
    scores, target = _answers(task, data)
    size = sum(p.numel() * p.element_size() for p in task.parameters() if p.requires_grad) / 2**20
    found = _score(scores, target, data)
    ms = _latency(task)
    return Trial(how, *found, cost["seconds"], cost["peak"], size, ms, epochs, task.optim.lr)


@torch.inference_mode()
def _answers(task: ClassificationTask, data: SampledData) -> tuple[NDArray[Any], NDArray[Any]]:
    task.to(_device()).eval()
    scores, target = [], []
    for batch in data.build_plain_loader("val"):
        if len(batch["image"]):
            scores.append(task.answer(batch["image"].to(task.device))["scores"].cpu().numpy())
            target.append(require_target(batch, Labels, task).label.numpy())
    return np.concatenate(scores), np.concatenate(target)


def _score(
    scores: NDArray[Any], target: NDArray[Any], data: ImageData
) -> tuple[float, float, float]:
    compute = compute_multilabel_results if data.multilabel else compute_classification_results
    metric = compute(scores, target, data.labels)["mAP" if data.multilabel else "accuracy"]
    return metric["value"], metric["low"], metric["high"]


@torch.inference_mode()
def _latency(task: ClassificationTask) -> float:
    """Milliseconds of one image, with adapters merged as an export has them."""
    plain = copy.deepcopy(task.backbone).eval()
    task.adaptation.merge(plain.model)
    head = task.head.eval()
    device = next(plain.parameters()).device
    pixels = torch.zeros((1, *task.preprocess.size, 3), dtype=torch.uint8, device=device)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        answer = head.decode(head(plain(task.preprocess.normalize(pixels))))
        answer["scores"].sum().item()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times[2:])


@contextmanager
def _measured() -> Iterator[dict[str, float]]:
    cost: dict[str, float] = {}
    held = reset_peak_memory()
    start = time.perf_counter()
    yield cost
    cost["seconds"] = time.perf_counter() - start
    cost["peak"] = (read_peak_memory() - held) / 2**20


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _write(
    out: Path,
    trials: list[Trial],
    winner: Trial,
    settings: dict[str, Any],
    source: ImageData,
    sample: SampledData,
) -> None:
    out.mkdir(parents=True, exist_ok=True)
    found = {
        "score": "mAP" if sample.multilabel else "accuracy",
        "train_images": len(sample.records["train"]),
        "val_images": len(sample.records["val"]),
        "winner": winner.name,
        "trials": [trial._asdict() for trial in trials],
    }
    (out / "tune.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
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
        f"# Written by vfm tune: {winner.name} had the best {found['score']} of a sample, {winner.score:.3f} "
        f"({winner.low:.3f} to {winner.high:.3f},\n# {found['train_images']} images to learn from, "
        f"{found['val_images']} to judge by).\n"
    )
    text = header + yaml.safe_dump(recipe, sort_keys=False)
    (out / "recipe.yaml").write_text(text, encoding="utf-8")


def _header() -> str:
    return (
        "adaptation   score  95 % interval       time     memory        size   one image\n"
        + "-" * 77
    )


def _row(t: Trial) -> str:
    return (
        f"{t.name:<10}  {t.score:6.3f}  {t.low:.3f} to {t.high:.3f}  {t.seconds:8.0f} s  {t.peak_mib:5.0f} MiB  "
        f"{t.size_mib:6.2f} MiB  {t.ms:7.1f} ms"
    )


def _advice(trials: list[Trial], winner: Trial, num_val: int) -> str:
    close = [t.name for t in trials if t is not winner and t.high >= winner.score]
    lines = [f"Best: {winner.name}."]
    if trials[0].score > winner.score:
        lines = [
            f"Best: kNN, without any training; the recipe is of the next best, {winner.name}. More images, or other "
            "ones, will help more than another adaptation."
        ]
    if close:
        lines.append(
            f"Not told apart from it by {num_val} images: {', '.join(close)}; the cheaper may do as well."
        )
    lines.append(
        "A small ViT does not always win on a tiny set: compare --backbone convnext_tiny.fb_in22k_ft_in1k or "
        "tiny_vit_21m_224.dist_in22k_ft_in1k (vfm models --task classification)."
    )
    return "\n".join(lines)

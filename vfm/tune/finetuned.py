"""Fine-tuned ways of `vfm tune`: LN, LoRA and all weights from the solved head, on as many folds as time allows."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from numpy.typing import NDArray

from vfm.data import ImageData
from vfm.losses import CrossEntropy
from vfm.metrics.ranking import Statistic
from vfm.models.adapt import ADAPTATIONS, Adapt
from vfm.spec import build, get_class_path
from vfm.tasks import ClassificationTask
from vfm.training.precision import choose_precision
from vfm.training.selection import build_statistic, compare_pairs, estimate_score
from vfm.tune.backbones import TriedBackbone
from vfm.tune.clock import Clock, OutOfTimeError, StopOverrun
from vfm.tune.images import LabeledPool
from vfm.tune.ways import UntriedWay, Way

FINE_TUNED: tuple[Adapt, ...] = ("full", "ln", "lora")
"""In the order in which they are tried: where time is short, the first is worth most."""
AUGMENT = "standard"
BATCH = 16
_FOLDS = 3
_STEPS, _FEW_STEPS, _FEWEST_STEPS = 400, 200, 100
_WARMUP, _SMOOTHING = 0.1, 0.1
_SCALES = (1.0, 0.75, 0.6)
"""Sides of the images as fractions of the usual one, tried until the trainings fit."""
_OVERHEAD = 3.0
"""Seconds of a fit besides its steps, before one was measured."""

log = logging.getLogger(__name__)


class Schedule(NamedTuple):
    """How every fine-tuned way is fitted, so that they can be compared."""

    image_size: int
    steps: int


@dataclass(eq=False)
class Trial:
    """A way under trial: scores of the images of the folds that were held out so far."""

    name: Adapt
    images: list[NDArray[np.int64]] = field(default_factory=list)
    """Indices of the images of each fold."""
    scores: list[NDArray[np.float32]] = field(default_factory=list)
    """Scores [n, C] of each fold."""
    frozen_scores: list[NDArray[np.float32]] = field(default_factory=list)
    """Scores of the best frozen head, of the same images from the same training images."""
    seconds: float = 0.0

    def build_statistics(self, target: NDArray[np.int64]) -> tuple[Statistic, Statistic, int]:
        """Return the metric of the way and of the frozen head by how often images count, and their number."""
        truth = target[np.concatenate(self.images)]
        parts = (self.scores, self.frozen_scores)
        ours, frozen = (build_statistic([np.concatenate(part)], truth) for part in parts)
        return ours, frozen, len(truth)

    def measure_gain(self, target: NDArray[np.int64]) -> float:
        """Return by how much the way is better than the frozen head on these images."""
        ours, frozen, number = self.build_statistics(target)
        once = np.ones((1, number), dtype=np.int64)
        return float(ours(once)[0] - frozen(once)[0])


@dataclass(eq=False)
class FineTuner:
    """Tries the fine-tuned ways within the time, and fits the chosen one on all images."""

    backbone: TriedBackbone
    clock: Clock
    reserve: float
    """Seconds that are needed at the end besides the final fit."""
    out: Path
    progress: Callable[[str], None]
    trials: dict[Adapt, Trial] = field(default_factory=dict)
    slowdown: dict[str, float] = field(default_factory=dict)
    """Measured time of a way's fit as a multiple of what was expected."""
    schedule: Schedule | None = None

    @property
    def pool(self) -> LabeledPool:
        """The images that are learned from."""
        return self.backbone.heads.pool

    def try_ways(self) -> list[Way | UntriedWay]:
        """Judge the ways fold by fold while time is left for a final fit, the most promising first."""
        self.backbone.measure_forward()
        folds = self.pool.draw_folds(min(_FOLDS, len(set(self.pool.keys))), self.pool.data.seed)
        trials = self.trials = {name: Trial(name) for name in FINE_TUNED}
        untried: dict[str, UntriedWay] = {}
        if importlib.util.find_spec("peft") is None:
            del trials["lora"]
            untried["lora"] = UntriedWay("lora", "it needs peft (pip install 'vfm[lora]')")
        while (trial := self._choose_next(trials, folds)) is not None:
            held_out = len(trial.images)
            train, judged = np.flatnonzero(folds != held_out), np.flatnonzero(folds == held_out)
            try:
                scores = self._fit_and_score(trial, train, judged)
            except OutOfTimeError:
                continue  # the slowdown is known now, and the schedule is chosen anew
            trial.images.append(judged)
            trial.scores.append(scores)
            trial.frozen_scores.append(self.backbone.heads.score_images(train, judged))
        return [self._describe(trial, folds) for trial in trials.values()] + list(untried.values())

    def expect_seconds(self, name: str, schedule: Schedule, num_scored: int = 0) -> float:
        """Return the seconds that a fit takes, and the scoring of some images after it."""
        forward = self.backbone.forward * (schedule.image_size / self.backbone.image_size) ** 2
        fit = schedule.steps * BATCH * forward * ADAPTATIONS[name].step_cost
        return self._slowdown(name) * (_OVERHEAD + fit) + num_scored * forward

    def fit_final(self, name: Adapt) -> ClassificationTask:
        """Fit a way on all images.

        Raises:
            OutOfTimeError: The machine has become so slow that the time is not enough.
        """
        assert self.schedule is not None
        train = np.arange(len(self.pool.indices))
        data = self._select(train, train[:0])
        allowed = max(
            self.clock.left + 0.1 * self.clock.total, self.expect_seconds(name, self.schedule)
        )
        return self._fit(name, data, allowed)

    def _slowdown(self, name: str) -> float:
        return self.slowdown.get(name, max(self.slowdown.values(), default=1.0))

    def _choose_next(self, trials: dict[Adapt, Trial], folds: NDArray[np.int64]) -> Trial | None:
        """Choose the way whose next fold is held out, and with it the schedule; None where no more fits."""
        num_folds = int(folds.max()) + 1
        num_scored = len(folds) // num_folds
        if not any(trial.images for trial in trials.values()):
            first = next(iter(trials.values()))
            self.schedule = self._choose_schedule(first.name, num_folds, num_scored)
            return None if self.schedule is None else first
        assert self.schedule is not None
        started = [trial for trial in trials.values() if trial.images]
        leader = max(started, key=lambda trial: trial.measure_gain(self.pool.target))
        left = self.clock.left - self.reserve
        rest = num_folds - len(leader.images)
        of_leader = self.expect_seconds(leader.name, self.schedule, num_scored)
        for trial in trials.values():
            if trial.images:
                continue
            # A way more is worth its time where the best one can still be judged on all folds.
            cost = self.expect_seconds(trial.name, self.schedule, num_scored)
            final = max(of_leader, cost)
            if cost + rest * of_leader + final <= left:
                return trial
        return leader if rest and 2 * of_leader <= left else None

    def _choose_schedule(self, name: Adapt, num_folds: int, num_scored: int) -> Schedule | None:
        """Choose the largest images and most steps with which a way can be judged on all folds, or on fewer."""
        sizes = [self._round_size(scale * self.backbone.image_size) for scale in _SCALES]
        choices = [Schedule(size, _STEPS) for size in sizes] + [Schedule(sizes[-1], _FEW_STEPS)]
        cases = [(number, choice) for number in range(num_folds, 0, -1) for choice in choices]
        left = self.clock.left - self.reserve
        for number, schedule in [*cases, (1, Schedule(sizes[-1], _FEWEST_STEPS))]:
            each = self.expect_seconds(name, schedule, num_scored)
            final = self.expect_seconds(name, schedule)
            if number * each + final <= left:
                return schedule
        # Before a training was measured it may take half of what is expected; one that does not ends soon.
        return None if self.slowdown or (each + final) / 2 > left else schedule

    def _round_size(self, side: float) -> int:
        return max(self.backbone.stride, int(side / self.backbone.stride) * self.backbone.stride)

    def _fit_and_score(
        self, trial: Trial, train: NDArray[np.int64], judged: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        assert self.schedule is not None
        expected = self.expect_seconds(trial.name, self.schedule)
        # The time of the final fit is not touched; it is at most as much as that of this one.
        left = self.clock.left - self.reserve
        allowed = max(left - expected, left / 2)
        self.progress(
            f"{trial.name}: {self.schedule.steps} steps at {self.schedule.image_size} pixels, fold "
            f"{len(trial.images) + 1} held out, about {expected:.0f} s"
        )
        data = self._select(train, judged)
        start = self.clock.elapsed
        try:
            task = self._fit(trial.name, data, allowed)
        except OutOfTimeError as error:
            self.slowdown[trial.name] = self._slowdown(trial.name) * error.seconds / expected
            raise
        seconds = self.clock.elapsed - start
        self.slowdown[trial.name] = self._slowdown(trial.name) * seconds / expected
        scores = predict_scores(task, data)
        trial.seconds += self.clock.elapsed - start
        return scores

    def _select(self, train: NDArray[np.int64], predict: NDArray[np.int64]) -> ImageData:
        return self.pool.select(
            train.tolist(), predict.tolist(), augment=AUGMENT, batch_size=min(BATCH, len(train))
        )

    def _fit(self, name: Adapt, data: ImageData, allowed: float) -> ClassificationTask:
        assert self.schedule is not None
        L.seed_everything(self.pool.data.seed, verbose=False)
        spec = {"class_path": get_class_path(ClassificationTask)}
        task: ClassificationTask = build(
            {**spec, "init_args": self.list_arguments(name)}, base=ClassificationTask
        )
        trainer = L.Trainer(
            max_steps=self.schedule.steps,
            max_epochs=-1,
            default_root_dir=self.out,
            precision=choose_precision(),
            callbacks=[StopOverrun(allowed)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
        )
        trainer.fit(task, data)
        return task

    def list_arguments(self, name: str) -> dict[str, Any]:
        """Return the arguments of the task of a way, as plain data; what is left out follows the number of images."""
        assert self.schedule is not None
        arguments = self.backbone.settings | {
            "image_size": self.schedule.image_size,
            "adapt": name,
            "multilabel": self.pool.data.multilabel,
            "optim": {"warmup_ratio": _WARMUP},
        }
        if not self.pool.data.multilabel:
            smoothing = {"label_smoothing": _SMOOTHING}
            arguments["loss"] = {"class_path": get_class_path(CrossEntropy), "init_args": smoothing}
        return arguments

    def _describe(self, trial: Trial, folds: NDArray[np.int64]) -> Way | UntriedWay:
        num_folds = int(folds.max()) + 1
        if not trial.images or self.schedule is None:
            size = self._round_size(_SCALES[-1] * self.backbone.image_size)
            schedule = self.schedule or Schedule(size, _FEWEST_STEPS)
            each = self.expect_seconds(trial.name, schedule, len(folds) // num_folds)
            needed = (self.clock.elapsed + self.reserve + 2 * each) / 60
            reason = f"one fold and the final fit would need --minutes {needed:.1f}"
            return UntriedWay(trial.name, reason, needed)
        ours, frozen, number = trial.build_statistics(self.pool.target)
        keys = [self.pool.keys[i] for i in np.concatenate(trial.images)]
        return Way(
            trial.name,
            estimate_score(ours, number, keys=keys),
            number,
            (len(trial.images), num_folds),
            trial.seconds,
            self.schedule.image_size,
            compare_pairs(ours, frozen, number, keys=keys),
            self.schedule.steps,
        )


@torch.inference_mode()
def predict_scores(task: ClassificationTask, data: ImageData) -> NDArray[np.float32]:
    """Return the scores [N, C] of the images that a data module has to answer for, in their order."""
    task.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    scores = np.zeros((len(data.records["predict"]), len(data.labels)), np.float32)
    for batch in data.build_plain_loader("predict"):
        if len(batch["image"]):
            answers = task.answer(batch["image"].to(task.device))["scores"]
            scores[batch["index"].numpy()] = answers.float().cpu().numpy()
    return scores

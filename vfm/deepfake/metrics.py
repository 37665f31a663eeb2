"""Scores of a detector of forgeries: by frame, by video and by method, pooled over a whole split.

Fake is the positive class, and a higher logit is more fake. A video is known by (data set, method, video): names
repeat between methods and data sets. Averages over batches are never taken: the mean of batches' AUCs is no AUC.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from vfm_runtime.errors import DataError

from vfm.metrics.intervals import LEVEL
from vfm.metrics.ranking import Metric, Ranking
from vfm.metrics.roc import ClusteredScores

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]
Key = tuple[str, str, str]
"""Data set, method ("" of a real) and video."""

LABELS = ("real", "fake")


class Videos(NamedTuple):
    """The videos of a split; an image is a video of one frame. V videos, N frames."""

    keys: list[Key]
    logits: FloatArray
    """[V], mean over the frames."""
    fake: BoolArray
    """[V]."""
    num_frames: IntArray
    """[V]."""
    spread: FloatArray
    """[V], standard deviation of the frames' logits."""
    of_frame: IntArray
    """[N], the place of each frame's video."""


def video_logits(logits: npt.ArrayLike, labels: npt.ArrayLike, keys: Sequence[Key]) -> Videos:
    """The mean logit of each video, in the order in which the videos first occur.

    Args:
        logits: float [N], of the frames.
        labels: int [N], 0 real, 1 fake.
        keys: For each frame its video.

    Raises:
        ValueError: A video has frames of both labels, a label is neither, a logit is not finite, or there are none.
    """
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    _check(values, truth, len(keys))
    places: dict[Key, int] = {}
    of_frame = np.array([places.setdefault(key, len(places)) for key in keys], np.int64)
    number = np.bincount(of_frame)
    num_fake = np.bincount(of_frame, weights=truth)
    names = list(places)
    mixed = np.flatnonzero((num_fake > 0) & (num_fake < number))
    if len(mixed):
        name = names[mixed[0]]
        raise DataError(
            f"{len(mixed)} videos have frames labelled real and frames labelled fake, such as video '{name[2]}' of "
            f"method '{name[1]}' in '{name[0]}': {int(num_fake[mixed[0]])} of {number[mixed[0]]} frames are fake. "
            "Two videos share a name, or a label is wrong: give them different names in the manifest's columns "
            "dataset, method or video."
        )
    mean = np.bincount(of_frame, weights=values) / number
    square = np.bincount(of_frame, weights=(values - mean[of_frame]) ** 2) / number
    return Videos(names, mean, num_fake > 0, number, np.sqrt(square), of_frame)


def auc(logits: npt.ArrayLike, fake: npt.ArrayLike) -> float | None:
    """Probability that a fake gets a higher logit than a real, ties counting half; None without both."""
    return Ranking(logits, fake).to_dict()["auroc"]


class Failure(NamedTuple):
    """A video that got no score: unreadable, or without a face."""

    key: Key
    label: int


def deepfake_results(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    keys: Sequence[Key],
    components: Sequence[str],
    *,
    failed: Sequence[Failure] = (),
    trained_on: Collection[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Every figure of a split, ready for JSON.

    Args:
        logits: float [N], of the frames.
        labels: int [N], 0 real, 1 fake.
        keys: Video of each frame.
        components: For each frame the name of the videos that share persons or sources with its own.
        failed: Videos of the split without any scored frame.
        trained_on: Names of the methods that the training saw, to tell unseen ones apart.
        seed: Of the bootstrap.

    Raises:
        ValueError: As `video_logits`.
    """
    videos = video_logits(logits, labels, keys)
    of_frame = _numbered(components)
    clusters = np.zeros(len(videos.keys), np.int64)
    clusters[videos.of_frame] = of_frame
    frames = ClusteredScores(logits, videos.fake[videos.of_frame], of_frame, _count(of_frame), seed)
    scores = ClusteredScores(videos.logits, videos.fake, clusters, _count(of_frame), seed)
    methods = method_scores(videos, clusters, seed)
    rows = _method_rows(methods, trained_on)
    return {
        "num_samples": len(frames.clusters),
        "num_videos": len(videos.keys),
        "num_reals": scores.num_negatives,
        "num_fakes": scores.num_positives,
        "num_identities": scores.num_clusters,
        "level": LEVEL,
        "video_auc": scores.estimate_auc(),
        "frame_auc": frames.estimate_auc()
        if len(frames.clusters) > len(scores.clusters)
        else scores.estimate_auc(),
        "macro_auc": _macro(scores, [m.scores for m in methods]),
        "worst_method": rows[0] if rows else None,
        "unseen_auc": _average(row["auc"] for row in rows if row["seen"] is False),
        "video": scores.estimate_all(),
        "frame": frames.compute_headline(),
        "per_method": rows,
        "without_method": _without(rows, methods, videos),
        "per_dataset": _dataset_rows(videos, clusters, seed),
        "failures": failure_figures(videos, failed),
    }


class MethodScores(NamedTuple):
    """The fakes of one method beside the reals that they are told from."""

    dataset: str
    method: str
    own_reals: bool
    """Whether the reals are of the same data set; of the whole split where that has none."""
    scores: ClusteredScores


def method_scores(videos: Videos, clusters: IntArray, seed: int = 0) -> list[MethodScores]:
    """Each method of each data set against the same reals: those of its data set.

    Args:
        videos: Of the split.
        clusters: [V], connected identities, from 0.
        seed: Of the bootstrap.
    """
    found = []
    pairs = zip(videos.keys, videos.fake, strict=True)
    for dataset, method in dict.fromkeys(key[:2] for key, fake in pairs if fake):
        chosen = beside_reals(videos, dataset, method)
        reals = chosen[~videos.fake[chosen]]
        own = any(videos.keys[real][0] == dataset for real in reals)
        part = ClusteredScores(
            videos.logits[chosen], videos.fake[chosen], clusters[chosen], _count(clusters), seed
        )
        found.append(MethodScores(dataset, method, own, part))
    return found


def beside_reals(videos: Videos, dataset: str, method: str) -> IntArray:
    """Places of the fakes of a method, and of the reals that they are told from.

    Args:
        videos: Of the split.
        dataset: Of the method; its reals, or all of the split where it has none.
        method: Of the fakes.
    """
    here = np.array([key[0] == dataset for key in videos.keys])
    made = np.array([key[1] == method for key in videos.keys])
    own = ~videos.fake & here
    reals = own if own.any() else ~videos.fake
    return np.flatnonzero(reals | (videos.fake & here & made))


def failure_figures(videos: Videos, failed: Sequence[Failure]) -> dict[str, Any]:
    """Videos without a score, as their own class: how many, and how much they could matter.

    A failure is neither right nor wrong, so two figures frame the truth: one leaves failures out, the other lets
    every failed fake look more real, and every failed real more fake, than all that were scored.

    Args:
        videos: That were scored.
        failed: That were not.
    """
    labels = np.array([failure.label for failure in failed], np.int64)
    infinite = np.where(labels == 1, -np.inf, np.inf)
    logits = np.concatenate([videos.logits, infinite])
    fake = np.concatenate([videos.fake, labels == 1])
    return {
        "num_reals": int((labels == 0).sum()),
        "num_fakes": int((labels == 1).sum()),
        "excluded_auc": auc(videos.logits, videos.fake),
        "worst_case_auc": auc(logits, fake),
    }


def _method_rows(
    methods: Sequence[MethodScores], trained_on: Collection[str] | None
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for part in methods:
        interval = part.scores.estimate_auc()
        rows.append(
            {
                "dataset": part.dataset,
                "method": part.method,
                "num_fakes": part.scores.num_positives,
                "num_reals": part.scores.num_negatives,
                "own_reals": part.own_reals,
                "seen": None if trained_on is None else part.method in trained_on,
                **part.scores.compute_headline(),
                "low": interval["low"],
                "high": interval["high"],
            }
        )
    return sorted(rows, key=lambda row: 2.0 if row["auc"] is None else row["auc"])


def _macro(scores: ClusteredScores, methods: Sequence[ClusteredScores]) -> Metric:
    """Mean AUC over the methods; each resample draws people for all of them at once."""
    statistics = [part.auc for part in methods if part.has_both]
    if not statistics:
        return {"value": None, "low": None, "high": None}

    def mean(counts: npt.ArrayLike) -> FloatArray:
        values = np.stack([statistic(counts) for statistic in statistics])
        defined = np.isfinite(values)
        number = defined.sum(axis=0)
        total = np.where(defined, values, 0.0).sum(axis=0)
        return np.where(number > 0, total / np.maximum(number, 1), np.nan)

    return scores.estimate(mean)


def _without(
    rows: Sequence[dict[str, Any]], methods: Sequence[MethodScores], videos: Videos
) -> list[dict[str, Any]]:
    """What is left of the figures when one method is left out: an average that one easy method carries falls most."""
    if len(methods) < 2:
        return []
    found = []
    for row in rows:
        name = (row["dataset"], row["method"])
        others = [other for other in rows if (other["dataset"], other["method"]) != name]
        kept = np.array(
            [
                not fake or key[:2] != name
                for key, fake in zip(videos.keys, videos.fake, strict=True)
            ]
        )
        found.append(
            {
                "dataset": name[0],
                "left_out": name[1],
                "macro_auc": _average(other["auc"] for other in others),
                "auc": auc(videos.logits[kept], videos.fake[kept]),
            }
        )
    return found


def _dataset_rows(videos: Videos, clusters: IntArray, seed: int) -> list[dict[str, Any]]:
    rows = []
    dataset = np.array([key[0] for key in videos.keys])
    for name in dict.fromkeys(key[0] for key in videos.keys):
        chosen = dataset == name
        part = ClusteredScores(
            videos.logits[chosen], videos.fake[chosen], clusters[chosen], _count(clusters), seed
        )
        interval = part.estimate_auc()
        rows.append(
            {
                "dataset": name,
                "num_fakes": part.num_positives,
                "num_reals": part.num_negatives,
                **part.compute_headline(),
                "low": interval["low"],
                "high": interval["high"],
            }
        )
    return rows


def _check(values: FloatArray, labels: npt.NDArray[Any], num_keys: int) -> None:
    if values.ndim != 1 or not len(values) == len(labels) == num_keys:
        raise DataError(
            f"There are {values.shape} logits, {labels.shape} labels and {num_keys} videos. Pass one of each for "
            "every frame."
        )
    if not len(values):
        raise DataError(
            "There are no frames to score. Check that the split has images that can be read."
        )
    wrong = sorted(set(np.unique(labels).tolist()) - {0, 1})
    if wrong:
        raise DataError(f"Labels are {wrong} besides 0 and 1. Pass 0 for real and 1 for fake.")
    number = int((~np.isfinite(values)).sum())
    if number:
        raise DataError(
            f"{number} of {len(values)} logits are not finite. A number that is not one cannot be ranked: train with "
            "a smaller learning rate, or in --trainer.precision 32-true or bf16-mixed."
        )


def _numbered(names: Sequence[str]) -> IntArray:
    places: dict[str, int] = {}
    return np.array([places.setdefault(name, len(places)) for name in names], np.int64)


def _count(clusters: IntArray) -> int:
    return int(clusters.max()) + 1


def _average(values: Iterable[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return sum(given) / len(given) if given else None

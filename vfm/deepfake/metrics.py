"""Deepfake metrics: AUC by frame, by video and by method, pooled over a whole split.

Fake is the positive class, and a higher logit is more fake. A video is known by (data set, method, video): names
repeat between methods and data sets. Averages over batches are never taken: the mean of batches' AUCs is no AUC.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence
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
    """[N], the index of each frame's video."""


def average_by_video(logits: npt.ArrayLike, labels: npt.ArrayLike, keys: Sequence[Key]) -> Videos:
    """The mean logit of each video, in the order in which the videos first occur.

    Args:
        logits: float [N], one for each frame.
        labels: int [N], 0 real, 1 fake.
        keys: Video of each of the N frames.

    Raises:
        ValueError: A video has frames of both labels, a label is neither, a logit is not finite, or there are none.
    """
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    _check(values, truth, len(keys))
    names, of_frame = list(dict.fromkeys(keys)), _index_names(keys)
    number = np.bincount(of_frame)
    num_fake = np.bincount(of_frame, weights=truth)
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


def compute_auc(logits: npt.ArrayLike, fake: npt.ArrayLike) -> float | None:
    """Probability that a fake gets a higher logit than a real, ties counting half; None without both."""
    return Ranking(logits, fake).to_dict()["auroc"]


class LostVideo(NamedTuple):
    """A video that got no score: unreadable, or without a face."""

    key: Key
    label: int


def compute_deepfake_results(
    logits: npt.ArrayLike,
    labels: npt.ArrayLike,
    keys: Sequence[Key],
    components: Sequence[str],
    *,
    lost: Sequence[LostVideo] = (),
    trained_on: Collection[str] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Every metric of a split, ready for JSON.

    Args:
        logits: float [N], one for each frame.
        labels: int [N], 0 real, 1 fake.
        keys: Video of each frame.
        components: For each frame the name of the videos that share persons or sources with its own.
        lost: Videos of the split without any scored frame.
        trained_on: Names of the methods that the training saw, to tell unseen ones apart.
        seed: Seed of the bootstrap.

    Raises:
        ValueError: The frames make no videos, for the reasons of `average_by_video`.
    """
    videos = average_by_video(logits, labels, keys)
    of_frame = _index_names(components)
    num_clusters = int(of_frame.max()) + 1
    clusters = np.zeros(len(videos.keys), np.int64)
    clusters[videos.of_frame] = of_frame
    frames = ClusteredScores(logits, videos.fake[videos.of_frame], of_frame, num_clusters, seed)

    def score(chosen: IntArray) -> ClusteredScores:
        return ClusteredScores(
            videos.logits[chosen], videos.fake[chosen], clusters[chosen], num_clusters, seed
        )

    scores = score(np.arange(len(videos.keys)))
    dataset = np.array([key[0] for key in videos.keys])
    methods = {
        name: score(select_method(videos, *name))
        for name in dict.fromkeys(
            key[:2] for key, fake in zip(videos.keys, videos.fake, strict=True) if fake
        )
    }
    rows = [
        {
            "dataset": name[0],
            "method": name[1],
            "own_reals": bool((~videos.fake & (dataset == name[0])).any()),
            "seen": None if trained_on is None else name[1] in trained_on,
            **_describe(part),
        }
        for name, part in methods.items()
    ]
    rows.sort(key=lambda row: 2.0 if row["auc"] is None else row["auc"])
    video_auc = scores.estimate_auc()
    several = len(frames.clusters) > len(scores.clusters)
    return {
        "num_samples": len(frames.clusters),
        "num_videos": len(videos.keys),
        "num_reals": scores.num_negatives,
        "num_fakes": scores.num_positives,
        "num_identities": scores.num_clusters,
        "level": LEVEL,
        "video_auc": video_auc,
        "frame_auc": frames.estimate_auc() if several else video_auc,
        "macro_auc": _estimate_macro_auc(scores, list(methods.values())),
        "worst_method": rows[0] if rows else None,
        "unseen_auc": _average(row["auc"] for row in rows if row["seen"] is False),
        "video": scores.estimate_all(),
        "frame": frames.compute_headline(),
        "per_method": rows,
        "without_method": _leave_methods_out(rows, videos) if len(rows) > 1 else [],
        "per_dataset": [
            {"dataset": name, **_describe(score(np.flatnonzero(dataset == name)))}
            for name in dict.fromkeys(key[0] for key in videos.keys)
        ],
        "failures": bound_failures(videos, lost),
    }


def select_method(videos: Videos, dataset: str, method: str) -> IntArray:
    """Indices of the fakes of a method, and of the reals that they are told from.

    Args:
        videos: Videos of the split.
        dataset: Data set of the method; its reals count, or all of the split where it has none.
        method: Name of the method in its data set.
    """
    same = np.array([key[0] == dataset for key in videos.keys])
    by_method = np.array([key[1] == method for key in videos.keys])
    reals = ~videos.fake & same
    if not reals.any():
        reals = ~videos.fake
    return np.flatnonzero(reals | (videos.fake & same & by_method))


def bound_failures(videos: Videos, lost: Sequence[LostVideo]) -> dict[str, Any]:
    """Videos without a score, as their own class: how many, and how much they could matter.

    A failure is neither right nor wrong, so two metrics frame the truth: one leaves failures out, the other lets
    every failed fake look more real, and every failed real more fake, than all that were scored.
    """
    labels = np.array([video.label for video in lost], np.int64)
    logits = np.concatenate([videos.logits, np.where(labels == 1, -np.inf, np.inf)])
    return {
        "num_reals": int((labels == 0).sum()),
        "num_fakes": int((labels == 1).sum()),
        "excluded_auc": compute_auc(videos.logits, videos.fake),
        "worst_case_auc": compute_auc(logits, np.concatenate([videos.fake, labels == 1])),
    }


def _describe(scores: ClusteredScores) -> dict[str, Any]:
    """Counts and metrics of a method or a data set."""
    interval = scores.estimate_auc()
    return {
        "num_fakes": scores.num_positives,
        "num_reals": scores.num_negatives,
        **scores.compute_headline(),
        "low": interval["low"],
        "high": interval["high"],
    }


def _estimate_macro_auc(scores: ClusteredScores, methods: Sequence[ClusteredScores]) -> Metric:
    """Mean AUC over the methods; each resample draws people for all of them at once."""
    statistics = [part.auc for part in methods if part.has_both]
    if not statistics:
        return {"value": None, "low": None, "high": None}

    def average(counts: npt.ArrayLike) -> FloatArray:
        values = np.stack([statistic(counts) for statistic in statistics])
        number = np.isfinite(values).sum(axis=0)
        return np.where(number > 0, np.nansum(values, axis=0) / np.maximum(number, 1), np.nan)

    return scores.estimate(average)


def _leave_methods_out(rows: Sequence[dict[str, Any]], videos: Videos) -> list[dict[str, Any]]:
    """What is left of the AUC when one method is left out: an average that one easy method carries falls most."""
    results = []
    for left_out in rows:
        name = (left_out["dataset"], left_out["method"])
        pairs = zip(videos.keys, videos.fake, strict=True)
        rest = np.array([not fake or key[:2] != name for key, fake in pairs])
        results.append(
            {
                "dataset": name[0],
                "left_out": name[1],
                "macro_auc": _average(row["auc"] for row in rows if row is not left_out),
                "auc": compute_auc(videos.logits[rest], videos.fake[rest]),
            }
        )
    return results


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


def _index_names(names: Sequence[Hashable]) -> IntArray:
    """Number names from 0, in the order in which they first occur."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


def _average(values: Iterable[float | None]) -> float | None:
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined else None

"""Few-shot curve: accuracy over several random supports of 1, 2, 4, 8 and 16 examples a class, with intervals."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.zero_shot import ZeroShotClassifier

from vfm.incontext.few_shot import fit_few_shot
from vfm.metrics import Interval
from vfm.metrics.intervals import LEVEL
from vfm.report import Page, plot_learning_curves

SHOTS = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class SupportPoint:
    """Accuracy of few-shot classifiers that learned from random supports of one size."""

    shots: int
    """Examples of each class that each learned from."""
    accuracies: tuple[float, ...]
    """Accuracy on all other examples, one for each support."""
    heads: tuple[str, ...]
    """Name of the head that was chosen, one for each support."""

    @property
    def interval(self) -> Interval:
        """Mean over the supports, with its 95 % interval."""
        return estimate_mean(self.accuracies)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        values = {"accuracies": list(self.accuracies), "heads": list(self.heads)}
        return {"shots": self.shots, **self.interval.to_dict(), **values}


def estimate_mean(values: Sequence[float]) -> Interval:
    """Return the mean of measurements that were drawn alike, with Student's 95 % interval; of one from 0 to 1."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, 0.0, 1.0)
    reach = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * stats.sem(values))
    return Interval(mean, max(0.0, mean - reach), min(1.0, mean + reach))


def measure_supports(
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    *,
    keys: Sequence[str] | None = None,
    draws: int = 5,
    seed: int = 0,
    words: ZeroShotClassifier | None = None,
) -> list[SupportPoint]:
    """Fit few-shot classifiers on random supports, and judge each on all examples that it has not learned from.

    Sizes go on for as long as each class has an example more. The draws of a seed contain each other.

    Args:
        embeddings: Vectors of the examples, [N, D].
        labels: Class of each example, N of them.
        keys: Key of each example, such as a checksum: those of one key are never divided.
        draws: Number of supports of each size.
        seed: Seed of the first draw.
        words: The classes as words, where the model has a text tower.

    Raises:
        OptionError: There are fewer than two draws.
        DataError: A class has fewer than two examples.
    """
    if draws < 2:
        raise OptionError(f"draws is {draws}. Give 2 or more, so that an interval can be said.")
    keys = [str(i) for i in range(len(labels))] if keys is None else keys
    keys_by_class: defaultdict[str, list[str]] = defaultdict(list)
    for label, key in sorted(set(zip(labels, keys, strict=True))):
        keys_by_class[label].append(key)
    name, fewest = min(((n, len(k)) for n, k in keys_by_class.items()), key=lambda pair: pair[1])
    if fewest < 2:
        raise DataError(
            f"The class '{name}' has {fewest} example, and a curve judges on examples that were not learned from. Give "
            "2 or more of each class, or leave --curve out."
        )
    orders = []
    for draw in range(draws):
        random = np.random.default_rng([seed, draw])
        orders.append([random.permutation(of_class) for of_class in keys_by_class.values()])
    every, points = np.array(labels), []
    for shots in (number for number in SHOTS if number < fewest):
        accuracies, heads = [], []
        for draw, order in enumerate(orders):
            drawn = np.isin(keys, np.concatenate([of_class[:shots] for of_class in order]))
            support = np.flatnonzero(drawn)
            classifier = fit_few_shot(
                embeddings[support],
                every[support].tolist(),
                keys=[keys[int(i)] for i in support],
                seed=seed + draw,
                words=words,
            )
            answers = np.array(classifier.labels)[classifier.score(embeddings[~drawn]).argmax(1)]
            accuracies.append(float((answers == every[~drawn]).mean()))
            heads.append(classifier.name)
        points.append(SupportPoint(shots, tuple(accuracies), tuple(heads)))
    return points


def format_points(points: Sequence[SupportPoint]) -> str:
    """Return the curve as a table of text."""
    lines = [f"examples a class  accuracy  {LEVEL:.0%} interval  supports"]
    for point in points:
        mean = point.interval
        lines.append(
            f"{point.shots:16d}  {mean.value:8.3f}  {mean.low:.3f} to {mean.high:.3f}  "
            f"{len(point.accuracies):7d}"
        )
    return "\n".join(lines)


def write_curve(folder: Path, points: Sequence[SupportPoint], subtitle: str) -> None:
    """Write `curve.json`, `curve.png` and the page `curve.html`.

    Args:
        folder: Folder of the files, which is made.
        points: Accuracy by the size of the supports.
        subtitle: Line under the title of the page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = json.dumps({"points": [point.to_dict() for point in points]}, indent=2)
    (folder / "curve.json").write_text(values + "\n", encoding="utf-8")
    line = [(float(p.shots), p.interval.value, p.interval.low, p.interval.high) for p in points]
    plot = plot_learning_curves(
        {"accuracy": {"mean of the supports": line}}, xlabel="examples a class", log_x=True
    )
    (folder / "curve.png").write_bytes(plot)
    page = Page("What more examples are worth", subtitle)
    page.add_figure(
        plot,
        "Accuracy on the examples that were not learned from: mean over random supports, and its 95 % interval.",
    )
    page.add_table(
        [
            {
                "examples a class": point.shots,
                "accuracy": point.interval.value,
                "low": point.interval.low,
                "high": point.interval.high,
                "supports": len(point.accuracies),
                "heads": ", ".join(sorted(set(point.heads))),
            }
            for point in points
        ]
    )
    page.write(folder / "curve.html")

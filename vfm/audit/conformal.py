"""Conformal sets: labels that hold the true one at a promised rate, by split conformal prediction (LAC and APS)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vfm_runtime.errors import OptionError

from vfm.audit.comparison import Bools, ClusterSampler, Floats, RatioMetric
from vfm.audit.groups import MIN_GROUP, list_groups
from vfm.audit.kinds import AuditKind
from vfm.metrics.calibration import TooFewError, fit_conformal_threshold
from vfm.report import Page

METHODS = {
    "LAC": "every label whose score is high enough: the smallest sets (Sadinle et al., Least ambiguous set-valued "
    "classifiers with bounded error levels, 2019)",
    "APS": "labels from the likeliest on until their scores add up to enough, the last one by lot: larger sets where "
    "an image is hard (Romano et al., Classification with valid and adaptive coverage, 2020)",
}
"""What the sets of each method are."""
_ABOUT = (
    "A set of labels for each image in place of one label. One half of the images sets the threshold, the other half "
    "measures what comes of it. The guarantee: of new images from where these come from, drawn like them, at least "
    "{level:.0%} have their true label in their set, on average over draws of the first half, however bad the model "
    "is. It promises nothing of a group, a label or a single image, and nothing of images from elsewhere: a group may "
    "get less while others get more, so the groups are measured below."
)


def check_level(level: float | None, kind: AuditKind, task: str) -> None:
    """Refuse a level of `--conformal` that is none, or a task that has no such sets.

    Raises:
        OptionError: It is not between 0.5 and 1, or the model does not give one label an image.
    """
    if level is None:
        return
    if not 0.5 <= level < 1:
        raise OptionError(
            f"--conformal is {level:g}. Give the fraction of images whose set shall hold the true label, from 0.5 to "
            "below 1, such as 0.9."
        )
    if not kind.gives_one_label:
        raise OptionError(
            f"--conformal is for models that give one label an image, and this one's task is '{task}'. Leave it out."
        )


def score_labels(scores: NDArray[np.float32], method: str, seed: int = 0) -> Floats:
    """Return how unlike the truth each label is, [N, C]: a set holds the labels up to a threshold.

    Args:
        scores: Probabilities of the labels of each image, [N, C].
        method: Name of a method in `METHODS`.
        seed: Seed of the lots of APS, one for each image.
    """
    values = scores.astype(np.float64)
    if method == "LAC":
        return 1 - values
    order = np.argsort(-values, axis=1, kind="stable")
    ranked = np.take_along_axis(values, order, axis=1)
    lots = np.random.default_rng(seed).random((len(values), 1))
    summed = np.cumsum(ranked, axis=1) - lots * ranked
    result = np.empty_like(values)
    np.put_along_axis(result, order, summed, axis=1)
    return result


def measure_conformal(
    scores: NDArray[np.float32],
    target: NDArray[np.int64],
    columns: Mapping[str, Sequence[str]],
    sampler: ClusterSampler,
    level: float,
) -> dict[str, Any]:
    """Return coverage and sizes of conformal sets on the half that did not set their threshold, by group too.

    Args:
        scores: Probabilities of the labels of each image, [N, C].
        target: True class of each image, [N].
        columns: A value for each image by the name of a group column.
        sampler: Draws of the images; what belongs together is in one half.
        level: Fraction of images whose set shall hold the true label.

    Returns:
        Plain values; `reason` in place of `methods` where the first half has too few images.
    """
    generator = np.random.default_rng(sampler.seed)
    chosen = generator.permutation(sampler.num_clusters)[: sampler.num_clusters // 2]
    fits: Bools = np.isin(sampler.clusters, chosen)
    result: dict[str, Any] = {
        "level": level,
        "num_fitted": int(fits.sum()),
        "num_measured": int((~fits).sum()),
        "is_clustered": sampler.is_clustered,
    }
    methods = {}
    for method in METHODS:
        unlike = score_labels(scores, method, sampler.seed)
        true = unlike[np.arange(len(target)), target]
        try:
            threshold = fit_conformal_threshold(true[fits], 1 - level, "images")
        except TooFewError as error:
            return {**result, "reason": str(error), "methods": {}}
        sizes = (unlike <= threshold).sum(1).astype(np.float64)
        ones = np.ones(len(target))
        covered = RatioMetric("coverage", (true <= threshold).astype(float), ones)
        size = RatioMetric("set_size", sizes, ones, None)

        groups = [
            {"group": name, **_describe(sampler, covered, size, member & ~fits, level)}
            for name, member, is_intersection in list_groups(columns)
            if not is_intersection and (member & ~fits).sum() >= MIN_GROUP
        ]
        methods[method] = {
            "threshold": threshold,
            **_describe(sampler, covered, size, ~fits, level),
            "groups": groups,
        }
    return {**result, "methods": methods}


def _describe(
    sampler: ClusterSampler, covered: RatioMetric, size: RatioMetric, member: Bools, level: float
) -> dict[str, Any]:
    """Return coverage and sizes of the sets of some images."""
    coverage, mean_size = sampler.estimate(covered, member), sampler.estimate(size, member)
    assert coverage is not None
    assert mean_size is not None
    sizes = size.numerator[member]
    return {
        "num_images": int(member.sum()),
        "coverage": coverage.to_dict(),
        "mean_size": mean_size.to_dict(),
        "fraction_empty": float((sizes == 0).mean()),
        "fraction_of_one_label": float((sizes == 1).mean()),
        "is_below": coverage.high < level,
    }


def describe_conformal(result: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each method, then one for each group that gets less than was promised of all."""
    if "reason" in result:
        return [f"No conformal sets: {result['reason']}"]
    sentences = []
    for method, row in result["methods"].items():
        coverage, size = row["coverage"], row["mean_size"]
        sentences.append(
            f"Conformal sets ({method}) at {result['level']:.0%}: the true label is in {coverage['value']:.1%} of the "
            f"sets (95 % interval {coverage['low']:.1%} to {coverage['high']:.1%}) of {row['num_images']} images, with "
            f"{size['value']:.2f} labels in each on average."
        )
        sentences += [
            f"{group['group']} gets less than all ({method}): {group['coverage']['value']:.1%} (to "
            f"{group['coverage']['high']:.1%}) of {group['num_images']} images, and {group['mean_size']['value']:.2f} "
            "labels in each set."
            for group in row["groups"]
            if group["is_below"]
        ]
    return sentences


def add_conformal(page: Page, result: Mapping[str, Any]) -> None:
    """Add the sets to the page of an audit."""
    page.add_heading("Conformal sets")
    page.add_text(_ABOUT.format(level=result["level"]))
    if result["is_clustered"]:
        page.add_text(
            "What belongs together is in one half, and the promise is then near, not exact: clusters are drawn, not "
            "images."
        )
    for sentence in describe_conformal(result):
        page.add_text(sentence)
    for method, row in result["methods"].items():
        page.add_text(f"{method}: {METHODS[method]}.")
        page.add_table(
            [
                {
                    "images": name,
                    "number": each["num_images"],
                    "true label in the set": each["coverage"]["value"],
                    "95 % interval": "{low:.3f} to {high:.3f}".format(**each["coverage"]),
                    "labels in a set": each["mean_size"]["value"],
                    "of one label": each["fraction_of_one_label"],
                    "empty": each["fraction_empty"],
                    "less than promised": "yes" if each["is_below"] else "",
                }
                for name, each in [("all", row), *((g["group"], g) for g in row["groups"])]
            ]
        )

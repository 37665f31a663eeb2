"""Slices found without labels: alike images on which a model is worse, found on one half, confirmed on the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vfm.audit.comparison import (
    LEVEL,
    Bools,
    ClusterSampler,
    Comparison,
    Floats,
    RatioMetric,
)
from vfm.data.file_metadata import Metadata

_NUM_CLUSTERS = (5, 10, 20)
_FRACTION = 0.2
_LEAST_IMAGES = 15
_MOST_CONFIRMED = 10
_EXTREMES = {
    "brightness": ("the darkest", "the brightest"),
    "contrast": ("the flattest", "the most contrasted"),
    "saturation": ("the palest", "the most colorful"),
    "sharpness": ("the most blurred", "the sharpest"),
    "size": ("the smallest", "the largest"),
    "aspect": ("the tallest", "the widest"),
}


class SliceCandidate(NamedTuple):
    """Images that have something in common."""

    name: str
    member: Bools
    """[N]."""


@dataclass(eq=False)
class Slice:
    """A slice that was found on one half and confirmed on the other."""

    candidate: SliceCandidate
    finding: Comparison
    """The half that it was found on: too good a story, since it was chosen by it."""
    confirmation: Comparison
    """The other half, which is what to believe."""
    adjusted: float
    """The p-value of the confirmation once all that were tried there are counted (Holm)."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "name": self.candidate.name,
            "num_images": int(self.candidate.member.sum()),
            "value": self.confirmation.value.to_dict(),
            "gap": self.confirmation.gap.to_dict(),
            "gap_where_found": self.finding.gap.value,
            "adjusted_p_value": self.adjusted,
        }


class SliceSearch(NamedTuple):
    """What a search for slices found."""

    confirmed: list[Slice]
    num_candidates: int
    num_tried: int
    """Candidates that stood out on the first half, and were tried on the other."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            "confirmed": [each.to_dict() for each in self.confirmed],
            "num_candidates": self.num_candidates,
            "num_tried": self.num_tried,
        }


def list_traits(rows: Sequence[Metadata]) -> dict[str, Floats]:
    """Return plain properties of images by name, [N], of what each has beside its content."""
    columns = {
        name: np.array([float(row[name] or 0) for row in rows])
        for name in ("brightness", "contrast", "saturation", "sharpness", "width", "height")
    }
    width, height = columns.pop("width"), columns.pop("height")
    return {**columns, "size": np.sqrt(width * height), "aspect": width / np.maximum(height, 1)}


def find_slices(
    metric: RatioMetric,
    traits: Mapping[str, Floats],
    vectors: NDArray[np.float32] | None,
    sampler: ClusterSampler,
) -> SliceSearch:
    """Look for images with something in common on which a model is worse, and confirm it on images not looked at.

    Args:
        metric: Metric of N images by which slices are worse, such as the accuracy.
        traits: Plain properties of each image by name, [N].
        vectors: Embeddings, [N, D]; None for traits alone.
        sampler: Draws of the images by cluster, whose seed also divides them into halves.
    """
    generator = np.random.default_rng(sampler.seed)
    is_first = (generator.permutation(sampler.num_clusters) % 2 == 0)[sampler.clusters]
    candidates = list(_list_candidates(traits, vectors, is_first, sampler.seed))
    halves = [_Half(metric, half, sampler) for half in (is_first, ~is_first)]
    standing_out = []
    for candidate in candidates:
        finding = halves[0].compare(candidate.member)
        if finding is not None and finding.p_value <= LEVEL and _is_worse(metric, finding):
            standing_out.append((candidate, finding))
    standing_out.sort(key=lambda pair: pair[1].p_value)
    tried = []
    for candidate, finding in standing_out[:_MOST_CONFIRMED]:
        confirmation = halves[1].compare(candidate.member)
        if confirmation is not None:
            # Only worse counts, which halves the probability of chance.
            p_value = confirmation.p_value / 2
            p_value = p_value if _is_worse(metric, confirmation) else 1 - p_value
            tried.append((candidate, finding, confirmation, p_value))
    tried.sort(key=lambda row: row[3])
    confirmed: list[Slice] = []
    adjusted = 0.0
    for rank, (candidate, finding, confirmation, p_value) in enumerate(tried):
        adjusted = max(adjusted, min(1.0, p_value * (len(tried) - rank)))
        if adjusted <= LEVEL:
            confirmed.append(Slice(candidate, finding, confirmation, adjusted))
    return SliceSearch(_drop_similar(confirmed), len(candidates), len(tried))


class _Half:
    """A metric on half of the images."""

    def __init__(self, metric: RatioMetric, chosen: Bools, sampler: ClusterSampler) -> None:
        self.chosen = chosen
        self.metric = RatioMetric(
            metric.name,
            metric.numerator[chosen],
            metric.denominator[chosen],
            metric.higher_is_better,
        )
        clusters = np.unique(sampler.clusters[chosen], return_inverse=True)[1]
        self.sampler = ClusterSampler(clusters.astype(np.int64), sampler.seed)

    def compare(self, member: Bools) -> Comparison | None:
        inside = member[self.chosen]
        if min(inside.sum(), (~inside).sum()) < _LEAST_IMAGES:
            return None
        return self.sampler.compare(self.metric, inside)


def _is_worse(metric: RatioMetric, comparison: Comparison) -> bool:
    gap = comparison.gap.value
    return gap < 0 if metric.higher_is_better else gap > 0


def _list_candidates(
    traits: Mapping[str, Floats],
    vectors: NDArray[np.float32] | None,
    is_first: Bools,
    seed: int,
) -> Iterator[SliceCandidate]:
    """Yield images of extreme traits and clusters, whose bounds and middles come from the first half alone."""
    for name, values in traits.items():
        low, high = np.quantile(values[is_first], [_FRACTION, 1 - _FRACTION])
        if low == high:
            continue  # nearly all images are alike in it
        words = _EXTREMES.get(name, ("least", "most"))
        yield SliceCandidate(f"{words[0]}: {name} up to {low:.3g}", values <= low)
        yield SliceCandidate(f"{words[1]}: {name} from {high:.3g}", values >= high)
    if vectors is None:
        return
    from sklearn.cluster import MiniBatchKMeans

    rows = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    for number in _NUM_CLUSTERS:
        if number * _LEAST_IMAGES > is_first.sum():
            continue
        kmeans = MiniBatchKMeans(number, n_init=3, batch_size=2048, random_state=seed)
        numbers = kmeans.fit(rows[is_first]).predict(rows)
        for k in range(number):
            yield SliceCandidate(
                f"images that look alike: cluster {k + 1} of {number}", numbers == k
            )


def _drop_similar(slices: list[Slice]) -> list[Slice]:
    """Leave out slices that share most of their images, or most of its, with one before."""
    chosen: list[Slice] = []
    for each in slices:
        member = each.candidate.member
        overlaps = [
            (member & other.candidate.member).sum()
            / min(member.sum(), other.candidate.member.sum())
            for other in chosen
        ]
        if max(overlaps, default=0.0) < 0.5:
            chosen.append(each)
    return chosen

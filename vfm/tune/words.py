"""Results of `vfm tune` in words: what was chosen, whether fine-tuning pays, what more images would be worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vfm.tune.learning_curve import LearningCurve
from vfm.tune.ways import UntriedWay, Way, format_points

_LITTLE = 0.005
"""A gain that is not worth naming: half a point."""


@dataclass(frozen=True, eq=False)
class TuneResult:
    """Chosen way, all others that were tried or not, and the learning curve."""

    metric: str
    """`accuracy` or `mAP`."""
    frozen: list[Way]
    """The best head of each kind on frozen features, the chosen one first."""
    fine_tuned: list[Way | UntriedWay]
    chosen: Way
    curve: LearningCurve | None
    num_images: int
    """Images that the finished model learned from."""

    @property
    def tried(self) -> list[Way]:
        """All ways that were judged."""
        return [*self.frozen, *(way for way in self.fine_tuned if isinstance(way, Way))]

    @property
    def untried(self) -> list[UntriedWay]:
        """The ways that were not tried."""
        return [way for way in self.fine_tuned if isinstance(way, UntriedWay)]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as `results.json` holds it, the chosen way's metric as those of a split."""
        interval = self.chosen.interval
        return {
            "num_samples": self.chosen.num_judged,
            self.metric: interval.to_dict(),
            "chosen": self.chosen.name,
            "num_images": self.num_images,
            "ways": [way.to_dict() for way in self.tried],
            "not_tried": [
                {"name": way.name, "reason": way.reason, "minutes": way.minutes}
                for way in self.untried
            ],
            "learning_curve": None if self.curve is None else self.curve.to_dict(),
        }

    def describe(self) -> list[str]:
        """Return sentences on the choice, on fine-tuning and on more images."""
        way, interval = self.chosen, self.chosen.interval
        sentences = [
            f"Chosen: {way.title}. On new images like these expect a{'n' * (self.metric == 'accuracy')} {self.metric} "
            f"of {interval.value:.3f} (95 % interval {interval.low:.3f} to {interval.high:.3f}), judged on "
            f"{way.num_judged} images that it had not learned from.",
            self._describe_fine_tuning(),
        ]
        if self.curve is not None:
            sentences.append(self._describe_curve(self.curve))
        return sentences

    def _describe_fine_tuning(self) -> str:
        judged = [(way, way.gain) for way in self.tried if way.gain is not None]
        if not judged:
            minutes = [way.minutes for way in self.untried if way.minutes is not None]
            more = f" --minutes {max(1, round(min(minutes) + 0.5))} would tell." if minutes else ""
            return f"Whether fine-tuning pays is not known: it was not tried.{more}"
        way, gain = max(judged, key=lambda pair: pair[1].expected)
        measured = (
            f"{way.title} against the best frozen head on the same {way.num_judged} images: "
            f"{format_points(gain.interval)} points (95 % interval)"
        )
        if way is self.chosen:
            sure = gain.interval.low > 0
            return f"Fine-tuning {'pays' if sure else 'seems to pay'} here: {measured}." + (
                "" if sure else " Chance alone could do that; more images would tell."
            )
        if gain.interval.high < 0:
            return f"Fine-tuning does not pay here: {measured}."
        seems = "does not seem" if gain.interval.value < 0 else "has not been shown"
        return f"Fine-tuning {seems} to pay here: {measured}."

    def _describe_curve(self, curve: LearningCurve) -> str:
        gain = curve.gain
        sizes = ", ".join(f"{value:.3f} from {size}" for size, value in curve.points)
        start = f"Learning curve of the frozen head: {sizes} images."
        if gain.value < max(_LITTLE, 1 / self.num_images):
            return f"{start} Twice the images would hardly help it, as far as this can be extrapolated."
        low, high = (max(0.0, 100 * end) for end in (gain.low, gain.high))
        return (
            f"{start} Extrapolated, twice the images would be worth about {100 * gain.value:.0f} ({low:.0f} to "
            f"{high:.0f}) points."
        )

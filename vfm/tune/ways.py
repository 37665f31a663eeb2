"""Ways of `vfm tune`: what was tried, with its score and its gain, and what was not, with the minutes it needs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from vfm.metrics import Interval
from vfm.training.selection import Gain

_TITLES = {
    "full": "fine-tuning of all weights (full)",
    "ln": "fine-tuning of the norm layers (ln)",
    "lora": "fine-tuning by LoRA (lora)",
}


@dataclass(frozen=True)
class Way:
    """A way of adapting that was judged on images which it had not learned from."""

    name: str
    interval: Interval
    """Accuracy, or mean average precision, with its 95 % interval."""
    num_judged: int
    """Images that it was judged on."""
    folds: tuple[int, int]
    """Folds that were held out in turn, of how many."""
    seconds: float
    image_size: int
    gain: Gain | None = None
    """By how much a fine-tuned way is better than the best frozen head on the same images."""
    steps: int = 0
    """Optimizer steps of each fit; 0 where the head was solved."""

    @property
    def title(self) -> str:
        """Name for readers."""
        return _TITLES.get(self.name, self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        values = asdict(self) | self.interval.to_dict() | {"folds": list(self.folds)}
        del values["interval"]
        if self.gain is not None:
            values["gain"] = self.gain.interval.to_dict() | {"expected": self.gain.expected}
        return values

    def format_row(self) -> str:
        """Return a row below `HEADER`."""
        interval, judged, total = self.interval, *self.folds
        gain = "" if self.gain is None else f"{format_points(self.gain.interval)}"
        return (
            f"{self.title:<44}  {interval.value:.3f}  {interval.low:.3f} to {interval.high:.3f}  "
            f"{self.num_judged:6d}  {judged:2d} of {total:<2d}  {self.seconds / 60:7.1f}  {gain}"
        ).rstrip()


@dataclass(frozen=True)
class UntriedWay:
    """A way that was not tried."""

    name: str
    reason: str
    minutes: float | None = None
    """`--minutes` with which it would have been; None where time is not what it lacks."""

    def format_row(self) -> str:
        """Return a row below `HEADER`."""
        return f"{_TITLES.get(self.name, self.name):<44}  not tried: {self.reason}"


HEADER = (
    f"{'way':<44}  score  95 % interval   images  folds     minutes  against the best frozen head\n"
    + "-" * 119
)


def format_points(interval: Interval) -> str:
    """Return a difference in points (hundredths) with its interval, such as `+2.1 (-0.4 to +4.6)`."""
    value, low, high = (100 * end for end in (interval.value, interval.low, interval.high))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"

"""Known reals: the false alarms of a model on pictures that are known to be real."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.deepfake.evidence import FAKE
from vfm_runtime.deepfake.verdict import Verdict
from vfm_runtime.media.image import ImageError

from vfm.deepfake.data.record import DeepfakeDataError

LEAST_REALS = 20
"""With fewer, even a model without false alarms may have one in five."""

# Where a model promises nothing: one false alarm in twenty is what few would put up with.
_DEFAULT_FPR = 0.05
_MOST_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class KnownReals:
    """A model's verdicts on reals."""

    num_reals: int
    fake: list[tuple[str, float]]
    """Path and score of those that were called fake, the highest score first."""
    reasons: dict[str, int]
    """How many were left undecided, by reason."""
    failures: dict[str, str]
    """Why a file could not be opened, by path."""
    score: tuple[float, float, float] | None
    """The 10 %, 50 % and 90 % quantiles of the scores; None where nothing got one."""
    promised: float | None
    """Fraction of false alarms that the model's operating point promises; None where it is not calibrated."""

    @property
    def num_answered(self) -> int:
        """Reals that were opened."""
        return self.num_reals - len(self.failures)

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the fraction of false alarms (Clopper and Pearson, 1934)."""
        if not self.num_answered:
            return (0.0, 1.0)
        ends = binomtest(len(self.fake), self.num_answered).proportion_ci(0.95, method="exact")
        return (float(ends.low), float(ends.high))

    @property
    def warning(self) -> bool:
        """Whether there are more false alarms than chance explains at the promised rate."""
        return self.interval[0] > (_DEFAULT_FPR if self.promised is None else self.promised)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "num_reals": self.num_reals,
            "num_fake": len(self.fake),
            "false_alarms": {"low": self.interval[0], "high": self.interval[1]},
            "promised": self.promised,
            "warning": self.warning,
            "undecided": self.reasons,
            "score_quantiles": self.score,
            "fake": [{"path": path, "score": score} for path, score in self.fake],
            "failures": self.failures,
        }

    def __str__(self) -> str:
        low, high = self.interval
        called = f"{len(self.fake)} of {self.num_answered} known reals were called fake"
        lines = [f"{called} (95 % interval of the share {low:.1%} to {high:.1%})."]
        if self.score is not None:
            lines.append("Scores, 10/50/90 %: " + ", ".join(f"{s:.3f}" for s in self.score))
        if self.reasons:
            named = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items())
            lines.append(f"Undecided: {named}.")
        if self.failures:
            path, reason = next(iter(self.failures.items()))
            lines.append(f"Not read: {len(self.failures)}, the first: {path} ({reason}).")
        for path, score in self.fake[:_MOST_NAMED]:
            lines.append(f"  {score:.3f}  {path}")
        return "\n".join([*lines, self._suggest_remedy()])

    def _suggest_remedy(self) -> str:
        limit = "no" if self.promised is None else f"{self.promised:.1%}"
        if not self.warning:
            return f"No more false alarms than expected (the model promises {limit} share of them)."
        cause = (
            "The model is not calibrated, and its threshold is a guess"
            if self.promised is None
            else f"The model promises at most {self.promised:.1%}, on pictures like those that it was calibrated on"
        )
        return (
            f"RED WARNING: it calls reals like these fake. {cause}. See that they reach it as in training (whole "
            "frames, not screenshots or crops), then set the threshold on reals of your own: "
            "vfm calibrate CHECKPOINT DATA --fpr 0.01."
        )


def judge_known_reals(
    model: Predictor, sources: Sequence[Path], promised: float | None
) -> KnownReals:
    """Ask a model of images and videos that are known to be real.

    Args:
        model: A model that answers with verdicts.
        sources: Paths of the images and videos.
        promised: Fraction of false alarms that its operating point promises; None where it is not calibrated.

    Raises:
        DeepfakeDataError: There are too few.
    """
    if len(sources) < LEAST_REALS:
        raise DeepfakeDataError(
            f"There are {len(sources)} known reals, and with fewer than {LEAST_REALS} a share of false alarms is a "
            "guess. Add images or videos that you know to be real."
        )
    predictions = model.predict(list(sources), errors="return")
    answers: dict[str, Verdict | ImageError] = dict(
        zip(map(str, sources), predictions, strict=True)
    )
    failures = {path: each.reason for path, each in answers.items() if isinstance(each, ImageError)}
    verdicts = {path: each for path, each in answers.items() if isinstance(each, Verdict)}
    scores = {path: each.score for path, each in verdicts.items() if each.score is not None}
    quantiles = np.quantile(list(scores.values()), [0.1, 0.5, 0.9]).tolist() if scores else None
    fake = [(path, scores[path]) for path, each in verdicts.items() if each.label == FAKE]
    reasons = Counter(each.reason.value for each in verdicts.values() if each.reason is not None)
    return KnownReals(
        num_reals=len(sources),
        fake=sorted(fake, key=lambda pair: -pair[1]),
        reasons=dict(reasons.most_common()),
        failures=failures,
        score=None if quantiles is None else (quantiles[0], quantiles[1], quantiles[2]),
        promised=promised,
    )

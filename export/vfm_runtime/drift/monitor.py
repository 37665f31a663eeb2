"""Drift monitor: population stability index of windows of answers beside the reference of a bundle."""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from vfm_runtime.drift.reference import DriftReference
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.tasks.base import TaskType, score_drift_values

LARGE = 0.25
"""The usual limit of a large change: PSI below 0.1 is taken for none, up to 0.25 for a moderate one."""

MIN_WINDOW = 50
"""Fewest images that are compared at once."""

_HALF = 0.5
_LEAST_SHARE = 0.05
# A window of images like those of the reference raises an alarm this often at most, whatever the number of figures.
_FALSE_ALARMS = 0.002

_log = logging.getLogger(__name__)


class Bundle(Protocol):
    """A loaded model, as far as the monitor knows it."""

    @property
    def path(self) -> Path:
        """The bundle's folder."""

    @property
    def task_type(self) -> TaskType:
        """The task of the model, which tells its drift values."""


@dataclass(frozen=True)
class DriftFigure:
    """Difference of one figure of a window from the reference."""

    name: str
    """`component_0` and so on, `distance`, `score` or `labels`; of several heads with the head's name in front."""
    psi: float
    """The population stability index, 0 for no change."""
    limit: float
    """Largest `psi` of no drift: the monitor's threshold, or more where chance alone would pass that."""
    expected: tuple[float, ...]
    """Shares of the reference by bin."""
    found: tuple[float, ...]
    """Shares of the window by bin."""

    @property
    def drifted(self) -> bool:
        """Whether the limit is passed."""
        return self.psi > self.limit

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return asdict(self) | {"drifted": self.drifted}


@dataclass(frozen=True)
class DriftReport:
    """Counts and figures of a monitor so far."""

    num_images: int
    """Number of images that were added."""
    num_windows: int
    """Number of windows that are full."""
    num_alerts: int
    """Number of windows in which a figure passed its limit."""
    window: int
    """Number of images in a window."""
    figures: tuple[DriftFigure, ...]
    """Figures of the last full window, the largest change first; empty before there is one."""

    @property
    def drifted(self) -> bool:
        """Whether a figure of the last full window passed its limit."""
        return any(figure.drifted for figure in self.figures)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        figures = [figure.to_dict() for figure in self.figures]
        return vars(self) | {"drifted": self.drifted, "figures": figures}


@dataclass(frozen=True)
class DriftAlert:
    """A window of images that are not like those of the reference."""

    figures: tuple[DriftFigure, ...]
    """Figures that passed their limits, the largest change first."""
    report: DriftReport
    """All figures of the window."""

    def __str__(self) -> str:
        listed = ", ".join(f"{f.name} {f.psi:.2f} (limit {f.limit:.2f})" for f in self.figures[:5])
        more = ", ..." if len(self.figures) > 5 else ""
        return f"The last {self.report.window} images are unlike those of the validation: {listed}{more}."


class DriftMonitor:
    """Compares windows of answers with the reference of a bundle. Threads may share it.

    Of each figure (the components of the embeddings, the distance from the training images, the best score, the best
    label) the shares of the images by bin are compared by the population stability index (Siddiqi, Credit risk
    scorecards, 2006):

        PSI = sum over bins of (a - e) ln(a / e)

    with e the share in the reference and a the share in the window. Half an image is added to every bin, since an empty
    one would make it infinite. Below 0.1 there is said to be no change, above 0.25 a large one. By chance alone it is
    about (B - 1) (1 / n + 1 / m) for B bins, n images in the window and m in the reference, and over that sum of
    inverses it is distributed as a chi-square with B - 1 degrees of freedom (Yurdakul and Naranjo, 2020). Where a
    window of the same kind of images would pass the threshold more often than in one of 500, the limit is raised to
    where it does not. That holds of images that have nothing to do with each other: neighbouring frames of a video
    are alike, and call for a longer window.
    """

    def __init__(
        self,
        model: Bundle | DriftReference,
        *,
        window: int = 500,
        threshold: float = LARGE,
        on_alert: Callable[[DriftAlert], None] | None = None,
    ) -> None:
        """Read the reference.

        Args:
            model: A loaded bundle with a `reference.json`, or a reference.
            window: Number of images in a window, which then starts anew.
            threshold: PSI above which there is drift.
            on_alert: Called once for each window with drift, by the thread that completes it. What it raises is logged,
                and stops nothing.

        Raises:
            DataError: The bundle has no reference.
            OptionError: An argument lies outside its range.
        """
        if window < MIN_WINDOW:
            raise OptionError(
                f"window is {window}. Give {MIN_WINDOW} images or more: fewer say nothing of shares."
            )
        if not threshold > 0:
            raise OptionError(
                f"threshold is {threshold}. Give a number above 0; usual are 0.1 and 0.25."
            )
        if isinstance(model, DriftReference):
            self.reference, self._read_values = model, score_drift_values
        else:
            self.reference = DriftReference.load(model.path)
            self._read_values = model.task_type.drift_values
        self.window = window
        self.threshold = threshold
        self._on_alert = on_alert
        self._bins = _make_bins(self.reference)
        self._limits = self._raise_limits()
        self._lock = threading.Lock()
        self._counts = self._make_counts()
        self._num_open = self._num_images = self._num_windows = self._num_alerts = 0
        self._figures: tuple[DriftFigure, ...] = ()

    def add(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Count outputs of the model by name, a row an image, with a DataError where they lack a figure."""
        rows = self._find_bins(outputs)
        alerts = []
        with self._lock:
            done, number = 0, len(next(iter(rows.values())))
            while done < number:
                taken = min(number - done, self.window - self._num_open)
                alerts += self._count(rows, slice(done, done + taken), taken)
                done += taken
        # Outside of the lock: what is called may take its time, or ask for a report.
        for alert in alerts:
            self._report_alert(alert)

    def check(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        """Refuse the outputs that `add` would, and count nothing."""
        self._find_bins(outputs)

    def report(self) -> DriftReport:
        """Report all that was added so far."""
        with self._lock:
            return self._report()

    def _find_bins(self, outputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.int64]]:
        values = self._read_values(outputs)
        missing = [name for name in self._bins if name not in values]
        if missing:
            raise DataError(
                f"The outputs ({', '.join(outputs)}) do not say '{missing[0]}', which the reference has. Give those of "
                "the model that the reference belongs to."
            )
        return {name: bins.find(values[name]) for name, bins in self._bins.items()}

    def _count(
        self, rows: Mapping[str, NDArray[np.int64]], part: slice, number: int
    ) -> list[DriftAlert]:
        for name, bins in rows.items():
            counts = self._counts[name]
            counts += np.bincount(bins[part], minlength=len(counts))
        self._num_open += number
        self._num_images += number
        return self._close() if self._num_open == self.window else []

    def _close(self) -> list[DriftAlert]:
        """Compare the full window, and start anew."""
        figures = [
            _compare(name, bins.shares, self.reference.num_images, self._counts[name], limit)
            for (name, bins), limit in zip(self._bins.items(), self._limits, strict=True)
        ]
        self._figures = tuple(sorted(figures, key=lambda f: f.psi / f.limit, reverse=True))
        self._counts, self._num_open = self._make_counts(), 0
        self._num_windows += 1
        drifted = tuple(figure for figure in self._figures if figure.drifted)
        self._num_alerts += bool(drifted)
        return [DriftAlert(drifted, self._report())] if drifted else []

    def _report(self) -> DriftReport:
        seen = (self._num_images, self._num_windows, self._num_alerts)
        return DriftReport(*seen, self.window, self._figures)

    def _report_alert(self, alert: DriftAlert) -> None:
        _log.warning("%s", alert)
        if self._on_alert is None:
            return
        try:
            self._on_alert(alert)
        except Exception:  # whatever is wrong with the alarm, the answers are right
            _log.exception("The alert of the drift monitor failed: %s", alert)

    def _make_counts(self) -> dict[str, NDArray[np.int64]]:
        return {name: np.zeros(len(bins.shares), np.int64) for name, bins in self._bins.items()}

    def _raise_limits(self) -> list[float]:
        """Return the limit of each figure: the threshold, or what chance passes hardly ever."""
        spread = 1 / self.window + 1 / self.reference.num_images
        rate = _FALSE_ALARMS / len(self._bins)
        chance = [
            _compute_chi_square(len(b.shares) - 1, rate) * spread for b in self._bins.values()
        ]
        if max(chance) > self.threshold:
            _log.warning(
                "A window of %d images beside a reference of %d passes a PSI of %.2f by chance: the limit is raised to "
                "%.2f. A longer window, or a reference of more images, finds smaller changes.",
                self.window,
                self.reference.num_images,
                self.threshold,
                max(chance),
            )
        return [max(self.threshold, value) for value in chance]


def compute_psi(expected: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """Compute the population stability index of two distributions over the same B bins.

    Args:
        expected: Fractions of the reference [B], above 0, adding up to 1.
        actual: Fractions of the window [B], above 0, adding up to 1.
    """
    return float(((actual - expected) * np.log(actual / expected)).sum())


class _Bins(NamedTuple):
    """Bins of one figure."""

    shares: NDArray[np.float64]
    """[B], fractions of the reference."""
    find: Callable[[NDArray[Any]], NDArray[np.int64]]
    """Gives the bin of each value, [N]."""


def _make_bins(reference: DriftReference) -> dict[str, _Bins]:
    bins = {
        name: _Bins(np.array(one.shares), one.find_bins)
        for name, one in reference.histograms.items()
    }
    for name, shares in reference.labels.items():
        groups = np.array(_group_labels(shares), np.int64)
        totals = np.bincount(groups, weights=shares).astype(np.float64)
        bins[name] = _Bins(totals, partial(_find_groups, groups))
    return bins


def _find_groups(groups: NDArray[np.int64], labels: NDArray[Any]) -> NDArray[np.int64]:
    """Return the group of each label, [N], by the group of every label of the model."""
    if labels.dtype.kind != "i" or labels.max(initial=0) >= len(groups):
        raise DataError(
            f"The reference's labels have {len(groups)} shares; the outputs do not name one of as many "
            "labels. Give those of the model that the reference belongs to."
        )
    return np.asarray(groups[labels])


def _group_labels(shares: Sequence[float]) -> list[int]:
    """Give frequent labels a group each, and rare ones one together, as far as it takes to count any of them.

    All groups but the last have a share that a window shows.
    """
    groups = [-1] * len(shares)
    count, together = 0, 0.0
    for label, share in enumerate(shares):
        if share >= _LEAST_SHARE:
            groups[label] = count
            count += 1
    for label, share in enumerate(shares):
        if groups[label] >= 0:
            continue
        groups[label] = count
        together += share
        if together >= _LEAST_SHARE:
            count, together = count + 1, 0.0
    return groups


def _compare(
    name: str,
    shares: NDArray[np.float64],
    num_reference: int,
    counts: NDArray[np.int64],
    limit: float,
) -> DriftFigure:
    # Half an image more in every bin: an empty one would make the index infinite.
    expected, actual = shares * num_reference + _HALF, counts + _HALF
    psi = compute_psi(expected / expected.sum(), actual / actual.sum())
    fractions = tuple((counts / counts.sum()).tolist())
    return DriftFigure(name, psi, limit, tuple(shares.tolist()), fractions)


def _compute_chi_square(degrees: int, rate: float) -> float:
    """Compute what a chi-square passes at this rate, by Wilson and Hilferty (1931)."""
    if degrees < 1:
        return 0.0
    part = 2 / (9 * degrees)
    return float(degrees * (1 - part + NormalDist().inv_cdf(1 - rate) * part**0.5) ** 3)

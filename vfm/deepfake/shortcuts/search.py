"""Shortcut search: can real and fake be told apart by size, format, compression, length and name of the files alone?"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from vfm_runtime.media.image import ImageError

from vfm.data.file_metadata import FEATURES, UNSEEN, read_metadata
from vfm.deepfake.data.record import FAKE, LABELS, REAL, DeepfakeDataError, Item
from vfm.deepfake.data.splits import name_components
from vfm.metrics.separation import (
    LEAST,
    SHORTCUT_LIMIT,
    BoolArray,
    IntArray,
    Separation,
    Value,
    measure_separation,
)

_MOST_FAILURES = 20
_SEEN = tuple(group for group in FEATURES if group not in UNSEEN)

Table = dict[str, list[Value]]


class FeatureShortcut(NamedTuple):
    """What one feature alone tells about the labels."""

    name: str
    group: str
    """Group of `FEATURES` that it belongs to."""
    separation: Separation
    real: str
    """What is usual among the real files."""
    fake: str

    @property
    def title(self) -> str:
        """Name in words."""
        return self.name.replace("_", " ")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        usual = {REAL: self.real, FAKE: self.fake}
        return {"name": self.name, "group": self.group} | self.separation.to_dict() | usual


class UnreadFile(NamedTuple):
    """A file that was not read."""

    path: str
    label: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """What the files' metadata tell about the labels."""

    num_files: dict[str, int]
    """Files read, by label: one of each video."""
    failures: list[UnreadFile]
    features: list[FeatureShortcut]
    """Those that are not the same everywhere, the most telling first."""
    seen: Separation | None
    """By all features but the names; None where there is nothing to tell apart by, or too little to say."""
    named: Separation | None
    """By the names alone."""
    methods: dict[str, Separation]
    """By all features but the names, the fakes of each method against all reals; the most telling first."""
    reals: dict[str, Separation]
    """The same between the reals of one data set or split and those of the others."""
    dataset: Separation | None
    """By the name of the data set alone."""
    notes: list[str]

    @property
    def warning(self) -> bool:
        """Whether something that a model sees the trace of gives the label away."""
        seen = [f.separation for f in self.features if f.group not in UNSEEN]
        return any(each is not None and each.level == "red" for each in [*seen, self.seen])

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `metadata_auc` is what other reports quote."""
        failed = Counter(failure.label for failure in self.failures)
        return {
            "metadata_auc": _to_dict(self.seen),
            "limit": SHORTCUT_LIMIT,
            "warning": self.warning,
            "num_files": self.num_files,
            "features": [feature.to_dict() for feature in self.features],
            "names": _to_dict(self.named),
            "methods": {name: each.to_dict() for name, each in self.methods.items()},
            "real_against_real": {name: each.to_dict() for name, each in self.reals.items()},
            "dataset_name": _to_dict(self.dataset),
            "failures": {
                "num": {label: failed[label] for label in LABELS},
                "first": [failure._asdict() for failure in self.failures[:_MOST_FAILURES]],
            },
            "notes": self.notes,
        }


def find_shortcuts(items: Sequence[Item], *, max_files: int = 2000, seed: int = 0) -> Shortcuts:
    """Probe what the metadata of the files tell about their labels.

    One file of each video is read: its frames are alike in these things, and the video is what gets a label.

    Args:
        items: Files of both labels, with paths that can be opened.
        max_files: Most files to read, half of them of each label, evenly from data sets and methods.
        seed: Seed of the choice, the folds and the intervals.

    Raises:
        DeepfakeDataError: A label has too few files to say anything.
    """
    read: list[Item] = []
    rows, failures = [], []
    for item in choose_files(items, max_files, seed):
        try:
            rows.append(read_metadata(Path(item.path)))
            read.append(item)
        except ImageError as error:
            failures.append(UnreadFile(item.path, item.label, error.reason))
    counts: Counter[str] = Counter(item.label for item in read)
    few = [label for label in LABELS if counts[label] < LEAST]
    if few:
        numbers = " and ".join(f"{counts[label]} {label}" for label in LABELS)
        first = f", the first: {failures[0].path} ({failures[0].reason})" if failures else ""
        lost = f" {len(failures)} could not be read{first}." if failures else ""
        raise DeepfakeDataError(
            f"There are {numbers} videos or images to compare.{lost} Looking for shortcuts takes at least {LEAST} of "
            f"each: add {few[0]} ones."
        )
    probe = _Probe(read, rows, seed)
    notes = probe.notes
    if failures:
        failed: Counter[str] = Counter(failure.label for failure in failures)
        numbers = " and ".join(
            f"{failed[label]} of {failed[label] + counts[label]} {label}" for label in LABELS
        )
        notes.append(
            f"Not read: {numbers} files, the first: {failures[0].path} ({failures[0].reason})."
        )
    return Shortcuts(
        num_files={label: counts[label] for label in LABELS},
        failures=failures,
        features=probe.probe_features(),
        seen=probe.separate(probe.is_fake, groups=_SEEN),
        named=probe.separate(probe.is_fake, groups=UNSEEN),
        methods=probe.probe_methods(),
        reals=probe.probe_reals(),
        dataset=probe.probe_dataset(),
        notes=notes,
    )


def choose_files(items: Sequence[Item], most: int, seed: int) -> list[Item]:
    """One file of each video, and of these evenly from data sets and methods, half of them for each label."""
    videos: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in items:
        videos[(*item.key, item.compression)].append(item)
    # The middle frame: the first is often black.
    single = [
        sorted(frames, key=lambda item: (item.frame, item.path))[len(frames) // 2]
        for frames in videos.values()
    ]
    order = np.random.default_rng(seed).permutation(len(single))
    strata: Counter[tuple[str, ...]] = Counter()
    ranked: list[tuple[int, Item]] = []
    for item in (single[index] for index in order):
        stratum = (item.label, item.dataset, item.method, item.split)
        ranked.append((strata[stratum], item))
        strata[stratum] += 1
    ranked.sort(key=lambda pair: pair[0])
    by_label = [[item for _, item in ranked if item.label == label] for label in LABELS]
    return [item for chosen in by_label for item in chosen[: max(1, most // 2)]]


class _Probe:
    """The chosen files as a table, and every question asked of it."""

    def __init__(
        self, items: Sequence[Item], rows: Sequence[Mapping[str, Value]], seed: int
    ) -> None:
        self.notes: list[str] = []
        self.is_fake = np.array([item.label == FAKE for item in items])
        self._items = items
        self._seed = seed
        self._table: Table = {}
        for names in FEATURES.values():
            for name in names:
                values = [row.get(name) for row in rows]
                # A feature that is the same everywhere, or missing everywhere, tells nothing.
                if len(set(values)) > 1:
                    self._table[name] = values
        self._groups = _index_names(name_components(items))
        sides = [len(np.unique(self._groups[self.is_fake == side])) for side in (False, True)]
        if min(sides) < LEAST:
            self.notes.append(
                "People appear in so many videos that almost all hang together: files were grouped by video and source "
                "alone, and the figures may be a little high."
            )
            self._groups = _index_names(name_components(items, "video"))

    def separate(
        self,
        positive: BoolArray,
        *,
        groups: Iterable[str] = (),
        names: Iterable[str] = (),
        among: BoolArray | None = None,
    ) -> Separation | None:
        """Tell files apart by features of some groups, or of some names, among all files or some of them."""
        wanted = [*names, *(name for group in groups for name in FEATURES[group])]
        rows = np.arange(len(positive)) if among is None else np.flatnonzero(among)
        table = {
            name: [self._table[name][row] for row in rows] for name in wanted if name in self._table
        }
        if not table:
            return None
        return measure_separation(table, positive[rows], self._groups[rows], seed=self._seed)

    def probe_features(self) -> list[FeatureShortcut]:
        """Each feature alone, the most telling first."""
        features = []
        for group, names in FEATURES.items():
            for name in names:
                separation = self.separate(self.is_fake, names=[name])
                if separation is not None:
                    sides = (
                        [
                            v
                            for v, fake in zip(self._table[name], self.is_fake, strict=True)
                            if fake == side
                        ]
                        for side in (False, True)
                    )
                    usual = (_describe_usual(values) for values in sides)
                    features.append(FeatureShortcut(name, group, separation, *usual))
        return sorted(features, key=lambda feature: -feature.separation.auc)

    def probe_methods(self) -> dict[str, Separation]:
        """Where there are several: each method's fakes against all reals."""
        methods = np.array(
            [f"{i.dataset}/{i.method}" if i.dataset else i.method for i in self._items]
        )
        names = sorted(set(methods[self.is_fake].tolist()))
        if len(names) < 2:
            return {}
        return _sort_separations(
            {
                name: self.separate(
                    self.is_fake, groups=_SEEN, among=~self.is_fake | (methods == name)
                )
                for name in names
            }
        )

    def probe_reals(self) -> dict[str, Separation]:
        """Reals of one data set, or split, against those of the others."""
        real = ~self.is_fake
        results: dict[str, Separation | None] = {}
        for what in ("dataset", "split"):
            values = np.array([getattr(item, what) for item in self._items])
            names = sorted({str(name) for name in values[real]} - {""})
            # Of two, the second says the same as the first.
            for name in names if len(names) > 2 else names[:1] * (len(names) > 1):
                results[f"{what} {name}"] = self.separate(values == name, groups=_SEEN, among=real)
        return _sort_separations(results)

    def probe_dataset(self) -> Separation | None:
        """The name of the data set alone."""
        names: list[Value] = [item.dataset for item in self._items]
        if len(set(names)) < 2:
            return None
        return measure_separation({"": names}, self.is_fake, self._groups, seed=self._seed)


def _index_names(names: Sequence[str]) -> IntArray:
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _sort_separations(results: Mapping[str, Separation | None]) -> dict[str, Separation]:
    defined = {name: each for name, each in results.items() if each is not None}
    return dict(sorted(defined.items(), key=lambda pair: -pair[1].auc))


def _describe_usual(values: Sequence[Value]) -> str:
    """The commonest value with its fraction, or the middle of values that vary."""
    value, count = Counter(values).most_common(1)[0]
    fraction = count / len(values)
    numbers = [value for value in values if isinstance(value, float)]
    if fraction < 0.5 and numbers:
        low, middle, high = np.quantile(numbers, [0.1, 0.5, 0.9])
        return f"{middle:.4g} ({low:.4g} to {high:.4g})"
    named = f"{value:.4g}" if isinstance(value, float) else "none" if value is None else value
    return f"{named or 'empty'} ({fraction:.0%})"


def _to_dict(separation: Separation | None) -> dict[str, Any] | None:
    return None if separation is None else separation.to_dict()

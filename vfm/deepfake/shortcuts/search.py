"""Can real and fake be told apart without looking? Size, format, compression, length and name of the files alone."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from vfm_runtime.media.image import ImageError

from vfm.deepfake.data.record import FAKE, LABELS, REAL, DeepfakeDataError, Item
from vfm.deepfake.data.splits import name_components
from vfm.deepfake.results import SHORTCUT_LIMIT
from vfm.deepfake.shortcuts.metadata import FEATURES, UNSEEN, Value, read_metadata
from vfm.deepfake.shortcuts.probe import LEAST, BoolArray, IntArray, Separation, separation, varies

_MOST_FAILURES = 20

Table = dict[str, list[Value]]


class Feature(NamedTuple):
    """One feature alone."""

    name: str
    group: str
    """Of `FEATURES`."""
    separation: Separation
    real: str
    """What is usual among the real files."""
    fake: str

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        usual = {REAL: self.real, FAKE: self.fake}
        return {"name": self.name, "group": self.group} | self.separation.to_dict() | usual


class Failure(NamedTuple):
    """A file that was not read."""

    path: str
    label: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Shortcuts:
    """What the files' metadata tell about the labels."""

    num_files: dict[str, int]
    """Files read, by label: one of each video."""
    failures: list[Failure]
    features: list[Feature]
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
        found = [f.separation for f in self.features if f.group not in UNSEEN]
        return any(each.level == "red" for each in [*found, *filter(None, [self.seen])])

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; `metadata_auc` is the figure for other reports."""
        failed = Counter(failure.label for failure in self.failures)
        return {
            "metadata_auc": _figure(self.seen),
            "limit": SHORTCUT_LIMIT,
            "warning": self.warning,
            "num_files": self.num_files,
            "features": [feature.to_dict() for feature in self.features],
            "names": _figure(self.named),
            "methods": {name: each.to_dict() for name, each in self.methods.items()},
            "real_against_real": {name: each.to_dict() for name, each in self.reals.items()},
            "dataset_name": _figure(self.dataset),
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
        items: Of both labels, with paths that can be opened.
        max_files: Most files to read, half of them of each label, evenly from data sets and methods.
        seed: Of the choice, the folds and the intervals.

    Raises:
        DeepfakeDataError: A label has too few files to say anything.
    """
    chosen = choose_files(items, max_files, seed)
    kept, rows, failures = _read(chosen)
    counts: Counter[str] = Counter(item.label for item in kept)
    _require_enough(counts, failures)
    probe = _Probe(kept, rows, seed)
    return Shortcuts(
        num_files={label: counts[label] for label in LABELS},
        failures=failures,
        features=probe.features(),
        seen=probe.joint(*(group for group in FEATURES if group not in UNSEEN)),
        named=probe.joint(*UNSEEN),
        methods=probe.methods(),
        reals=probe.reals(),
        dataset=probe.dataset(),
        notes=probe.notes + _failure_notes(failures, counts),
    )


def choose_files(items: Sequence[Item], most: int, seed: int) -> list[Item]:
    """One file of each video, and of these evenly from data sets and methods.

    Args:
        items: Any.
        most: Files to choose at most, half of them for each label.
        seed: Of the choice.
    """
    videos: dict[tuple[str, ...], list[Item]] = defaultdict(list)
    for item in items:
        videos[(*item.key, item.compression)].append(item)
    # The middle frame: the first is often black.
    single = [sorted(frames, key=_place)[len(frames) // 2] for frames in videos.values()]
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


def _place(item: Item) -> tuple[int, str]:
    return item.frame, item.path


def _read(items: Iterable[Item]) -> tuple[list[Item], list[dict[str, Value]], list[Failure]]:
    kept, rows, failures = [], [], []
    for item in items:
        try:
            rows.append(read_metadata(Path(item.path)))
        except ImageError as error:
            failures.append(Failure(item.path, item.label, error.reason))
            continue
        kept.append(item)
    return kept, rows, failures


class _Probe:
    """The chosen files as a table, and every question asked of it."""

    def __init__(
        self, items: Sequence[Item], rows: Sequence[Mapping[str, Value]], seed: int
    ) -> None:
        self.notes: list[str] = []
        self._items = items
        self._seed = seed
        self._fake = np.array([item.label == FAKE for item in items])
        self._groups = self._tied(items)
        whole = {
            name: [row.get(name) for row in rows] for names in FEATURES.values() for name in names
        }
        self._table = {name: values for name, values in whole.items() if varies(values)}

    def features(self) -> list[Feature]:
        found = []
        for group, names in FEATURES.items():
            for name in names:
                if name not in self._table:
                    continue
                values = self._table[name]
                each = self._separate({name: values}, self._fake)
                if each is not None:
                    usual = (self._usual(values, side) for side in (False, True))
                    found.append(Feature(name, group, each, *usual))
        return sorted(found, key=lambda feature: -feature.separation.auc)

    def joint(self, *groups: str) -> Separation | None:
        table = self._part(groups)
        return self._separate(table, self._fake) if table else None

    def methods(self) -> dict[str, Separation]:
        """Where there are several: each method's fakes against all reals."""
        names = sorted({_method(item) for item in self._items if item.label == FAKE})
        if len(names) < 2:
            return {}
        found = {}
        for name in names:
            its = np.array([item.label == REAL or _method(item) == name for item in self._items])
            found[name] = self._among(its, self._fake)
        return _sorted(found)

    def reals(self) -> dict[str, Separation]:
        """Reals of one data set, or split, against those of the others."""
        real = ~self._fake
        found: dict[str, Separation | None] = {}
        for what in ("dataset", "split"):
            values = np.array([getattr(item, what) for item in self._items])
            names = sorted({str(name) for name in values[real]} - {""})
            # Of two, the second says the same as the first.
            for name in names if len(names) > 2 else names[:1] * (len(names) > 1):
                found[f"{what} {name}"] = self._among(real, values == name)
        return _sorted(found)

    def dataset(self) -> Separation | None:
        names: list[Value] = [item.dataset for item in self._items]
        return self._separate({"dataset": names}, self._fake) if varies(names) else None

    def _usual(self, values: Sequence[Value], fake: bool) -> str:
        return _usual(v for v, is_fake in zip(values, self._fake, strict=True) if is_fake == fake)

    def _among(self, chosen: BoolArray, positive: BoolArray) -> Separation | None:
        indices = np.flatnonzero(chosen)
        table = {
            name: [values[index] for index in indices]
            for name, values in self._part([g for g in FEATURES if g not in UNSEEN]).items()
        }
        if not table:
            return None
        return separation(table, positive[indices], self._groups[indices], seed=self._seed)

    def _separate(self, table: Table, positive: BoolArray) -> Separation | None:
        return separation(table, positive, self._groups, seed=self._seed)

    def _part(self, groups: Iterable[str]) -> Table:
        names = [name for group in groups for name in FEATURES[group]]
        return {name: self._table[name] for name in names if name in self._table}

    def _tied(self, items: Sequence[Item]) -> IntArray:
        """Number of each file's component of videos and people; without the people where all hang together."""
        tied = _numbered(name_components(items))
        sides = [len(np.unique(tied[self._fake == side])) for side in (False, True)]
        if min(sides) >= LEAST:
            return tied
        self.notes.append(
            "People appear in so many videos that almost all hang together: files were grouped by video and source "
            "alone, and the figures may be a little high."
        )
        return _numbered(name_components(items, "video"))


def _numbered(names: Sequence[str]) -> IntArray:
    return np.unique(names, return_inverse=True)[1].astype(np.int64)


def _method(item: Item) -> str:
    return f"{item.dataset}/{item.method}" if item.dataset else item.method


def _sorted(found: Mapping[str, Separation | None]) -> dict[str, Separation]:
    said = {name: each for name, each in found.items() if each is not None}
    return dict(sorted(said.items(), key=lambda pair: -pair[1].auc))


def _usual(values: Iterable[Value]) -> str:
    """The commonest value with its share, or the middle of values that vary."""
    listed = list(values)
    value, count = Counter(listed).most_common(1)[0]
    share = count / len(listed)
    numbers = [value for value in listed if isinstance(value, float)]
    if share < 0.5 and numbers:
        low, middle, high = np.quantile(numbers, [0.1, 0.5, 0.9])
        return f"{middle:.4g} ({low:.4g} to {high:.4g})"
    named = f"{value:.4g}" if isinstance(value, float) else "none" if value is None else value
    return f"{named or 'empty'} ({share:.0%})"


def _figure(found: Separation | None) -> dict[str, Any] | None:
    return None if found is None else found.to_dict()


def _require_enough(counts: Mapping[str, int], failures: Sequence[Failure]) -> None:
    few = [label for label in LABELS if counts[label] < LEAST]
    if few:
        given = " and ".join(f"{counts[label]} {label}" for label in LABELS)
        first = f", the first: {failures[0].path} ({failures[0].reason})" if failures else ""
        lost = f" {len(failures)} could not be read{first}." if failures else ""
        raise DeepfakeDataError(
            f"There are {given} videos or images to compare.{lost} Looking for shortcuts takes at least {LEAST} of "
            f"each: add {few[0]} ones."
        )


def _failure_notes(failures: Sequence[Failure], counts: Mapping[str, int]) -> list[str]:
    if not failures:
        return []
    failed = Counter(failure.label for failure in failures)
    given = " and ".join(
        f"{failed[label]} of {failed[label] + counts[label]} {label}" for label in LABELS
    )
    first = failures[0]
    return [f"Not read: {given} files, the first: {first.path} ({first.reason})."]

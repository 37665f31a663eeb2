"""Pairs of a real image and a fake: one made from the same video, at the same frame where there is one."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from vfm.deepfake.data.record import FAKE, LABELS, REAL, DeepfakeDataError, Item, count_label


class Pairs:
    """The real images of a split, each with the fakes that were made from its video.

    A fake beside its own source differs from it by what was forged alone, not by person, light or camera, and the two
    labels are equally frequent whatever the numbers of files (Yermakov et al., 2025, "Deepfake Detection that
    Generalizes Across Benchmarks").
    """

    def __init__(self, items: Sequence[Item]) -> None:
        """Find the pairs among the items of a split, in the order of its records."""
        self._items = items
        self._by_source: defaultdict[tuple[str, str], defaultdict[str, list[int]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for index, item in enumerate(items):
            if item.label == FAKE and item.source:
                self._by_source[item.dataset, item.source][item.method].append(index)
        self.reals = [index for index, item in enumerate(items) if item.label == REAL]
        """Indices of the real images."""
        videos = {(items[index].dataset, items[index].video) for index in self.reals}
        used = (
            m for video in videos & set(self._by_source) for m in self._by_source[video].values()
        )
        self.unused = count_label(items, FAKE) - sum(map(len, used))
        """Number of fakes whose source is not named or not in the split; they are in no pair."""

    def has_deepfakes(self, real: int) -> bool:
        """Whether there are fakes of the video of a real image, given by its index."""
        return (self._items[real].dataset, self._items[real].video) in self._by_source

    def draw(self, real: int, generator: np.random.Generator) -> int:
        """Draw a fake for a real image: of a random method, and of the same frame if there is one; both as indices."""
        item = self._items[real]
        methods = list(self._by_source[item.dataset, item.video].values())
        candidates = methods[int(generator.integers(len(methods)))]
        same = [index for index in candidates if self._items[index].frame == item.frame]
        chosen = same or candidates
        return chosen[int(generator.integers(len(chosen)))]


def check_training(items: Sequence[Item], mode: str) -> None:
    """Refuse, or warn about, images that a mode of `DeepfakeImages` cannot learn from.

    Raises:
        DeepfakeDataError: There is no real image, or nothing to tell it from.
    """
    num_reals, num_fakes = (count_label(items, label) for label in LABELS)
    if not num_reals:
        raise DeepfakeDataError(
            f"Of the {len(items)} images to train on none is real. Add real ones, or check which label is which."
        )
    if mode == "sbi":
        return
    if mode == "plain":
        if not num_fakes:
            raise DeepfakeDataError(
                f"The train split has {num_reals} real and 0 fake images or videos. Telling them apart takes both: add "
                "fake ones, or check which label is which."
            )
        return
    pairs = Pairs(items)
    num_paired = sum(pairs.has_deepfakes(index) for index in pairs.reals)
    if mode == "paired" and not num_paired:
        raise DeepfakeDataError(
            f"None of the {num_fakes} fakes to train on names the real video it was made from (the column 'source' of "
            "the manifest), so there are no pairs. Fill it in, or use --data.mode plain, mixed or sbi."
        )
    if pairs.unused:
        warnings.warn(
            f"{pairs.unused} of the {num_fakes} fakes to train on are in no pair: the real video that they were made "
            "from is not named (the column 'source') or not in the train split. --data.mode plain takes them too.",
            stacklevel=4,
        )
    if mode == "paired" and num_paired < num_reals:
        warnings.warn(
            f"{num_reals - num_paired} of the {num_reals} real images to train on have no fake and are left out; "
            "--data.mode mixed blends one for them.",
            stacklevel=4,
        )

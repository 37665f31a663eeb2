"""Which forgery goes with which real image: the one made from the same video, at the same frame where there is one."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from vfm.deepfake.data.record import FAKE, REAL, DeepfakeDataError, Item, count_label, require_both


class Pairs:
    """The real images of a split, each with the forgeries that were made from its video.

    A forgery beside its own source differs from it by the forgery alone, not by person, light or camera, and the two
    labels are equally frequent whatever the numbers of files (Yermakov et al., 2025, "Deepfake Detection that
    Generalizes Across Benchmarks").
    """

    def __init__(self, items: Sequence[Item]) -> None:
        """Find the pairs.

        Args:
            items: Of a split, in the order of its records.
        """
        made: defaultdict[tuple[str, str], defaultdict[str, list[int]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for index, item in enumerate(items):
            if item.label == FAKE and item.source:
                made[item.dataset, item.source][item.method].append(index)
        self._items = items
        self._made = {video: list(methods.values()) for video, methods in made.items()}
        self.reals = [index for index, item in enumerate(items) if item.label == REAL]
        """Indices of the real images."""
        known = {(items[index].dataset, items[index].video) for index in self.reals}
        used = sum(
            len(method) for v, methods in self._made.items() if v in known for method in methods
        )
        self.unused = sum(item.label == FAKE for item in items) - used
        """Number of forgeries whose source is not named or not in the split; they are in no pair."""

    def paired(self, real: int) -> bool:
        """Whether there are forgeries of a real image's video.

        Args:
            real: Index of the real image.
        """
        return self._source(real) in self._made

    def draw(self, real: int, generator: np.random.Generator) -> int:
        """Index of a forgery: of a random method, of the same frame if there is one, or else of a random one.

        Args:
            real: Index of a real image that is `paired`.
            generator: Of random numbers.
        """
        methods = self._made[self._source(real)]
        candidates = methods[int(generator.integers(len(methods)))]
        frame = self._items[real].frame
        same = [index for index in candidates if self._items[index].frame == frame]
        chosen = same or candidates
        return chosen[int(generator.integers(len(chosen)))]

    def _source(self, real: int) -> tuple[str, str]:
        item = self._items[real]
        return item.dataset, item.video


def check_training(items: Sequence[Item], mode: str) -> None:
    """Refuse, or warn about, images that a mode cannot learn from.

    Args:
        items: Of the train split.
        mode: Of `DeepfakeImages`.

    Raises:
        DeepfakeDataError: There is no real image, or nothing to tell it from.
    """
    if not count_label(items, REAL):
        raise DeepfakeDataError(
            f"Of the {len(items)} images to train on none is real. Add real ones, or check which label is which."
        )
    if mode == "sbi":
        return
    if mode == "plain":
        require_both(items, "The train split")
        return
    pairs = Pairs(items)
    total = count_label(items, FAKE)
    own = sum(pairs.paired(index) for index in pairs.reals)
    if mode == "paired" and not own:
        raise DeepfakeDataError(
            f"None of the {total} fakes to train on names the real video it was made from (the column 'source' of the "
            "manifest), so there are no pairs. Fill it in, or use --data.mode plain, mixed or sbi."
        )
    if pairs.unused:
        warnings.warn(
            f"{pairs.unused} of the {total} fakes to train on are in no pair: the real video that they were made from "
            "is not named (the column 'source') or not in the train split. --data.mode plain takes them too.",
            stacklevel=4,
        )
    if mode == "paired" and own < len(pairs.reals):
        warnings.warn(
            f"{len(pairs.reals) - own} of the {len(pairs.reals)} real images to train on have no fake and are left "
            "out; --data.mode mixed blends one for them.",
            stacklevel=4,
        )

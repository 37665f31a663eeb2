"""Frozen heads of `vfm tune`: those of the images of a pool, as ways of adapting a backbone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vfm.training.frozen_heads import FrozenHeads, JudgedHead, JudgedVote
from vfm.tune.images import LabeledPool
from vfm.tune.ways import UntriedWay, Way


class PoolHeads(FrozenHeads):
    """The frozen heads of one backbone, judged on the images of a pool.

    Attributes:
        pool: Images that the features are of.
    """

    def __init__(self, pool: LabeledPool, features: dict[str, NDArray[np.float32]]) -> None:
        super().__init__(
            features, pool.target, len(pool.data.labels), pool.keys, seed=pool.data.seed
        )
        self.pool = pool

    def list_untried(self) -> list[UntriedWay]:
        """List the heads that take longer than they may."""
        return [UntriedWay(name, reason) for name, reason in self.untried.items()]

    def list_ways(self, seconds: float, image_size: int) -> list[Way]:
        """List the best head of each kind, the chosen one first; its interval is that of all heads together.

        Args:
            seconds: Time of the features.
            image_size: Side of the images in pixels.
        """
        assert self.choice is not None
        number = len(self.target)
        folds = self.num_folds
        families: dict[str, list[JudgedHead | JudgedVote]] = {}
        for head in [self.best, *self.candidates]:
            families.setdefault(head.family, []).append(head)
        ways = []
        for heads in families.values():
            choice = self.choice
            if heads[0] is not self.best:
                choice = self.choose(heads)
            cost = seconds + sum(head.seconds for head in heads)
            ways.append(
                Way(heads[0].name, choice.interval, number, (folds, folds), cost, image_size)
            )
        return ways

"""Frozen heads and their vote: kNN, nearest mean, LDA and logistic regression, cross-validated, the best chosen."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax
from vfm_runtime.heads_on_features import AffineHead

from vfm.data.splits import draw_folds
from vfm.heads_on_features import Candidate, CandidateScores, cross_validate
from vfm.heads_on_features.cross_validation import FoldFitter, compute_metric, mark_learned
from vfm.heads_on_features.fit import cool_head, fit_candidate
from vfm.heads_on_features.linear import list_candidates
from vfm.heads_on_features.tip_adapter import TipAdapter
from vfm.metrics.ranking import Statistic
from vfm.models.heads import Head, LinearHead, NeighborsHead, VotingHead
from vfm.models.heads.classification import Reads
from vfm.training.selection import (
    Choice,
    Remade,
    build_criterion,
    build_statistic,
    choose_honestly,
)
from vfm.training.solved_head import FittedHead, load_members

POOLED = ("pooled",)
JOINED = ("pooled", "map_means")
_FOLDS, _MANY_FOLDS, _FEW_IMAGES = 5, 10, 300
"""Folds; more of them for few images, since a head that learns from all is better than one that learns from 4 / 5."""
_REPEATS = 3
_MOST_REPEATED = 12
"""Candidates that are judged by all repetitions: those that the first one leaves in the running."""
_MOST_VOTERS = 5
_FRACTION = 0.25
"""Fraction of the time left that cross-validation of the frozen heads may take."""
_NAMES = {
    "neighbors": "{k}-nearest-neighbors",
    "nearest_mean": "nearest mean",
    "lda": "LDA, shrunk",
    "logistic": "logistic regression",
    "tip_adapter": "Tip-Adapter",
    "words": "words alone",
}
_SCALINGS = {"none": "", "l2": "L2", "standardized": "standardized"}


@dataclass(eq=False)
class JudgedHead:
    """A head on frozen features, with its scores of images that it was not fitted on."""

    candidate: Candidate
    reads: tuple[str, ...]
    """Fields of the features that it reads, joined."""
    results: list[CandidateScores]
    """Out-of-fold scores of each repetition of the cross-validation."""
    seconds: float
    """Its part of the time of the cross-validation."""

    @property
    def metric(self) -> float:
        """Accuracy or mean average precision, averaged over the repetitions."""
        return float(np.mean([result.metric for result in self.results]))

    @property
    def scores(self) -> list[NDArray[np.float32]]:
        """Out-of-fold scores [N, C] of each repetition."""
        return [result.scores.astype(np.float32) for result in self.results]

    @property
    def margin(self) -> float:
        """By how many standard errors it has to be better than others to be chosen.

        A kNN carries all images with it, and what early layers know carries over less to images of another place or
        camera.
        """
        return 1.0 * (self.candidate.head == "neighbors") + 2.0 * (self.reads == JOINED)

    @property
    def temperature(self) -> float:
        """What its logits are divided by, so that they give probabilities."""
        return float(np.mean([result.temperature for result in self.results]))

    def build(self) -> LinearHead | NeighborsHead:
        """Return the head as a model has it, without its layers yet."""
        reads: Reads = "both" if self.reads == JOINED else "pooled"
        if self.candidate.head == "neighbors":
            return NeighborsHead(self.candidate.k, reads=reads)
        solver, scaling = self.candidate.head, self.candidate.scaling
        # Where a text tower is at hand, no model is built of the heads.
        assert solver != "tip_adapter"
        assert solver != "words"
        c = self.candidate.c if solver == "logistic" else None
        return LinearHead(reads=reads, solver=solver, scaling=scaling, c=c)

    @property
    def family(self) -> str:
        """Name without the settings that cross-validation chose."""
        return _NAMES[self.candidate.head].format(k=self.candidate.k)

    @property
    def name(self) -> str:
        """Name with what features go through, such as `logistic regression (L2, several layers)`."""
        details = [] if self.candidate.head == "neighbors" else [_SCALINGS[self.candidate.scaling]]
        details.append("several layers" if self.reads == JOINED else "")
        text = ", ".join(filter(None, details))
        return f"{self.family} ({text})" if text else self.family


@dataclass(eq=False)
class JudgedVote:
    """The mean of the probabilities of several heads, judged like one: nothing is fitted anew."""

    members: list[JudgedHead]
    scores: list[NDArray[np.float32]]
    """Out-of-fold scores [N, C] of each repetition that all members took part in."""
    metric: float
    margin = -1.0
    """Below 0: on few images the head that seems best is so in part by chance, and a mean is steadier."""

    @property
    def seconds(self) -> float:
        """Time of the members' cross-validation."""
        return sum(member.seconds for member in self.members)

    @property
    def family(self) -> str:
        """Name."""
        return f"vote of {len(self.members)} heads"

    name = family

    def build(self) -> VotingHead:
        """Return the head as a model has it, without its layers yet."""
        return VotingHead([member.build() for member in self.members])


@dataclass(eq=False)
class FrozenHeads:
    """The frozen heads of one backbone, judged on N images, and the best of them."""

    features: dict[str, NDArray[np.float32]]
    """Fields of the features, each [N, width]."""
    target: NDArray[np.int64]
    """True classes, [N]; or [N, C] of zeros and ones where several labels may apply."""
    num_labels: int
    """Number of labels C."""
    keys: Sequence[str]
    """Key of each image: those of one key are never divided."""
    seed: int = 0
    """Seed of the folds."""
    adapters: Sequence[TipAdapter] = ()
    """Labels as words with settings to try, where a text tower goes with the pooled features."""
    heads: list[JudgedHead] = field(default_factory=list)
    """All heads that were judged, the best first."""
    vote: JudgedVote | None = None
    """The best heads together."""
    choice: Choice | None = None
    untried: dict[str, str] = field(default_factory=dict)
    """Why heads were left out that take longer than they may, by name."""

    @property
    def multilabel(self) -> bool:
        """Whether several labels, or none, may apply to an image."""
        return self.target.ndim == 2

    @property
    def fields(self) -> list[tuple[str, ...]]:
        """Features that heads may read."""
        return [POOLED, JOINED] if "map_means" in self.features else [POOLED]

    @property
    def num_folds(self) -> int:
        """Number of folds of the cross-validation."""
        number = _MANY_FOLDS if len(self.target) < _FEW_IMAGES else _FOLDS
        if not self.multilabel:
            # One image of each class is held out at a time: where one class alone is short of an image, heads give it
            # less than its due.
            number = min(number, max(2, int(np.bincount(self.target).max())))
        return min(number, len(set(self.keys)))

    @property
    def candidates(self) -> list[JudgedHead | JudgedVote]:
        """All that can be chosen."""
        return [*self.heads, *([self.vote] if self.vote else [])]

    @property
    def best(self) -> JudgedHead | JudgedVote:
        """The head that was chosen."""
        assert self.choice is not None
        return self.candidates[self.choice.best]

    def judge(self, seconds: float) -> None:
        """Cross-validate the heads in about so many seconds, the cheap ones first, and choose one honestly."""
        start, allowed = time.perf_counter(), _FRACTION * seconds
        folds = self.draw_folds(self.seed)
        for reads in self.fields:
            self._cross_validate(reads, self._list_simple(), folds)
        adapters = [
            Candidate("tip_adapter" if one.alpha else "words", "none", adapter=one)
            for one in self.adapters
        ]
        self._cross_validate(POOLED, adapters, folds)
        for reads in self.fields:
            left = allowed - (time.perf_counter() - start)
            self._cross_validate(reads, self._plan_logistic(reads, folds, left), folds)
        once = time.perf_counter() - start
        everything = np.ones((1, len(self.target)), np.int64)
        self.heads = self._rank(everything)
        running = self._list_running(self.heads)[:_MOST_REPEATED]
        for repeat in range(1, _REPEATS):
            # The heads that are left are fewer; that all took `once` bounds their time.
            if time.perf_counter() - start + once * len(running) / len(self.heads) > allowed:
                break
            again = self.draw_folds(self.seed + repeat)
            for reads in self.fields:
                part = [head for head in running if head.reads == reads]
                for head, result in zip(
                    part, self._score([head.candidate for head in part], reads, again), strict=True
                ):
                    head.results.append(result)
        self.heads = self._rank(everything)
        self.vote = self._combine_heads(everything)
        self.choice = self.choose(self.candidates)

    def draw_folds(self, seed: int) -> NDArray[np.int64]:
        """Draw a fold for each image, [N]: stratified by label, no key divided."""
        labels = [
            tuple(np.flatnonzero(row).tolist()) if self.multilabel else (int(row),)
            for row in self.target
        ]
        return np.array(draw_folds(self.keys, labels, self.num_folds, seed))

    def join(self, reads: Sequence[str]) -> NDArray[np.float32]:
        """Return the fields that a head reads side by side, [N, D]."""
        return np.concatenate([self.features[name] for name in reads], axis=1)

    def score_images(
        self, train: NDArray[np.int64], judged: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Score some images by the head that the other images choose, fitted on `train`; both are indices."""
        others = np.setdiff1d(np.arange(len(self.target)), judged)
        counts = np.isin(np.arange(len(self.target)), others).astype(np.int64)[None]
        ranked = self._rank(counts)
        vote = self._combine_heads(counts)
        finalists: list[JudgedHead | JudgedVote] = [ranked[0], *([vote] if vote else [])]
        ranks = [self._build_criterion(head)(counts)[0] for head in finalists]
        return self.fit_and_score(finalists[int(np.argmax(ranks))], train, judged)

    def fit_and_score(
        self,
        head: JudgedHead | JudgedVote,
        train: NDArray[np.int64],
        judged: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """Fit a head on some images, and return its logits [n, C] of others, of a vote scores; both are indices."""
        return self._score_others(
            head, train, {name: values[judged] for name, values in self.features.items()}
        )

    def score(self, features: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return probabilities [M, C] of the chosen head, fitted on all images, for other features, each [M, width]."""
        raw = self._score_others(self.best, np.arange(len(self.target)), features)
        if isinstance(self.best, JudgedVote):
            return raw
        return self._normalize(raw / self.best.temperature)

    def _normalize(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        scores = expit(logits) if self.multilabel else softmax(logits, axis=1)
        return np.asarray(scores, np.float32)

    def _score_others(
        self,
        head: JudgedHead | JudgedVote,
        train: NDArray[np.int64],
        features: dict[str, NDArray[np.float32]],
    ) -> NDArray[np.float32]:
        if isinstance(head, JudgedVote):
            scores = [
                self._normalize(self._score_others(member, train, features) / member.temperature)
                for member in head.members
            ]
            mean: NDArray[np.float32] = np.mean(scores, axis=0, dtype=np.float32)
            return mean
        fitter = FoldFitter(
            self.join(head.reads)[train], self.target[train], self.num_labels, None, self.multilabel
        )
        others = np.concatenate([features[name] for name in head.reads], axis=1)
        ((_, logits),) = fitter.score([head.candidate], others)
        return logits.astype(np.float32)

    def _cross_validate(
        self, reads: tuple[str, ...], candidates: Sequence[Candidate], folds: NDArray[np.int64]
    ) -> None:
        start = time.perf_counter()
        results = self._score(candidates, reads, folds)
        each = (time.perf_counter() - start) / max(1, len(results))
        self.heads += [JudgedHead(result.candidate, reads, [result], each) for result in results]

    def _score(
        self, candidates: Sequence[Candidate], reads: Sequence[str], folds: NDArray[np.int64]
    ) -> list[CandidateScores]:
        if not candidates:
            return []
        target = self.target
        results = cross_validate(
            self.join(reads),
            target,
            folds,
            candidates,
            num_labels=self.num_labels,
            multilabel=self.multilabel,
        )
        learned = mark_learned(target, folds, self.multilabel)
        if learned.all():
            return results
        # A class without images outside the fold is not known there, whatever the numbers say.
        for result in results:
            if result.candidate.head != "words":
                result.scores[~learned, target[~learned]] = -1e-9
        return [
            replace(result, metric=compute_metric(result.scores, target, self.multilabel))
            for result in results
        ]

    def _list_simple(self) -> list[Candidate]:
        neighbors = [Candidate("neighbors", k=k) for k in (1, 5)]
        if self.multilabel:
            return neighbors
        candidates = [Candidate("nearest_mean", "none"), *neighbors]
        if (
            np.bincount(self.target).max() > 2
        ):  # else folds learn from one image a class, which has no covariance
            candidates = [Candidate("lda", "none"), Candidate("lda", "l2"), *candidates]
        return candidates

    def _plan_logistic(
        self, reads: Sequence[str], folds: NDArray[np.int64], seconds: float
    ) -> list[Candidate]:
        """Return the whole grid of logistic regression, a part of it, or none, by what the time allows."""
        values = self.join(reads)
        grid = list_candidates(values)
        start = time.perf_counter()
        middle = grid[len(grid) // 2]
        self._fit(middle, values)
        each = (time.perf_counter() - start) * (int(folds.max()) + 1)
        for step in (1, 3, len(grid)):
            part = grid[len(grid) // 2 % step :: step]
            if each * len(part) <= seconds:
                return part
        if not self.untried:
            reason = f"one value of C would take {each:.0f} s, and all may take {max(0.0, seconds):.0f} s"
            self.untried[_NAMES["logistic"]] = reason
        return []

    def _rank(self, counts: NDArray[np.int64]) -> list[JudgedHead]:
        """Return the heads, the best first, by how often each image counts, [1, N]."""
        return sorted(self.heads, key=lambda head: -self._build_criterion(head)(counts)[0])

    def _list_running(self, heads: Sequence[JudgedHead]) -> list[JudgedHead]:
        """List the heads that are not worse than the best one by more than two standard errors."""
        least = self._find_least([head.metric for head in heads])
        return [head for head in heads if head.metric >= least]

    def _find_least(self, metrics: ArrayLike) -> float:
        highest = float(np.max(metrics))
        return highest - 2 * _measure_error(highest, len(self.target))

    def _choose_voters(self, counts: NDArray[np.int64]) -> Iterator[list[JudgedHead]]:
        """Yield the best heads, one of each kind and of what it reads, for each row of how often each image counts.

        A kind that is clearly worse than the best one has no vote.

        Args:
            counts: How often each of the N images is in each of B samples, int [B, N].
        """
        ranks = np.stack([self._build_criterion(head)(counts) for head in self.heads])
        metrics = np.stack([build_statistic(h.scores, self.target)(counts) for h in self.heads])
        for order, values in zip(
            np.argsort(-ranks, axis=0, kind="stable").T, metrics.T, strict=True
        ):
            least = self._find_least(values)
            kinds: dict[tuple[str, tuple[str, ...]], JudgedHead] = {}
            for index in order[values[order] >= least]:
                head = self.heads[index]
                kinds.setdefault((head.family, head.reads), head)
            yield list(kinds.values())[:_MOST_VOTERS]

    def _combine_heads(self, counts: NDArray[np.int64]) -> JudgedVote | None:
        """Return the vote of the heads that are best by how often each image counts, [1, N]; None of a single kind."""
        (voters,) = self._choose_voters(counts)
        return self._make_vote(voters) if len(voters) > 1 else None

    def _make_vote(self, voters: list[JudgedHead]) -> JudgedVote:
        scores: list[NDArray[np.float32]] = [
            np.mean(parts, axis=0, dtype=np.float32)
            # Members that the first repetition left behind took part in no other.
            for parts in zip(*(member.scores for member in voters), strict=False)
        ]
        once = np.ones((1, len(self.target)), np.int64)
        metric = build_statistic(scores, self.target)(once)
        return JudgedVote(voters, scores, float(metric[0]))

    def _remake_vote(self, counts: NDArray[np.int64], outside: NDArray[np.int64]) -> Remade:
        """Let each sample choose the voters anew: those that all images chose seem better on them than they are."""
        samples: dict[tuple[int, ...], tuple[list[JudgedHead], list[int]]] = {}
        for sample, voters in enumerate(self._choose_voters(counts)):
            samples.setdefault(tuple(map(id, voters)), (voters, []))[1].append(sample)
        remade = Remade(np.empty(len(counts)), np.empty(len(counts)))
        for voters, rows in samples.values():
            vote = self._make_vote(voters)
            remade.criteria[rows] = self._build_criterion(vote)(counts[rows])
            remade.metrics[rows] = build_statistic(vote.scores, self.target)(outside[rows])
        return remade

    def _build_criterion(self, head: JudgedHead | JudgedVote) -> Statistic:
        criterion = build_criterion(head.scores, self.target)
        margin = head.margin * _measure_error(head.metric, len(self.target))
        return lambda counts: criterion(counts) - margin

    def choose(self, heads: Sequence[JudgedHead | JudgedVote]) -> Choice:
        """Choose one of some heads honestly."""
        target = self.target
        return choose_honestly(
            [build_statistic(head.scores, target) for head in heads],
            len(target),
            criteria=[self._build_criterion(head) for head in heads],
            remake=self._remake_vote if heads[-1] is self.vote else None,
            keys=self.keys,
            seed=self.seed,
        )

    def _fit(self, candidate: Candidate, values: NDArray[Any]) -> AffineHead:
        """Fit a linear head on all images."""
        return fit_candidate(
            candidate,
            values,
            self.target,
            num_labels=self.num_labels,
            multilabel=self.multilabel,
        )

    def fill(self, head: Head) -> None:
        """Fit the chosen head on all images, at the temperature at which its out-of-fold scores are probabilities."""
        best = self.best
        members = best.members if isinstance(best, JudgedVote) else [best]
        features = [self.join(member.reads) for member in members]
        fitted = [
            FittedHead(member.name, member.results[0], None, member.temperature)
            if member.candidate.head == "neighbors"
            else FittedHead(
                member.name,
                member.results[0],
                cool_head(self._fit(member.candidate, values), member.temperature),
            )
            for member, values in zip(members, features, strict=True)
        ]
        load_members(head, fitted, features, self.target)


def _measure_error(fraction: float, total: int) -> float:
    """Return the standard error of a fraction of `total` images, which is never 0."""
    return math.sqrt(max(fraction * (1 - fraction), 0.01) / total)

"""Frozen heads: chosen within the time, fitted again as they were judged, hard sets of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.image_folders import write_image_folder
from vfm.heads_on_features import Candidate
from vfm.training.frozen_heads import JOINED, POOLED
from vfm.tune.frozen import PoolHeads
from vfm.tune.images import LabeledPool, open_pool
from vfm.types import FeatureInfo, Features


def make_heads(
    root: Path, num_classes: int, images_per_class: int, spread: float = 0.5
) -> PoolHeads:
    """Judge heads on features that are noise around a point for each class."""
    write_image_folder(root, num_classes=num_classes, images_per_class=images_per_class)
    pool = open_pool(root, num_images=5000, seed=0)
    generator = np.random.default_rng(0)
    points = generator.normal(size=(num_classes, 20))
    features = points[pool.target] + spread * generator.normal(size=(len(pool.target), 20))
    values = features.astype(np.float32)
    return PoolHeads(pool, {"pooled": values[:, :12], "map_means": values[:, 12:]})


def test_heads_of_several_layers_are_chosen_where_they_know_more(tmp_path: Path) -> None:
    heads = make_heads(tmp_path, 3, 10, spread=1.5)
    heads.judge(100)
    assert heads.heads[0].reads == JOINED
    assert {head.reads for head in heads.heads} == {POOLED, JOINED}
    assert max(len(head.results) for head in heads.heads) == 3
    ways = heads.list_ways(1.0, 224)
    assert ways[0].name == heads.best.name
    assert [way.folds for way in ways] == [(10, 10)] * 6


def test_without_time_logistic_regression_is_said_to_be_left_out(tmp_path: Path) -> None:
    heads = make_heads(tmp_path, 3, 5)
    heads.judge(0)
    assert {head.candidate.head for head in heads.heads} == {"lda", "nearest_mean", "neighbors"}
    assert [way.name for way in heads.list_untried()] == ["logistic regression"]
    assert "one value of C would take" in heads.untried["logistic regression"]
    assert heads.choice is not None


@pytest.mark.parametrize(("num_classes", "images_per_class"), [(2, 1), (3, 2), (30, 2)])
def test_few_images_of_a_class_are_judged(
    tmp_path: Path, num_classes: int, images_per_class: int
) -> None:
    heads = make_heads(tmp_path, num_classes, images_per_class, spread=0.1)
    heads.judge(20)
    assert heads.choice is not None
    if images_per_class == 1:  # each is in a class that was not learned
        assert heads.best.metric == 0
    else:
        assert heads.best.metric > 0.9


def test_groups_that_leave_a_fold_without_a_class(tmp_path: Path) -> None:
    whole = make_heads(tmp_path, 3, 6).pool
    # All images of the first class belong together: where they are held out, their class is not learned.
    keys = ["one" if k == 0 else f"{i}" for i, k in enumerate(whole.target.tolist())]
    heads = make_heads(tmp_path, 3, 6, spread=0.1)
    heads = PoolHeads(LabeledPool(whole.data, whole.indices, keys), heads.features)
    heads.judge(20)
    assert heads.best.metric == pytest.approx(12 / 18)


def test_a_way_is_compared_with_a_head_that_knows_nothing_of_the_judged_images(
    tmp_path: Path,
) -> None:
    heads = make_heads(tmp_path, 3, 10)
    heads.judge(20)
    train, judged = np.arange(0, 30, 2), np.arange(1, 30, 2)
    logits = heads.score_images(train, judged)
    assert (logits.argmax(1) == heads.pool.target[judged]).mean() > 0.8
    again = heads.fit_and_score(
        next(head for head in heads.heads if head.candidate == Candidate("lda", "none")),
        train,
        judged,
    )
    assert again.shape == (15, 3)


def test_the_best_heads_vote_and_answer_as_they_were_judged(tmp_path: Path) -> None:
    heads = make_heads(tmp_path, 3, 10, spread=1.5)
    heads.judge(20)
    assert heads.best is heads.vote
    assert heads.vote is not None
    kinds = [(member.family, member.reads) for member in heads.vote.members]
    assert len(set(kinds)) == 5
    head = heads.best.build()
    head.prepare(FeatureInfo(width=12, token_width=8, map_widths=(8,)), "abc")
    heads.fill(head)
    fields = {name: torch.from_numpy(values) for name, values in heads.features.items()}
    answers = head.decode(head(Features.fill(fields)))["scores"]
    everything = np.arange(30)
    expected = heads.fit_and_score(heads.best, everything, everything)
    np.testing.assert_allclose(answers.detach(), expected, atol=2e-3)


def test_a_kind_that_is_clearly_worse_has_no_vote(tmp_path: Path) -> None:
    heads = make_heads(tmp_path, 3, 10, spread=1.5)
    heads.judge(20)
    assert heads.vote is not None
    worst = heads.vote.members[-1]
    everything = np.ones((1, len(heads.target)), np.int64)
    assert heads._combine_heads(everything).members == heads.vote.members
    for result in worst.results:  # as of shrunk LDA on two examples a class
        object.__setattr__(result, "scores", np.roll(result.scores, 1, axis=1))
    vote = heads._combine_heads(everything)
    assert vote is not None
    assert worst not in vote.members

"""Contrastive losses: equal to open_clip's, several positives, and one result whatever the number of ranks."""

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import distributed

from vfm.losses import CLIPLoss, SigLIPLoss, UniCLLoss
from vfm.losses.base import sum_losses
from vfm.types import Labels

SCRIPT = """
import sys
from tests.losses.test_contrastive import compare_ranks

compare_ranks(1, sys.argv[1])
print("equal")
"""


def draw(number, classes=0, seed=0):
    """Raw outputs of pairs, all with a text of their own, and labels, -1 where there are no classes."""
    generator = torch.Generator().manual_seed(seed)
    raw = {
        name: torch.randn(number, 8, generator=generator)
        for name in ("embedding", "text_embedding")
    }
    raw["text_id"] = torch.arange(number)
    labels = torch.full((number,), -1)
    if classes:
        labels = torch.randint(-1, classes, (number,), generator=generator)
    return raw, labels


def compute(loss, raw, labels, part=slice(None)):
    """The loss of some pairs, and the gradients of all vectors and of temperature and bias."""
    leaves = [raw[n].clone().requires_grad_() for n in ("embedding", "text_embedding")]
    own = dict(zip(("embedding", "text_embedding"), (leaf[part] for leaf in leaves), strict=True))
    batch = {"target": Labels(labels[part])}
    total = sum_losses(loss({**own, "text_id": raw["text_id"][part]}, batch))
    total.backward()
    return total.detach(), [leaf.grad for leaf in (*leaves, *loss.parameters())]


def test_losses_of_distinct_texts_are_those_of_open_clip():
    pytest.importorskip("open_clip")
    from open_clip.loss import ClipLoss, SigLipLoss

    raw, labels = draw(12)
    images, texts = (
        torch.nn.functional.normalize(raw[name], dim=-1) for name in ("embedding", "text_embedding")
    )
    expected = ClipLoss()(images, texts, torch.tensor(1 / 0.07))
    for kind in (CLIPLoss, UniCLLoss):
        total, _ = compute(kind(), raw, labels)
        torch.testing.assert_close(total / 12, expected)
    total, _ = compute(SigLIPLoss(), raw, labels)
    torch.testing.assert_close(total / 12, SigLipLoss()(images, texts, 10.0, -10.0))


def test_unicl_shares_an_image_out_among_the_texts_of_its_class():
    raw, _ = draw(6, seed=1)
    labels = torch.tensor([0, 0, 1, 2, -1, -1])
    raw["text_id"] = torch.tensor([0, 1, 2, 3, 4, 4])  # the last two have no label, but one text
    groups = [{0, 1}, {0, 1}, {2}, {3}, {4, 5}, {4, 5}]
    images, texts = (
        torch.nn.functional.normalize(raw[name], dim=-1) for name in ("embedding", "text_embedding")
    )
    logits = images @ texts.T / 0.07
    rows, columns = logits.log_softmax(1), logits.log_softmax(0)
    means = {
        "image_to_text": [rows[i, list(g)].mean() for i, g in enumerate(groups)],
        "text_to_image": [columns[list(g), j].mean() for j, g in enumerate(groups)],
    }
    losses = UniCLLoss()(raw, {"target": Labels(labels)})
    for name, values in means.items():
        torch.testing.assert_close(losses[name], -torch.stack(values).sum() / 2)
    clip = sum_losses(CLIPLoss()(raw, {"target": Labels(labels)}))
    torch.testing.assert_close(clip, -(rows.diagonal().sum() + columns.diagonal().sum()) / 2)
    assert not torch.isclose(clip, sum_losses(losses))


def test_siglip_may_have_several_positives():
    raw, _ = draw(4)
    labels = torch.tensor([0, 0, 1, 2])
    several, paper = (
        sum_losses(SigLIPLoss(multi_positive=m)(raw, {"target": Labels(labels)}))
        for m in (True, False)
    )
    images, texts = (
        torch.nn.functional.normalize(raw[name], dim=-1) for name in ("embedding", "text_embedding")
    )
    logits = 10 * images @ texts.T - 10
    # -log sigmoid(x) becomes -log sigmoid(-x) for the two pairs of one label, which differ by -x.
    torch.testing.assert_close(several - paper, -(logits[0, 1] + logits[1, 0]))


def test_the_temperature_is_learned_and_held():
    loss = UniCLLoss(scale=100)
    raw, labels = draw(6)
    with torch.no_grad():
        loss.log_scale.add_(1.0)
    compute(loss, raw, labels)
    assert loss.log_scale.exp().item() == pytest.approx(100)
    assert loss.log_scale.grad is not None
    with pytest.raises(ValueError, match=r"scale is 0\. Give a number from 1 to 100"):
        SigLIPLoss(scale=0)


def compare_ranks(rank, store):
    """Compare what two ranks have together with what one has alone, on one of the two."""
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=2,
        timeout=timedelta(minutes=10),
    )
    try:
        for sizes in ([5, 5], [10, 0]):  # the files of a rank may all be unreadable
            part = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
            for kind in (UniCLLoss, CLIPLoss, SigLIPLoss):
                raw, labels = draw(10, classes=3)
                alone = compute(kind().eval(), raw, labels)
                loss, gradients = compute(kind(), raw, labels, part)
                # As DDP does, whose mean over ranks the task makes a sum of.
                for value in (loss, *gradients):
                    distributed.all_reduce(value)
                torch.testing.assert_close(loss, alone[0])
                for ours, theirs in zip(gradients, alone[1], strict=True):
                    torch.testing.assert_close(ours, theirs)
    finally:
        distributed.destroy_process_group()


def test_two_ranks_have_the_loss_and_the_gradients_of_one(tmp_path):
    root = Path(__file__).parents[2]
    other = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "store")],
        cwd=root,
        env={
            "PYTHONPATH": f"{root}:{root / 'export'}",
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        compare_ranks(0, tmp_path / "store")
        output, _ = other.communicate(timeout=600)
    finally:
        other.kill()
    assert output.strip().endswith("equal"), output[-3000:]

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from vfm_runtime.errors import OptionError
from vfm_runtime.heads_on_features import AffineHead

from vfm.heads_on_features import score_neighbors
from vfm.models.heads import (
    AttentionPoolHead,
    ClassificationHead,
    Head,
    LinearHead,
    MLPHead,
    NeighborsHead,
    VotingHead,
)
from vfm.types import FeatureInfo, Features, Raw

INFO = FeatureInfo(width=12, token_width=5)
LABELS = ("cat", "dog", "fox")


def features(num_images: int = 4) -> Features:
    maps = torch.randn(num_images, 5, 2, 3)
    return Features(
        pooled=torch.randn(num_images, 12), tokens=maps.flatten(2).transpose(1, 2), maps=(maps,)
    )


class TokenHead(ClassificationHead):
    """Averages a layer's answers over all places."""

    def __init__(self, hidden: int = 7) -> None:
        super().__init__()
        self.hidden = hidden

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        self.layers = nn.Sequential(
            nn.Linear(info.token_width, self.hidden), nn.GELU(), nn.Linear(self.hidden, num_labels)
        )

    def forward(self, features: Features) -> Raw:
        return {"logits": self.layers(features.tokens).mean(1)}


@pytest.mark.parametrize(
    "make", [LinearHead, TokenHead, MLPHead, lambda: AttentionPoolHead(num_heads=5)]
)
def test_shapes_and_decode(make: type[ClassificationHead]) -> None:
    torch.manual_seed(0)
    head = make()
    assert head.labels == ()
    head.prepare(INFO, LABELS)
    assert head.labels == LABELS
    raw = head.eval()(features())
    assert raw["logits"].shape == (4, 3)
    scores = head.decode(raw)["scores"]
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(1), torch.ones(4))
    assert torch.equal(scores.argmax(1), raw["logits"].argmax(1))


def test_decode_is_float32_from_half_precision() -> None:
    scores = LinearHead().decode({"logits": torch.randn(5, 30, dtype=torch.bfloat16)})["scores"]
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.sum(1), torch.ones(5))


def test_an_empty_batch_is_answered() -> None:
    head = LinearHead()
    head.prepare(INFO, LABELS)
    assert head.decode(head(features(0)))["scores"].shape == (0, 3)


def test_a_linear_head_starts_near_equal_scores() -> None:
    head = LinearHead()
    head.prepare(INFO, LABELS)
    scores = head.decode(head.eval()(features(50)))["scores"]
    assert (scores - 1 / 3).abs().max() < 0.1
    assert head.linear.weight.shape == (3, 12)
    assert torch.equal(head.linear.bias, torch.zeros(3))
    assert head.linear.weight.std() > 0


def make_affine(width: int, *, center: bool, normalizes: bool) -> AffineHead:
    generator = np.random.default_rng(0)
    middle = generator.normal(size=width) if center else None
    return AffineHead(generator.normal(size=(3, width)), np.arange(3.0), middle, normalizes)


@pytest.mark.parametrize("reads", ["pooled", "map_means", "both"])
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("normalizes", [False, True])
def test_a_solved_head_gives_its_logits_also_from_a_checkpoint(
    reads: str, center: bool, normalizes: bool
) -> None:
    info = FeatureInfo(width=12, token_width=5, map_widths=(4, 5), map_strides=(8, 16))
    given = Features(torch.randn(6, 12), torch.empty(0), (), torch.randn(6, 9))
    head = LinearHead(reads=reads).eval()  # type: ignore[arg-type]
    head.prepare(info, LABELS)
    vectors = {"pooled": given.pooled, "map_means": given.map_means}
    joined = torch.cat([vectors[name] for name in head.uses], dim=1)
    affine = make_affine(joined.shape[1], center=center, normalizes=normalizes)
    head.load_affine(affine)
    expected = affine.compute_logits(joined.numpy())
    again = LinearHead(reads=reads).eval()  # type: ignore[arg-type]
    again.prepare(info, LABELS)
    again.load_state_dict(head.state_dict())
    for one in (head, again):
        logits = one(given)["logits"].detach().numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_linear_head_of_before_loads_as_it_did() -> None:
    head = LinearHead()
    head.prepare(INFO, LABELS)
    head.load_affine(make_affine(12, center=True, normalizes=True))
    head.load_state_dict({"linear.weight": torch.ones(3, 12), "linear.bias": torch.zeros(3)})
    given = features()
    expected = given.pooled.sum(1, keepdim=True).expand(4, 3)
    torch.testing.assert_close(head(given)["logits"], expected)


@pytest.mark.parametrize("multilabel", [False, True])
def test_neighbors_vote_also_from_a_checkpoint(multilabel: bool) -> None:
    head = NeighborsHead(k=3)
    head.multilabel = multilabel
    head.prepare(INFO, LABELS)
    stored, labels = torch.randn(20, 12), torch.randint(3, (20,))
    head.load_neighbors(stored, torch.eye(3)[labels])
    again = NeighborsHead(k=3)
    again.multilabel = multilabel
    again.prepare(INFO, LABELS)
    again.load_state_dict(head.state_dict())
    given = features()
    expected = score_neighbors(given.pooled, stored, torch.eye(3)[labels], k=3)
    for one in (head, again):
        scores = one.decode(one(given))["scores"].numpy()
        np.testing.assert_allclose(scores, expected, atol=1e-3)


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_vote_is_the_mean_of_the_scores(multilabel: bool) -> None:
    assert VotingHead([LinearHead(), LinearHead(reads="both")]).uses == ("pooled", "map_means")
    head = VotingHead([LinearHead(), LinearHead()])
    head.multilabel = multilabel
    head.prepare(INFO, LABELS)
    head.temperatures.copy_(torch.tensor([1.0, 0.1]))
    given = features()
    logits = [one(given)["logits"] / t for one, t in zip(head.heads, (1.0, 0.1), strict=True)]
    scores = torch.stack([each.sigmoid() if multilabel else each.softmax(1) for each in logits])
    expected = scores.mean(0)
    torch.testing.assert_close(head.decode(head(given))["scores"], expected)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LinearHead(reads="maps"), "reads is 'maps'. Choices: pooled, map_means, both"),
        (lambda: NeighborsHead(k=0), "k is 0 and temperature 0.07. Give 1 neighbor or more"),
        (lambda: VotingHead([LinearHead()]), "heads has 1 of them. Give two or more, each a Lin"),
        (
            lambda: VotingHead([LinearHead(), MLPHead()]),
            "heads has a MLPHead. Give two or more, each a LinearHead or a NeighborsHead.",
        ),
    ],
)
def test_what_a_head_cannot_read_is_refused(make: type[Head], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        make()


def test_dropout_acts_in_training_only() -> None:
    head = LinearHead(dropout=0.5)
    head.prepare(INFO, LABELS)
    given = features()
    torch.manual_seed(0)
    first = head.train()(given)["logits"]
    assert not torch.equal(first, head(given)["logits"])
    head.eval()
    assert torch.equal(head(given)["logits"], head(given)["logits"])


def test_the_spec_tells_the_arguments() -> None:
    assert LinearHead(dropout=0.25).spec == {
        "class_path": "vfm.models.heads.classification.LinearHead",
        "init_args": {
            "dropout": 0.25,
            "reads": "pooled",
            "solver": "logistic",
            "scaling": None,
            "c": None,
        },
    }
    assert TokenHead(9).spec["init_args"] == {"hidden": 9}


def test_the_contract_is_abstract() -> None:
    class Half(Head):
        def build(self, info: FeatureInfo, num_labels: int) -> None: ...

        def decode(self, raw: Raw) -> dict[str, Tensor]: ...  # type: ignore[empty-body]

    with pytest.raises(TypeError, match="forward"):
        Half()  # type: ignore[abstract]


@pytest.mark.parametrize("make", [MLPHead, lambda: AttentionPoolHead(num_heads=5)])
def test_layers_learn(make) -> None:
    """Every weight gets a gradient, and the loss falls."""
    torch.manual_seed(0)
    head = make()
    head.prepare(INFO, LABELS)
    inputs, target = features(12), torch.arange(12) % 3
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(head(inputs)["logits"], target)
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    head = AttentionPoolHead(num_heads=5)
    head.prepare(FeatureInfo(width=3, token_width=10), LABELS)
    nn.init.normal_(head.linear.weight)
    nn.init.normal_(head.query)
    tokens = torch.randn(4, 6, 10)
    theirs = nn.MultiheadAttention(10, 5, batch_first=True)
    with torch.no_grad():
        keys_and_values = head.keys_and_values
        theirs.in_proj_weight.copy_(torch.cat([torch.eye(10), keys_and_values.weight]))
        theirs.in_proj_bias.copy_(torch.cat([torch.zeros(10), keys_and_values.bias]))
        theirs.out_proj.weight.copy_(torch.eye(10))
        theirs.out_proj.bias.zero_()
    normed = head.norm(tokens)
    pooled, _ = theirs(head.query.expand(4, 1, 10), normed, normed)
    given = Features(pooled=torch.zeros(4, 3), tokens=tokens, maps=())
    torch.testing.assert_close(head(given)["logits"], head.linear(pooled[:, 0]))


def test_a_number_of_heads_that_does_not_fit() -> None:
    head = AttentionPoolHead(num_heads=8)
    text = r"num_heads is 8, which does not divide the backbone's width of 5\. Choices: 1, 5 \("
    with pytest.raises(ValueError, match=text):
        head.prepare(INFO, LABELS)


def test_no_hidden_layer() -> None:
    with pytest.raises(ValueError, match=r"hidden is 0\. Give the width of the hidden layer"):
        MLPHead(hidden=0)


def test_independent_labels_have_scores_of_their_own() -> None:
    head = LinearHead()
    head.multilabel = True
    logits = torch.tensor([[3.0, 2.0, -4.0]])
    torch.testing.assert_close(head.decode({"logits": logits})["scores"], logits.sigmoid())

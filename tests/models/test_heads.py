from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vfm.models.heads import ClassificationHead, Head, LinearHead
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


@pytest.mark.parametrize("make", [LinearHead, TokenHead])
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
        "init_args": {"dropout": 0.25},
    }
    assert TokenHead(9).spec["init_args"] == {"hidden": 9}


def test_the_contract_is_abstract() -> None:
    class Half(Head):
        def build(self, info: FeatureInfo, num_labels: int) -> None: ...

        def decode(self, raw: Raw) -> dict[str, Tensor]: ...  # type: ignore[empty-body]

    with pytest.raises(TypeError, match="forward"):
        Half()  # type: ignore[abstract]

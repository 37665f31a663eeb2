"""Head that averages the answers of others (soft voting), which on few images is seldom worse than the best of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from vfm_runtime.errors import OptionError

from vfm.models.heads.classification import ClassificationHead, LinearHead, NeighborsHead
from vfm.models.heads.head import Head
from vfm.types import FeatureInfo, Features, Raw

_SOLVED = (LinearHead, NeighborsHead)
_LEAST = 1e-7


class VotingHead(ClassificationHead):
    """Averages the probabilities of several heads on frozen features, each divided by its temperature before.

    Like its members it is solved, not trained by steps.
    """

    temperatures: Tensor

    def __init__(self, heads: list[Head]) -> None:
        """Take the heads.

        Args:
            heads: Two or more, each a LinearHead or a NeighborsHead.
        """
        super().__init__()
        others = [type(head).__name__ for head in heads if type(head) not in _SOLVED]
        if len(heads) < 2 or others:
            problem = f"a {others[0]}" if others else f"{len(heads)} of them"
            raise OptionError(
                f"heads has {problem}. Give two or more, each a LinearHead or a NeighborsHead."
            )
        self.heads = nn.ModuleList(heads)
        self.uses = tuple(dict.fromkeys(name for head in heads for name in head.uses))

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make the layers of the heads."""
        for head in list_members(self):
            head.multilabel = self.multilabel
            head.build(info, num_labels)
        self.register_buffer("temperatures", torch.ones(len(self.heads)))

    def forward(self, features: Features) -> Raw:
        """Return `logits` [N, C] of the mean probabilities."""
        scores = [
            head.decode({"logits": head(features)["logits"].float() / temperature})["scores"]
            for head, temperature in zip(list_members(self), self.temperatures, strict=True)
        ]
        mean = torch.stack(scores).mean(dim=0).clamp(_LEAST, 1 - _LEAST)
        return {"logits": mean.logit() if self.multilabel else mean.log()}


def list_members(head: Head) -> list[ClassificationHead]:
    """Return the heads that vote, or the head itself where it is of another kind."""
    return list(head.heads) if isinstance(head, VotingHead) else [head]  # type: ignore[list-item, arg-type]


def can_be_solved(head: Head) -> bool:
    """Return whether a head on frozen features is fitted at once, not by steps."""
    return type(head) in (*_SOLVED, VotingHead)

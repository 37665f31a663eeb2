"""Contrastive losses of images and their texts: UniCL, CLIP's InfoNCE and SigLIP, over the pairs of all ranks."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.embedding import OUTPUT
from vfm_runtime.text import TEXT_OUTPUT

from vfm.losses.base import Loss
from vfm.types import Batch, Labels, Raw, require_target

TEXT_ID = "text_id"
"""Name of the raw output that says which texts are equal, int64 [N], the same number on every rank."""
MAX_SCALE = 100.0
"""Largest temperature, by which cosines are multiplied, that is learned."""


class PairVectors(NamedTuple):
    """Images with their texts: n of this rank, N of all ranks, among which those of this rank begin at `start`."""

    image: Tensor
    """float32 [n, D], vectors of norm 1."""
    text: Tensor
    """float32 [n, D], vectors of norm 1."""
    all_images: Tensor
    """float32 [N, D]."""
    all_texts: Tensor
    """float32 [N, D]."""
    positive: Tensor
    """bool [n, N], whether the text of one pair, row or column, is right for the image of the other too."""
    diagonal: Tensor
    """bool [n, N], which columns are the pairs of the rows themselves."""


class ContrastiveLoss(Loss):
    """A loss of the cosines between all images and all texts of a step, times a temperature that is learned."""

    def __init__(self, scale: float, bias: float | None = None) -> None:
        """Set where scale and bias start.

        Raises:
            OptionError: The scale lies outside its range.
        """
        super().__init__()
        if not 1 <= scale <= MAX_SCALE:
            raise OptionError(
                f"scale is {scale}. Give a number from 1 to {MAX_SCALE:g} (--model.loss.scale)."
            )
        # Of one dimension: FSDP2 shards no scalars.
        self.log_scale = nn.Parameter(torch.tensor([math.log(scale)]))
        self.bias = None if bias is None else nn.Parameter(torch.tensor([float(bias)]))

    @abstractmethod
    def compare(self, pairs: PairVectors, scale: Tensor) -> dict[str, Tensor]:
        """Return sums over the pairs of this rank by name, which for one pair would be its share of the mean.

        Args:
            pairs: Vectors of this rank and of all.
            scale: What cosines are multiplied by, float32 [1].
        """

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return sums over the pairs of this rank; in training all ranks take part, even with no pair of their own.

        Args:
            raw: `embedding` and `text_embedding` [n, D], and `text_id` [n].
            batch: Target of `Labels`; those of -1 are not known.
        """
        with torch.no_grad():
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        image, text = (F.normalize(raw[name].float(), dim=-1) for name in (OUTPUT, TEXT_OUTPUT))
        keys = torch.stack([require_target(batch, Labels, self).label, raw[TEXT_ID]], dim=1)
        pairs = join_ranks(image, text, keys, alone=not self.training)
        return self.compare(pairs, self.log_scale.exp())


def join_ranks(image: Tensor, text: Tensor, keys: Tensor, *, alone: bool = False) -> PairVectors:
    """Gather the pairs of all ranks, through which gradients flow back to the rank that each pair is of.

    Args:
        image: Vectors of this rank's images, float32 [n, D]; n may be 0, and differ from rank to rank.
        text: Vectors of their texts, float32 [n, D].
        keys: Label, or -1, and number of the text of each pair, int64 [n, 2].
        alone: Whether this rank compares its own pairs only.
    """
    rows, start, all_keys = torch.cat([image, text], dim=1), 0, keys
    if not alone and distributed.is_available() and distributed.is_initialized():
        sizes = [
            torch.zeros(1, dtype=torch.int64, device=keys.device)
            for _ in range(distributed.get_world_size())
        ]
        distributed.all_gather(sizes, torch.tensor([len(keys)], device=keys.device))
        counts = [int(size) for size in sizes]
        start = sum(counts[: distributed.get_rank()])
        # Images and texts in one call, so that backward passes meet in one collective whatever their order.
        rows, all_keys = _GatherRows.apply(rows, counts), _GatherRows.apply(keys, counts)
    all_images, all_texts = rows.chunk(2, dim=1)
    label, number = keys[:, None, 0], keys[:, None, 1]
    positive = ((label == all_keys[:, 0]) & (label >= 0)) | (number == all_keys[:, 1])
    position = torch.arange(start, start + len(keys), device=keys.device)
    diagonal = position[:, None] == torch.arange(len(all_keys), device=keys.device)
    return PairVectors(image, text, all_images, all_texts, positive, diagonal)


class _GatherRows(torch.autograd.Function):
    """Rows of all ranks, of which each may have another number; the backward pass sums over ranks."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.start, ctx.size = sum(counts[: distributed.get_rank()]), len(rows)
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        distributed.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.size], None


class UniCLLoss(ContrastiveLoss):
    """Unified contrastive learning (Yang et al., 2022): every pair of one label, or of one text, is right for another.

    The mean of both directions; where all labels and texts differ it is CLIP's loss.
    """

    def __init__(self, scale: float = 1 / 0.07) -> None:
        """Set the start.

        Args:
            scale: What cosines are multiplied by at first, 1 to 100; it is learned, and stays below 100.
        """
        super().__init__(scale)

    def compare(self, pairs: PairVectors, scale: Tensor) -> dict[str, Tensor]:
        """Return `image_to_text` and `text_to_image`."""
        return _compare_softmax(pairs, pairs.positive, scale)


class CLIPLoss(ContrastiveLoss):
    """Symmetric InfoNCE (Radford et al., 2021): the text of an image against those of all others, and the reverse."""

    def __init__(self, scale: float = 1 / 0.07) -> None:
        """Set the start.

        Args:
            scale: What cosines are multiplied by at first, 1 to 100; it is learned, and stays below 100.
        """
        super().__init__(scale)

    def compare(self, pairs: PairVectors, scale: Tensor) -> dict[str, Tensor]:
        """Return `image_to_text` and `text_to_image`."""
        return _compare_softmax(pairs, pairs.diagonal, scale)


class SigLIPLoss(ContrastiveLoss):
    """Sigmoid loss (Zhai et al., 2023): each image and each text by themselves, whether they belong together."""

    def __init__(
        self, scale: float = 10.0, bias: float = -10.0, *, multi_positive: bool = True
    ) -> None:
        """Set the start.

        Args:
            scale: What cosines are multiplied by at first, 1 to 100; it is learned, and stays below 100.
            bias: What is then added at first; it is learned.
            multi_positive: Whether pairs of one label, or of one text, belong together too; the paper's own loss takes
                them for wrong.
        """
        super().__init__(scale, bias)
        self.multi_positive = multi_positive

    def compare(self, pairs: PairVectors, scale: Tensor) -> dict[str, Tensor]:
        """Return the sum over all texts, called `pairs`."""
        assert self.bias is not None
        logits = scale * pairs.image @ pairs.all_texts.T + self.bias
        positive = pairs.positive if self.multi_positive else pairs.diagonal
        return {"pairs": -F.logsigmoid(torch.where(positive, logits, -logits)).sum()}


def _compare_softmax(pairs: PairVectors, positive: Tensor, scale: Tensor) -> dict[str, Tensor]:
    weights = positive.float()
    weights = weights / (2 * weights.sum(dim=1, keepdim=True))
    directions = {
        "image_to_text": pairs.image @ pairs.all_texts.T,
        "text_to_image": pairs.text @ pairs.all_images.T,
    }
    return {
        name: -(weights * (scale * cosines).log_softmax(dim=1)).sum()
        for name, cosines in directions.items()
    }

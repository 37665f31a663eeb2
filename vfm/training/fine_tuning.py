"""Fine-tuning settings left to `auto`: rates, steps, LP-FT and batch norm that suit the number of training images.

The values come from the section "Fine-tuning on few images" of tests/benchmarks/RESULTS.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from vfm.training.optim import Auto, Optim

NormStats = Literal["keep", "learn", "auto"]
"""What batch norms normalize by in training: the statistics of pretraining, those of each batch, or what suits."""

FEW_IMAGES = 5000
"""Number of training images below which settings suit few images; a data set has as many or more is large."""
MIN_STEPS = 400
"""Least number of optimizer steps on few images."""
_BATCH_NORM_RATE = 3e-4
"""Least peak learning rate of a backbone whose batch norms keep their statistics, which bear more than a
transformer."""


@dataclass(frozen=True)
class Settings:
    """Settings of a training that may be left to `auto`."""

    optim: Optim
    min_steps: int | Auto
    lp_ft: bool | Auto
    norm_stats: NormStats
    freeze_at: int | Auto


@dataclass(frozen=True)
class ResolvedSettings(Settings):
    """Settings without `auto`; the optimizer's have a learning rate too."""

    min_steps: int
    lp_ft: bool
    norm_stats: Literal["keep", "learn"]
    freeze_at: int


class Case(NamedTuple):
    """What settings are chosen by."""

    num_images: int
    """Number of training images."""
    is_pretrained: bool
    """Whether the backbone starts from weights, not at random."""
    has_batch_norm: bool
    """Whether the backbone normalizes by statistics of batches."""
    can_solve_head: bool
    """Whether the head can be solved before the backbone learns."""
    num_fine_stages: int
    """Number of first stages of pretrained weights that see small patches; 0 for a random start."""
    learning_rate: float
    """Peak learning rate that the adaptation is usually trained with."""


def resolve_settings(asked: Settings, case: Case) -> ResolvedSettings:
    """Return settings without `auto`: what the user gave stays, all else follows the case.

    A random start, and a large set, take the plain defaults: one rate for all, batch norms that learn, no floor in
    steps, no head solved first. With a rate of the user's, backbone and head share it.
    """
    optim, lp_ft, norm_stats = asked.optim, asked.lp_ft, asked.norm_stats
    suits_few = case.is_pretrained and case.num_images < FEW_IMAGES
    if lp_ft == "auto":
        lp_ft = suits_few and case.can_solve_head
    if norm_stats == "auto":
        norm_stats = "keep" if suits_few and case.has_batch_norm else "learn"
    splits_rates = suits_few and optim.lr is None
    factor, layer_decay, rate = optim.backbone_factor, optim.layer_decay, optim.lr
    if factor == "auto":
        factor = 0.1 if splits_rates else 1.0
    if layer_decay == "auto":
        layer_decay = 0.75 if splits_rates and not case.has_batch_norm else None
    if rate is None:
        # On many images a tenth of the usual rate keeps the features that the head was solved on (Kumar et al., 2022).
        rate = case.learning_rate * (0.1 if lp_ft and not suits_few else 1.0)
        if suits_few:
            rate = max(rate, _BATCH_NORM_RATE * case.has_batch_norm) / factor
    optim = replace(optim, lr=rate, backbone_factor=factor, layer_decay=layer_decay)
    min_steps = MIN_STEPS * suits_few if asked.min_steps == "auto" else asked.min_steps
    freeze_at = asked.freeze_at
    if freeze_at == "auto":
        freeze_at = case.num_fine_stages if case.num_images < FEW_IMAGES else 0
    return ResolvedSettings(optim, min_steps, lp_ft, norm_stats, freeze_at)


def describe_settings(
    settings: ResolvedSettings, num_images: int, batch_size: int, num_steps: int
) -> str:
    """Return a line that says what a training does, and how to have it otherwise."""
    optim = settings.optim
    assert optim.lr is not None
    assert optim.backbone_factor != "auto"
    decay = f", layer decay {optim.layer_decay:g}" if optim.layer_decay else ""
    return (
        f"{num_images} training images: {num_steps} steps of {batch_size}, learning rate "
        f"{optim.lr * optim.backbone_factor:.2g} for the backbone{decay}, {optim.lr:.2g} for the head"
        f"{', which is solved first' if settings.lp_ft else ''}; statistics of batch norms: {settings.norm_stats} "
        "(--model.optim.lr, .backbone_factor, .layer_decay, --model.lp_ft, --model.norm_stats, --model.min_steps, "
        "--data.batch_size)."
    )

"""Losses of logits against labels, hard or soft, one label an image or several."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F
from vfm_runtime.errors import OptionError

from vfm.losses.base import Loss
from vfm.types import Batch, Labels, MultiLabels, Raw, require_target


class ClassificationLoss(Loss):
    """A loss that each image has on its own, of logits against labels."""

    class_weights: Tensor | None = None
    """How much each class counts in training, float [C], with `MultiLabels` where it applies; the task sets it."""

    @abstractmethod
    def compute(self, logits: Tensor, labels: Labels, weights: Tensor | None) -> Tensor:
        """Return the losses of N images, float [N].

        Args:
            logits: Logits of the images, float32 [N, C].
            labels: One label an image, hard or mixed; or `MultiLabels`.
            weights: How much each class counts, float32 [C]; None for all alike.
        """

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return the sum over the images, called `classes`."""
        return {"classes": self.per_image(raw, batch).sum()}

    def per_image(self, raw: Raw, batch: Batch) -> Tensor:
        """Return the loss of each image, [N]; classes are weighted in training alone."""
        labels = require_target(batch, Labels, self)
        weights = self.class_weights if self.training else None
        return self.compute(raw["logits"].float(), labels, weights)


class CrossEntropy(ClassificationLoss):
    """Softmax cross-entropy, for hard and for soft targets."""

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """Set the smoothing.

        Args:
            label_smoothing: Fraction of the target spread over all labels, 0..1.
        """
        super().__init__()
        self.label_smoothing = _check_range("label_smoothing", label_smoothing, 1)

    def compute(self, logits: Tensor, labels: Labels, weights: Tensor | None) -> Tensor:
        """Return the losses [N]."""
        if isinstance(labels, MultiLabels):
            raise OptionError(
                "CrossEntropy takes one label an image, but the task is multi-label. "
                "Give --model.loss BinaryCrossEntropy, AsymmetricLoss or FocalLoss."
            )
        return F.cross_entropy(
            logits, labels.label, weights, reduction="none", label_smoothing=self.label_smoothing
        )


class BinaryCrossEntropy(ClassificationLoss):
    """A yes or no for each label; the mean over labels."""

    def compute(self, logits: Tensor, labels: Labels, weights: Tensor | None) -> Tensor:
        """Return the losses [N]."""
        target = _require_multilabel(self, labels)
        return F.binary_cross_entropy_with_logits(
            logits, target, pos_weight=weights, reduction="none"
        ).mean(dim=-1)


class FocalLoss(ClassificationLoss):
    """Cross-entropy that easy images hardly add to (Lin et al., 2017): softmax, or a sigmoid for each label."""

    def __init__(self, gamma: float = 2.0) -> None:
        """Set the focus.

        Args:
            gamma: How much less easy answers count; 0 is plain cross-entropy.
        """
        super().__init__()
        self.gamma = _check_range("gamma", gamma, 10)

    def compute(self, logits: Tensor, labels: Labels, weights: Tensor | None) -> Tensor:
        """Return the losses [N]; of `MultiLabels` the mean over labels."""
        if isinstance(labels, MultiLabels):
            yes = _compute_focal(F.logsigmoid(logits), self.gamma, weights)
            no = _compute_focal(F.logsigmoid(-logits), self.gamma)
            return (labels.label * yes + (1 - labels.label) * no).mean(dim=-1)
        shares = encode_one_hot(labels.label, logits.shape[-1])
        terms = _compute_focal(logits.log_softmax(dim=-1), self.gamma, weights)
        return (shares * terms).sum(dim=-1)


class AsymmetricLoss(ClassificationLoss):
    """For many labels of which few apply: easy negatives hardly count (Ridnik et al., 2021)."""

    def __init__(
        self, gamma_negative: float = 4.0, gamma_positive: float = 1.0, margin: float = 0.05
    ) -> None:
        """Set the focus.

        Args:
            gamma_negative: How much less easy negatives count.
            gamma_positive: How much less easy positives count.
            margin: Probability below which a negative does not count at all, 0..1.
        """
        super().__init__()
        self.gamma_negative = _check_range("gamma_negative", gamma_negative, 10)
        self.gamma_positive = _check_range("gamma_positive", gamma_positive, 10)
        self.margin = _check_range("margin", margin, 1)

    def compute(self, logits: Tensor, labels: Labels, weights: Tensor | None) -> Tensor:
        """Return the losses [N], the mean over labels."""
        target = _require_multilabel(self, labels)
        yes = _compute_focal(F.logsigmoid(logits), self.gamma_positive, weights)
        shifted = (logits.sigmoid() - self.margin).clamp(min=0)
        no = -shifted.pow(self.gamma_negative) * torch.log1p(-shifted.clamp(max=1 - 1e-7))
        return (target * yes + (1 - target) * no).mean(dim=-1)


def encode_one_hot(target: Tensor, num_labels: int) -> Tensor:
    """Return targets as float [N, C], from classes [N] or such targets."""
    return F.one_hot(target, num_labels).float() if target.ndim == 1 else target


def _compute_focal(log_probability: Tensor, gamma: float, weights: Tensor | None = None) -> Tensor:
    terms = -log_probability
    if gamma != 0:
        # 1 - p by expm1: near p = 1 the difference would be lost, and its power has no gradient at 0.
        terms = terms * (-torch.expm1(log_probability.clamp(max=-1e-7))).pow(gamma)
    return terms if weights is None else terms * weights


def _require_multilabel(loss: Loss, labels: Labels) -> Tensor:
    if not isinstance(labels, MultiLabels):
        raise OptionError(
            f"{type(loss).__name__} answers yes or no for each label, but the task has one label an image. "
            "Give --model.loss CrossEntropy or FocalLoss, or set --model.multilabel true."
        )
    return labels.label


def _check_range(name: str, value: float, most: float) -> float:
    if not 0 <= value <= most:
        raise OptionError(f"{name} is {value}. Give a number from 0 to {most}.")
    return value

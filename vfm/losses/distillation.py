"""Losses of distillation: a student's features, logits or relations against a teacher's."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vfm_runtime.errors import OptionError

from vfm.losses.base import Loss
from vfm.types import Batch, FeatureInfo, Raw

_WINDOW = 1000
"""Batches over which statistics of a teacher's outputs are averaged."""


class DistillationLoss(Loss):
    """A loss that each image has on its own, of a student's outputs against a teacher's.

    Raw outputs are the student's `embedding`, [N, D], and `tokens`, [N, T, D'], and those of the teacher that `uses`
    names, after `teacher_`: `teacher_embedding`, [N, E]; `teacher_tokens`, [N, T', E']; `teacher_logits`, [N, C].
    """

    uses: tuple[str, ...] = ("embedding",)
    """Outputs of the teacher that are compared: embedding, tokens, logits."""

    @abstractmethod
    def prepare(self, info: FeatureInfo, widths: Mapping[str, int]) -> None:
        """Make the layers between student and teacher.

        Args:
            info: Sizes of the student's features.
            widths: Width of each output of the teacher that is used.
        """

    @abstractmethod
    def compute(self, raw: Raw) -> dict[str, Tensor]:
        """Return the losses of N images by name, float [N]."""

    def forward(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return the sums over the images."""
        return {name: values.sum() for name, values in self.compute(raw).items()}

    def per_image(self, raw: Raw, batch: Batch) -> Tensor:
        """Return the loss of each image, [N]."""
        return torch.stack([*self.compute(raw).values()]).sum(0)


class FeatureDistillation(DistillationLoss):
    """1 less the cosine of the student's features, projected, and the teacher's; also patch by patch."""

    def __init__(self, tokens: float = 0.0, standardize: bool = True) -> None:
        """Set what is compared.

        Args:
            tokens: Weight of the patch tokens beside the vector of the image, 0..100; needs a teacher that gives them.
            standardize: Bring each dimension of the teacher's features to mean 0 and deviation 1 first, so that what
                all images share does not hide what tells them apart.

        Raises:
            OptionError: The weight lies outside its range.
        """
        super().__init__()
        if not 0 <= tokens <= 100:
            raise OptionError(
                f"tokens is {tokens}. Give a number from 0 to 100 (--model.loss.tokens)."
            )
        self.tokens = tokens
        self.standardize = standardize
        self.uses = ("embedding", "tokens") if tokens else ("embedding",)

    def prepare(self, info: FeatureInfo, widths: Mapping[str, int]) -> None:
        """Make a linear projector, and the statistics, of each output."""
        sizes = {"embedding": info.width, "tokens": info.token_width}
        self.projectors = nn.ModuleDict(
            {name: nn.Linear(sizes[name], widths[name]) for name in self.uses}
        )
        self.statistics = nn.ModuleDict({name: Standardize(widths[name]) for name in self.uses})

    def compute(self, raw: Raw) -> dict[str, Tensor]:
        """Return `features`, and with a weight of them `tokens`."""
        losses = {
            "features": self._compare(raw["embedding"], raw["teacher_embedding"], "embedding")
        }
        if self.tokens:
            student = raw["tokens"]
            teacher = resample_tokens(raw["teacher_tokens"], student.shape[1])
            losses["tokens"] = self.tokens * self._compare(student, teacher, "tokens").mean(1)
        return losses

    def _compare(self, student: Tensor, teacher: Tensor, name: str) -> Tensor:
        """Return 1 less the cosine, [...], of features [..., D] with features [..., E]."""
        teacher = teacher.float()
        if self.standardize:
            teacher = self.statistics[name](teacher)
        projected = self.projectors[name](student).float()
        return 1 - F.cosine_similarity(projected, teacher, dim=-1)


class LogitDistillation(DistillationLoss):
    """Kullback-Leibler divergence from the teacher's class probabilities, both softened (Hinton et al., 2015)."""

    uses = ("logits",)

    def __init__(self, temperature: float = 4.0) -> None:
        """Set how much probabilities are softened.

        Args:
            temperature: Divisor of all logits, 0.01..100; the loss is multiplied by its square.

        Raises:
            OptionError: It lies outside its range.
        """
        super().__init__()
        self.temperature = _check_temperature(temperature, 100)

    def prepare(self, info: FeatureInfo, widths: Mapping[str, int]) -> None:
        """Make the student's classifier, which only training needs."""
        self.classifier = nn.Linear(info.width, widths["logits"])

    def compute(self, raw: Raw) -> dict[str, Tensor]:
        """Return `logits`."""
        student = self.classifier(raw["embedding"]).float() / self.temperature
        teacher = raw["teacher_logits"].float() / self.temperature
        divergence = F.kl_div(
            student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True
        ).sum(-1)
        return {"logits": self.temperature**2 * divergence}


class RelationDistillation(DistillationLoss):
    """Cross-entropy of the similarities to a queue of earlier images, the student's against the teacher's.

    So a student learns who is whose neighbor (Fang et al., 2021, SEED), not the teacher's coordinates.
    """

    queue: Tensor
    """Standardized embeddings by the teacher of the last images, of norm 1, float32 [Q, E]."""
    count: Tensor
    """Images that were put into the queue, int64 []."""

    def __init__(self, queue_size: int = 4096, temperature: float = 0.07) -> None:
        """Set the queue.

        Args:
            queue_size: Earlier images that each image is compared with, 2 or more.
            temperature: Divisor of the similarities; with 0.07 the nearest images count most.

        Raises:
            OptionError: An option lies outside its range.
        """
        super().__init__()
        if queue_size < 2:
            raise OptionError(
                f"queue_size is {queue_size}. Give 2 or more images (--model.loss.queue_size 4096)."
            )
        self.queue_size = queue_size
        self.temperature = _check_temperature(temperature, 10)

    def prepare(self, info: FeatureInfo, widths: Mapping[str, int]) -> None:
        """Make the projector and the queue, of random directions at first."""
        width = widths["embedding"]
        self.projector = nn.Linear(info.width, width)
        self.statistics = Standardize(width)
        self.register_buffer("queue", F.normalize(torch.randn(self.queue_size, width), dim=-1))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def compute(self, raw: Raw) -> dict[str, Tensor]:
        """Return `relations`; in training, the teacher's embeddings then take the place of the oldest."""
        teacher = F.normalize(self.statistics(raw["teacher_embedding"].float()), dim=-1)
        student = F.normalize(self.projector(raw["embedding"]).float(), dim=-1)
        # A copy: the backward pass needs it as it was.
        queue = self.queue.clone()
        target = (teacher @ queue.T / self.temperature).softmax(-1)
        guess = (student @ queue.T / self.temperature).log_softmax(-1)
        if self.training:
            rows = (self.count + torch.arange(len(teacher), device=queue.device)) % len(queue)
            self.queue[rows] = teacher.detach()
            self.count += len(teacher)
        return {"relations": -(target * guess).sum(-1)}


class Standardize(nn.Module):
    """Brings each dimension to mean 0 and deviation 1, by averages over the batches of training."""

    mean: Tensor
    square: Tensor
    count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("square", torch.ones(width))
        self.register_buffer("count", torch.zeros(()))

    @torch.no_grad()
    def forward(self, values: Tensor) -> Tensor:
        """Return values [..., D], standardized; in training they count for the averages first."""
        if self.training:
            rows = values.flatten(0, -2)
            self.count += 1
            fraction = 1 / self.count.clamp(max=_WINDOW)
            self.mean.lerp_(rows.mean(0), fraction)
            self.square.lerp_(rows.square().mean(0), fraction)
        deviation = (self.square - self.mean.square()).clamp(min=1e-8).sqrt()
        return (values - self.mean) / deviation


def resample_tokens(tokens: Tensor, count: int) -> Tensor:
    """Return tokens [N, T, D] of a square grid as `count` tokens of another, by bilinear interpolation.

    Raises:
        OptionError: A grid is not square.
    """
    if tokens.shape[1] == count:
        return tokens
    old, new = isqrt(tokens.shape[1]), isqrt(count)
    if old**2 != tokens.shape[1] or new**2 != count:
        raise OptionError(
            f"The teacher gives {tokens.shape[1]} patch tokens and the student {count}, and grids that are not square "
            "cannot be matched. Give both square images (--model.image_size), or --model.loss.tokens 0."
        )
    maps = tokens.transpose(1, 2).reshape(len(tokens), -1, old, old)
    maps = F.interpolate(maps.float(), size=(new, new), mode="bilinear", antialias=True)
    return maps.flatten(2).transpose(1, 2)


def _check_temperature(value: float, most: float) -> float:
    if not 0.01 <= value <= most:
        raise OptionError(
            f"temperature is {value}. Give a number from 0.01 to {most} (--model.loss.temperature)."
        )
    return value

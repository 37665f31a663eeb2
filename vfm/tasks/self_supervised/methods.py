"""Self-supervised methods on several views of each image, by the losses of lightly: VISReg, LeJEPA, SwAV, DINO."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from vfm_runtime.errors import MissingPackageError, OptionError

from vfm.models.backbone import Backbone
from vfm.spec import Component


class SelfSupervisedMethod(Component, nn.Module, ABC):
    """What a self-supervised training lowers, and the layers that only it needs."""

    @abstractmethod
    def prepare(self, backbone: Backbone) -> None:
        """Make the layers for a backbone, which may be copied."""

    @abstractmethod
    def compute(self, large: Tensor, small: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return means over a batch, by name.

        Args:
            large: Embeddings of the global views, [Vg, N, D].
            small: Embeddings of the local views, [Vl, N, D]; there may be none.
            images: The global views themselves, [Vg * N, 3, H, W].
        """

    def update(self, backbone: Backbone) -> None:
        """Follow the backbone after a step; a method with a teacher does."""


class VISReg(SelfSupervisedMethod):
    """VISReg (Wu et al., 2026): views agree, and embeddings keep center, scale and shape of a Gaussian."""

    loss_name = "VISRegLoss"

    def __init__(
        self,
        regularization: float = 0.6,
        num_slices: int = 1024,
        hidden_width: int = 512,
        output_width: int = 64,
    ) -> None:
        """Set the weights.

        Args:
            regularization: Weight of the Gaussian against that of agreement, 0..1; the authors give 0.6 for small sets
                and 0.9 for ImageNet.
            num_slices: Random directions that the shape is looked at in, for each step.
            hidden_width: Width of the hidden layers of the projector.
            output_width: Width of the projections that are compared.

        Raises:
            OptionError: An option lies outside its range.
        """
        super().__init__()
        self._options = {"lambda_param": regularization, "num_slices": num_slices}
        self._agreement = 1 - regularization
        self._widths = hidden_width, output_width
        require_range("regularization", regularization, "0 to 1", 0 <= regularization <= 1)
        require_range("num_slices", num_slices, "1 or more", num_slices >= 1)
        require_range("hidden_width", hidden_width, "1 or more", hidden_width >= 1)
        require_range("output_width", output_width, "1 or more", output_width >= 1)

    def prepare(self, backbone: Backbone) -> None:
        """Make projector and loss."""
        self.projector = build_projector(backbone.info.width, *self._widths)
        self.loss = getattr(load_lightly(), self.loss_name)(**self._options)

    def compute(self, large: Tensor, small: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return the loss of the projections."""
        views = torch.cat([large, small])
        projected = self.projector(views.flatten(0, 1)).float().unflatten(0, views.shape[:2])
        first, rest = projected[: len(large)], projected[len(large) :]
        if large.shape[1] == 1:
            # One image has no distribution; that its views agree is all that can be asked.
            return {self.loss_name: self._agreement * (projected - first.mean(0)).square().mean()}
        return {self.loss_name: self.loss(local_proj=rest, global_proj=first)}


class LeJEPA(VISReg):
    """LeJEPA (Balestriero and LeCun, 2025): views agree, and embeddings follow a Gaussian in random directions."""

    loss_name = "LeJEPALoss"

    def __init__(
        self,
        regularization: float = 0.05,
        num_slices: int = 1024,
        hidden_width: int = 512,
        output_width: int = 64,
    ) -> None:
        """Set the weights.

        Args:
            regularization: Weight of the Gaussian against that of agreement, 0..1; the authors give 0.05.
            num_slices: Random directions that the Gaussian is tested in, for each step.
            hidden_width: Width of the hidden layers of the projector.
            output_width: Width of the projections that are compared.

        Raises:
            OptionError: An option lies outside its range.
        """
        super().__init__(regularization, num_slices, hidden_width, output_width)
        self._options = {"lambda_param": regularization, "sigreg_num_vectors": num_slices}

    def compute(self, large: Tensor, small: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return the loss of the projections.

        Raises:
            OptionError: There are no small views, which lightly's loss asks for.
        """
        if not len(small) and large.shape[1] > 1:
            raise OptionError(
                "LeJEPA takes small views, and num_local is 0. Give 1 or more (--model.views.num_local, in vfm "
                "pretrain --views.num_local), or take VISReg."
            )
        return super().compute(large, small, images)


class SwAV(SelfSupervisedMethod):
    """SwAV (Caron et al., 2020): the cluster of one view is told from the others; clusters are of equal size."""

    def __init__(
        self, num_prototypes: int = 256, hidden_width: int = 512, output_width: int = 64
    ) -> None:
        """Set the clusters.

        Args:
            num_prototypes: Number of clusters, a few times that of the kinds of things in the images.
            hidden_width: Width of the hidden layers of the projector.
            output_width: Width of the projections that are clustered.

        Raises:
            OptionError: An option lies outside its range.
        """
        super().__init__()
        self._widths = hidden_width, output_width
        self.num_prototypes = num_prototypes
        require_range("num_prototypes", num_prototypes, "2 or more", num_prototypes >= 2)
        require_range("hidden_width", hidden_width, "1 or more", hidden_width >= 1)
        require_range("output_width", output_width, "1 or more", output_width >= 1)

    def prepare(self, backbone: Backbone) -> None:
        """Make projector, prototypes and loss."""
        self.projector = build_projector(backbone.info.width, *self._widths)
        self.prototypes = nn.Linear(self._widths[1], self.num_prototypes, bias=False)
        self.loss = load_lightly().SwaVLoss()

    def compute(self, large: Tensor, small: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return the loss of the similarities of projections and prototypes."""
        views = torch.cat([large, small])
        projected = F.normalize(self.projector(views.flatten(0, 1)).float(), dim=-1)
        directions = F.normalize(self.prototypes.weight.float(), dim=-1)
        scores = [*(projected @ directions.T).reshape(*views.shape[:2], -1)]
        return {"SwAVLoss": self.loss(scores[: len(large)], scores[len(large) :]).squeeze()}


class DINO(SelfSupervisedMethod):
    """DINO (Caron et al., 2021): the student tells from any view what its average of earlier steps says of large ones.

    The average, backbone and projector, is in the checkpoint among the parts of training.
    """

    def __init__(
        self,
        output_width: int = 4096,
        hidden_width: int = 512,
        momentum: float = 0.99,
        teacher_temperature: float = 0.04,
    ) -> None:
        """Set the teacher.

        Args:
            output_width: Number of outputs that are compared, as classes that nobody named.
            hidden_width: Width of the hidden layers of the projector.
            momentum: Fraction of the teacher that a step keeps, 0..1; 0.996 and more for long trainings.
            teacher_temperature: Divisor of the teacher's outputs, above 0; smaller is sharper.

        Raises:
            OptionError: An option lies outside its range.
        """
        super().__init__()
        self._widths = hidden_width, output_width
        self.momentum = momentum
        self._temperature = teacher_temperature
        require_range("output_width", output_width, "2 or more", output_width >= 2)
        require_range("hidden_width", hidden_width, "1 or more", hidden_width >= 1)
        require_range("momentum", momentum, "0 to below 1", 0 <= momentum < 1)
        is_fit = 0 < teacher_temperature <= 1
        require_range("teacher_temperature", teacher_temperature, "above 0, up to 1", is_fit)

    def prepare(self, backbone: Backbone) -> None:
        """Make projector, teacher and loss."""
        hidden, outputs = self._widths
        self.projector = nn.Sequential(
            build_projector(backbone.info.width, hidden, 64, normalize=True),
            nn.utils.parametrizations.weight_norm(nn.Linear(64, outputs, bias=False)),
        )
        self.teacher = nn.ModuleDict(
            {"backbone": copy.deepcopy(backbone), "projector": copy.deepcopy(self.projector)}
        ).requires_grad_(False)
        self.loss = load_lightly().DINOLoss(
            outputs, teacher_temp=self._temperature, warmup_teacher_temp=self._temperature
        )

    def compute(self, large: Tensor, small: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy of the student's outputs and the teacher's."""
        views = torch.cat([large, small])
        student = [*self.projector(views.flatten(0, 1)).float().unflatten(0, views.shape[:2])]
        with torch.no_grad():
            self.teacher.eval()
            pooled = self.teacher["backbone"](images).pooled
            teacher = self.teacher["projector"](pooled).float().reshape(*large.shape[:2], -1)
        center = self.loss.center.clone()
        loss = self.loss([*teacher], student)
        if not self.training:
            self.loss.center.copy_(center)  # validation must not move it
        return {"DINOLoss": loss}

    @torch.no_grad()
    def update(self, backbone: Backbone) -> None:
        """Move the teacher a little towards the student."""
        for part, student in (("backbone", backbone), ("projector", self.projector)):
            averaged = self.teacher[part].state_dict()
            for name, value in student.state_dict().items():
                if value.is_floating_point():
                    averaged[name].lerp_(value.to(averaged[name].dtype), 1 - self.momentum)
                else:
                    averaged[name].copy_(value)


def build_projector(
    width: int, hidden: int, outputs: int, *, normalize: bool = False
) -> nn.Sequential:
    """Return the three layers that a self-supervised loss looks through, with batch norms.

    Args:
        width: Width of the embeddings.
        hidden: Width of the layers between.
        outputs: Width of the projections.
        normalize: Whether projections are divided by their L2 norm.
    """
    layers: list[nn.Module] = []
    for size in (width, hidden):
        layers += [nn.Linear(size, hidden), nn.BatchNorm1d(hidden), nn.GELU()]
    layers.append(nn.Linear(hidden, outputs))
    return nn.Sequential(*layers, *([UnitNorm()] if normalize else []))


class UnitNorm(nn.Module):
    """Divides vectors by their L2 norm."""

    def forward(self, values: Tensor) -> Tensor:
        """Return the vectors [N, D], of norm 1."""
        return F.normalize(values, dim=-1)


def load_lightly() -> Any:
    """Return lightly's module of losses; its import reads files of the package alone.

    Raises:
        MissingPackageError: It is not installed.
    """
    try:
        return import_module("lightly.loss")
    except ImportError as error:
        raise MissingPackageError(
            "Self-supervised losses are those of lightly, which is not installed: pip install 'vfm[ssl]'."
        ) from error


def require_range(name: str, value: float, expected: str, is_within: bool) -> None:
    """Refuse an option of a method that is not within its range.

    Raises:
        OptionError: It is not.
    """
    if not is_within:
        raise OptionError(f"{name} is {value}. Give {expected} (--model.method.{name}).")

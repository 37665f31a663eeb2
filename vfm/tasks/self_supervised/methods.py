"""Self-supervised methods on views of each image: VISReg, LeJEPA, SwAV and DINO by the losses of lightly, and MAE."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from typing import Any

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from vfm_runtime.errors import MissingPackageError, OptionError

from vfm.data.multi_crop import Views, draw_uniform
from vfm.models.backbone import Backbone
from vfm.spec import Component


class EmbeddedViews:
    """Views of N images and their embeddings, which are computed where a method asks for them."""

    def __init__(
        self, images: Views, keys: Sequence[Sequence[int]], embed: Callable[[Tensor], Tensor]
    ) -> None:
        """Take the views.

        Args:
            images: Views of the images.
            keys: For each of the N images numbers that what is drawn of its views hangs on.
            embed: Gives the embeddings, [n, D], of normalized images, float [n, 3, H, W].
        """
        self.images = images
        self.count = len(keys)
        self.keys = keys
        self._embed = embed

    @cached_property
    def large(self) -> Tensor:
        """Embeddings of the global views, [Vg, N, D]."""
        return self.divide(self._embed(self.images.large))

    @cached_property
    def small(self) -> Tensor:
        """Embeddings of the local views, [Vl, N, D]; there may be none."""
        if self.images.small is None:
            return self.large[:0]
        return self.divide(self._embed(self.images.small))

    @property
    def all(self) -> Tensor:
        """Embeddings of all views, the global ones first, [Vg + Vl, N, D]."""
        return torch.cat([self.large, self.small])

    def divide(self, values: Tensor) -> Tensor:
        """Return values of views, [V * N, D], as [V, N, D]."""
        return values.reshape(-1, self.count, values.shape[-1])


class SelfSupervisedMethod(Component, nn.Module, ABC):
    """What a self-supervised training lowers, and the layers that only it needs."""

    @abstractmethod
    def prepare(self, backbone: Backbone) -> None:
        """Make the layers for a backbone, which may be copied."""

    @abstractmethod
    def compute(self, views: EmbeddedViews, backbone: Backbone) -> dict[str, Tensor]:
        """Return means over a batch, by name."""

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

    def compute(self, views: EmbeddedViews, backbone: Backbone) -> dict[str, Tensor]:
        """Return the loss of the projections."""
        projected = views.divide(self.projector(views.all.flatten(0, 1)).float())
        first, rest = projected[: len(views.large)], projected[len(views.large) :]
        if views.count == 1:
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

    def compute(self, views: EmbeddedViews, backbone: Backbone) -> dict[str, Tensor]:
        """Return the loss of the projections.

        Raises:
            OptionError: There are no small views, which lightly's loss asks for.
        """
        if views.images.small is None and views.count > 1:
            raise OptionError(
                "LeJEPA takes small views, and num_local is 0. Give 1 or more (--model.views.num_local, in vfm "
                "pretrain --views.num_local), or take VISReg."
            )
        return super().compute(views, backbone)


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

    def compute(self, views: EmbeddedViews, backbone: Backbone) -> dict[str, Tensor]:
        """Return the loss of the similarities of projections and prototypes."""
        projected = F.normalize(self.projector(views.all.flatten(0, 1)).float(), dim=-1)
        directions = F.normalize(self.prototypes.weight.float(), dim=-1)
        scores = [*views.divide(projected @ directions.T)]
        number = len(views.large)
        return {"SwAVLoss": self.loss(scores[:number], scores[number:]).squeeze()}


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
        self.loss = _make_dino_loss(outputs, self._temperature)

    def compute(self, views: EmbeddedViews, backbone: Backbone) -> dict[str, Tensor]:
        """Return the cross-entropy of the student's outputs and the teacher's."""
        student = [*views.divide(self.projector(views.all.flatten(0, 1)).float())]
        with torch.no_grad():
            self.teacher.eval()
            pooled = self.teacher["backbone"](views.images.large).pooled
            teacher = views.divide(self.teacher["projector"](pooled).float())
        return {"DINOLoss": self.loss([*teacher], student)}

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


class MAE(SelfSupervisedMethod):
    """MAE (He et al., 2022): pixels of hidden patches are told from the patches that are seen.

    Nothing is assumed of what leaves an image the same, so that it suits images of any kind. For plain ViTs, which need
    to run on the seen patches alone. Small views are not looked at.
    """

    positions: Tensor

    def __init__(
        self,
        mask_ratio: float = 0.75,
        decoder_width: int = 128,
        decoder_depth: int = 2,
        decoder_heads: int = 4,
    ) -> None:
        """Set the decoder.

        Args:
            mask_ratio: Fraction of the patches that is hidden; the authors give 0.75.
            decoder_width: Width of the decoder, a multiple of 4 and of decoder_heads; the authors give 512.
            decoder_depth: Number of its blocks; the authors give 8.
            decoder_heads: Number of heads of its attention.

        Raises:
            OptionError: An option lies outside its range.
        """
        super().__init__()
        self.mask_ratio = mask_ratio
        self._decoder = decoder_width, decoder_depth, decoder_heads
        require_range("mask_ratio", mask_ratio, "above 0, below 1", 0 < mask_ratio < 1)
        require_range("decoder_depth", decoder_depth, "1 or more", decoder_depth >= 1)
        require_range("decoder_heads", decoder_heads, "1 or more", decoder_heads >= 1)
        is_fit = decoder_width > 0 and decoder_width % 4 == 0 == decoder_width % decoder_heads
        expected = f"a multiple of 4 and of decoder_heads ({decoder_heads})"
        require_range("decoder_width", decoder_width, expected, is_fit)

    def prepare(self, backbone: Backbone) -> None:
        """Make the decoder.

        Raises:
            OptionError: The backbone is no plain ViT with positions that are added.
        """
        vit = backbone.model
        if not isinstance(vit, VisionTransformer) or vit.pos_embed is None:
            raise OptionError(
                f"MAE hides patches of a plain ViT whose positions are added, and '{backbone.name}' is "
                f"{type(vit).__name__}. Take such a ViT, such as vit_small_patch16_224, or another --model.method."
            )
        width, depth, heads = self._decoder
        (side, _), grid = vit.patch_embed.patch_size, vit.patch_embed.grid_size
        self.embed = nn.Linear(vit.embed_dim, width)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        # Fixed, as the authors have them; the order of timm's patches.
        positions = build_sincos2d_pos_embed(list(grid), dim=width, interleave_sin_cos=True)
        self.register_buffer("positions", positions[None])
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.pixels = nn.Linear(width, 3 * side * side)

    def compute(self, views: EmbeddedViews, backbone: Backbone) -> dict[str, Tensor]:
        """Return the mean squared error of the hidden patches, each of mean 0 and variance 1."""
        vit, images = backbone.model, views.images.large
        tokens = vit._pos_embed(vit.patch_embed(images))
        prefix, patches = tokens.split([vit.num_prefix_tokens, len(self.positions[0])], dim=1)
        seen = self._choose_patches(len(images) // views.count, views.keys).to(images.device)[
            ..., None
        ]
        encoded = torch.cat([prefix, patches.gather(1, seen.expand(-1, -1, patches.shape[2]))], 1)
        encoded = vit.norm_pre(encoded)
        if vit.grad_checkpointing and self.training:
            encoded = checkpoint_seq(vit.blocks, encoded)
        else:
            encoded = vit.blocks(encoded)
        encoded = vit.norm(encoded)
        first, rest = self.embed(encoded).split([prefix.shape[1], seen.shape[1]], dim=1)
        index = seen.expand(-1, -1, rest.shape[2])
        drawn = self.mask_token.to(rest.dtype).expand(len(images), patches.shape[1], -1)
        decoded = torch.cat([first, drawn.scatter(1, index, rest) + self.positions], dim=1)
        told = self.pixels(self.norm(self.blocks(decoded)))[:, prefix.shape[1] :].float()
        target = F.pixel_unshuffle(images, vit.patch_embed.patch_size[0]).flatten(2).transpose(1, 2)
        target = F.layer_norm(target.float(), target.shape[2:], eps=1e-6)
        hidden = torch.ones(told.shape[:2], device=told.device).scatter(1, seen[..., 0], 0.0)
        loss = ((told - target).square().mean(2) * hidden).sum() / hidden.sum()
        # Of every weight a gradient, if only 0, for which processes wait: pooling takes part in no pixel.
        return {"MAELoss": loss + 0.0 * vit.forward_head(encoded, pre_logits=True).float().sum()}

    def _choose_patches(self, num_views: int, keys: Sequence[Sequence[int]]) -> Tensor:
        """Draw the patches that are seen, int64 [V * N, n], at least one of each view and never all."""
        total = len(self.positions[0])
        number = min(max(1, round(total * (1 - self.mask_ratio))), total - 1)
        draws = draw_uniform((num_views, total), [(*key, 1) for key in keys])
        return draws.transpose(0, 1).flatten(0, 1).argsort(dim=1)[:, :number]


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


def _make_dino_loss(num_outputs: int, temperature: float) -> nn.Module:
    """Return lightly's loss, whose center moves in training alone."""

    class CenteredLoss(load_lightly().DINOLoss):  # type: ignore[misc]
        def update_center(self, teacher_out: Tensor) -> None:
            # It waits for the other ranks, and these may have no such batch in a validation.
            if self.training:
                super().update_center(teacher_out)

    return CenteredLoss(num_outputs, teacher_temp=temperature, warmup_teacher_temp=temperature)


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

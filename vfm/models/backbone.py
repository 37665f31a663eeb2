"""Any timm backbone behind one contract: uint8 pixels' normalised tensor in, `Features` out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, Self

import timm
import torch
from timm import data as timm_data
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn
from vfm_runtime.errors import VfmError, suggest

from vfm.models.activations import find_mismatch
from vfm.models.adaptation import Adaptation
from vfm.models.tensors import compute_checksum
from vfm.models.weights import MIN_COVERAGE, LoadReport, WeightsError, load_weights
from vfm.preprocess import Fit, Preprocess
from vfm.types import FeatureInfo, Features

_SOURCES = ("hf-hub:", "local-dir:")
_NUM_PLAIN, _NUM_STAGES = 4, 3
_FINE_STRIDE = 4
_MAPS = {"maps", "map_means"}
"""Fields of `Features` that come from several maps."""

ImageSize = int | tuple[int, int]
"""Side of a square, or height and width, in pixels."""


class BackboneError(VfmError, ValueError):
    """No such backbone, or it does not take the given arguments."""


class Backbone(nn.Module):
    """A timm model without its classifier.

    Attributes:
        model: The timm model; its `group_matcher`, `set_grad_checkpointing` and `pretrained_cfg` stay in reach.
        info: Sizes of the features.
        preprocess: What its images must go through, from timm's configuration of the model.
        report: What a load of weights did; None for a random start.
        keeps_norm_stats: Whether batch norms normalize by the statistics of pretraining in training too, which small
            batches and few images would spoil; their scale and shift may learn all the same.
    """

    def __init__(
        self,
        name: str,
        *,
        pretrained: bool = True,
        weights: str | None = None,
        min_coverage: float = MIN_COVERAGE,
        image_size: ImageSize | None = None,
        fit: Fit | None = None,
        drop_path: float = 0.0,
        grad_checkpointing: bool = False,
        arguments: dict[str, Any] | None = None,
    ) -> None:
        """Make the model and load its weights; the options are a task's, `arguments` its `backbone_args`.

        Raises:
            BackboneError: timm has no such model, or it does not take an argument.
            WeightsError: The weights cannot be had or do not fit.
        """
        super().__init__()
        _check_name(name)
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        config = None if name.startswith(_SOURCES) else timm.get_pretrained_cfg(name)
        extra = dict(arguments or {})
        if drop_path:
            extra["drop_path_rate"] = drop_path
        # Position embeddings and windows are made for a size.
        if size is not None and config is not None and config.fixed_input_size:
            extra["img_size"] = image_size
        self.name = name
        self.model = _make_model(name, False, extra)
        self.report: LoadReport | None = None
        if pretrained and weights is None:
            self.model, self.report = _fetch(name, extra, compute_checksum(self.model.state_dict()))
        # A model that was made in its own size is told another; convolutional ones take any.
        if size is not None and name.startswith(_SOURCES) and hasattr(self.model, "set_input_size"):
            self.model.set_input_size(size)
        if weights is not None:
            self.report = load_weights(self.model, weights, min_coverage=min_coverage)
        if grad_checkpointing:
            _enable_checkpointing(self.model, name)
        self._pools = True
        self._reads_class_token = False
        self.keeps_norm_stats = False
        self._frozen_by_stage: list[nn.Parameter] = []
        self.select_outputs(("pooled", "tokens"))
        data_config = timm_data.resolve_model_data_config(self.model)
        self.preprocess = Preprocess.from_timm(data_config, size=size, fit=fit)

    @property
    def license(self) -> str | None:
        """Licence of the weights as timm or the file states it; None when there are none or it is not known."""
        if self.report is None:
            return None
        # A file of the user's own need not hold the weights that timm would take for a name without a tag.
        of_timm = self.report.fetched or "." in self.name
        license = self.model.pretrained_cfg.get("license") if of_timm else self.report.license
        return str(license) if license else None

    @property
    def warning(self) -> str | None:
        """What to say of weights that were trained with another activation than the model has; None for nothing."""
        return None if self.report is None else find_mismatch(self.model, self.name, self.report)

    def select_outputs(self, uses: Sequence[str]) -> None:
        """Compute what a head reads, and no more: weights that nothing reads would stop training on several GPUs.

        Args:
            uses: Fields of `Features`. With `maps` or `map_means` there are four evenly spaced maps of a plain ViT, the
                last three strides of a pyramid; otherwise the last one alone.
        """
        levels = self.model.feature_info
        strides = [int(level["reduction"]) for level in levels]
        self._indices = _choose_maps(strides) if _MAPS & set(uses) else [len(strides) - 1]
        self._averages_maps = "map_means" in uses
        self._reads_class_token = "class_token" in uses
        if self._reads_class_token and getattr(self.model, "cls_token", None) is None:
            raise BackboneError(
                f"'{self.name}' has no class token to read. Choices: pooled, patches, layers."
            )
        if "pooled" not in uses:
            self._pools = False
            self.model.prune_intermediate_layers(self._indices, prune_norm=False, prune_head=True)
        self.info = FeatureInfo(
            width=int(getattr(self.model, "head_hidden_size", self.model.num_features)),
            token_width=int(levels[-1]["num_chs"]),
            map_widths=tuple(int(levels[i]["num_chs"]) for i in self._indices),
            map_strides=tuple(strides[i] for i in self._indices),
        )

    def adapt(self, adaptation: Adaptation) -> None:
        """Choose the weights that learn.

        Raises:
            AdaptError: The model has no layers for the adaptation, or an option does not fit it.
        """
        adaptation.apply(self.model)
        self.train(self.training)  # what stays as it is now goes to evaluation mode

    def freeze_stages(self, count: int) -> None:
        """Keep the first stages as they are: no backward pass goes through them, and they stay in evaluation mode.

        Those of an earlier call learn again.

        Args:
            count: Number of stages, the stem among them, as timm groups the layers of the model.

        Raises:
            BackboneError: The model has fewer.
        """
        stages = self._list_stages() if count else []
        if count > len(stages):
            raise BackboneError(
                f"freeze_at is {count}, but '{self.name}' has {len(stages)} stages with its stem. Give 0 to "
                f"{len(stages)} (--model.freeze_at)."
            )
        for parameter in self._frozen_by_stage:
            parameter.requires_grad_(True)
        parameters = dict(self.model.named_parameters())
        of_stages = [parameters[name] for name in chain.from_iterable(stages[:count])]
        self._frozen_by_stage = [p for p in of_stages if p.requires_grad]
        for parameter in self._frozen_by_stage:
            parameter.requires_grad_(False)
        self.train(self.training)

    def count_fine_stages(self) -> int:
        """Return the number of stages, with the stem, down to a stride of 4 pixels; 0 for a plain transformer."""
        fine = [
            level["module"]
            for level in self.model.feature_info
            if level["reduction"] <= _FINE_STRIDE
        ]
        stages = self._list_stages() if fine else []
        last = f"{fine[-1]}." if fine else ""
        return max(
            (i for i, names in enumerate(stages, 1) if any(n.startswith(last) for n in names)),
            default=0,
        )

    def _list_stages(self) -> list[list[str]]:
        """List the names of the parameters of the stem, and of each stage or block."""
        groups = group_with_matcher(
            self.model.named_parameters(), self.model.group_matcher(coarse=True)
        )
        return [groups[key] for key in sorted(groups)]

    @property
    def frozen(self) -> bool:
        """Whether none of its weights learn; it then stays in evaluation mode."""
        return not any(p.requires_grad for p in self.parameters())

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode; what does not learn keeps its statistics and drops nothing."""
        super().train(mode and not self.frozen)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                learns = not module.affine or module.weight.requires_grad
                module.train(module.training and learns and not self.keeps_norm_stats)
        if self._frozen_by_stage:
            for module in self.model.modules():
                weights = list(module.parameters())
                if weights and not any(weight.requires_grad for weight in weights):
                    module.eval()
        return self

    @property
    def pools(self) -> bool:
        """Whether it gives the pooled vector; one that was built for a head without has no layers for it."""
        return self._pools

    @property
    def suits_channels_last(self) -> bool:
        """Whether it is a convolutional net that trains faster on images with their channels last."""
        return type(self.model).__name__ in {"EfficientNet", "MobileNetV3", "RegNet", "ResNet"}

    @property
    def has_batch_norm(self) -> bool:
        """Whether it normalizes by statistics of batches, as most convolutional nets do."""
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules())

    def forward(self, images: Tensor) -> Features:
        """Compute the features of normalized images, float [N, 3, H, W]."""
        outputs = self.model.forward_intermediates(
            images,
            indices=self._indices,
            norm=True,
            output_fmt="NCHW",
            intermediates_only=not (self._pools or self._reads_class_token),
        )
        final, maps = (
            outputs if self._pools or self._reads_class_token else (images.new_empty(0), outputs)
        )
        nothing = images.new_empty(0)
        pooled = self.model.forward_head(final, pre_logits=True) if self._pools else nothing
        class_token = final[:, 0] if self._reads_class_token else nothing
        tokens = maps[-1].flatten(2).transpose(1, 2)
        means = nothing
        if self._averages_maps:
            means = torch.cat([level.mean(dim=(2, 3)) for level in maps], dim=1)
        return Features(pooled, tokens, tuple(maps), means, class_token)


def is_backbone_name(name: str | PathLike[str]) -> bool:
    """Whether this is the name of a backbone that timm has, with or without a tag, and no file or folder."""
    text = str(name)
    if Path(text).exists():
        return False
    return text.startswith(_SOURCES) or timm.is_model(text.partition(".")[0])


def _check_name(name: str) -> None:
    if name.startswith(_SOURCES):
        return
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        raise BackboneError(
            f"timm {timm.__version__} has no model '{name}'.{suggest(base, timm.list_models())} "
            f"List names with python -c \"import timm; print(timm.list_models('*vit*'))\"."
        )
    tags = [n.partition(".")[2] for n in timm.list_pretrained(base + ".*")]
    if tag and tag not in tags:
        raise BackboneError(
            f"'{base}' has no weights tagged '{tag}'. Choices: {', '.join(tags) or 'none'}. "
            f"Give '{base}' alone for timm's default."
        )


def _choose_maps(strides: Sequence[int]) -> list[int]:
    """Choose the levels that a dense head looks at, finest first."""
    depth = len(strides)
    if len(set(strides)) == 1:
        number = min(_NUM_PLAIN, depth)
        return [depth * (i + 1) // number - 1 for i in range(number)]
    last = {stride: index for index, stride in enumerate(strides)}
    return [last[stride] for stride in sorted(last)][-_NUM_STAGES:]


def _make_model(name: str, pretrained: bool, extra: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, **extra)
    except TypeError as error:
        raise BackboneError(
            f"'{name}' does not take one of the arguments {sorted(extra)}: {error}. "
            "Change --model.backbone_args, --model.drop_path or --model.image_size."
        ) from error


def _fetch(name: str, extra: dict[str, Any], before: str) -> tuple[Any, LoadReport]:
    """Make the model with the weights that timm names for it; timm refuses any that do not fit whole."""
    config = None if name.startswith(_SOURCES) else timm.get_pretrained_cfg(name)
    if config is not None and not config.has_weights:
        raise WeightsError(
            f"timm has no pretrained weights for '{name}'. "
            "Start at random with --model.pretrained false, or give a file with --model.weights (--base in commands "
            "without a recipe)."
        )
    try:
        model = _make_model(name, True, extra)
    except (OSError, ImportError, RuntimeError) as error:
        raise WeightsError(
            _explain_fetch(name, config.hf_hub_id if config else None, error)
        ) from error
    state = model.state_dict()
    source = "timm:" + (model.pretrained_cfg.get("hf_hub_id") or name)
    return model, LoadReport(
        source, len(state), len(state), before=before, after=compute_checksum(state), fetched=True
    )


def _explain_fetch(name: str, hub_id: str | None, error: Exception) -> str:
    from huggingface_hub import constants

    instead = (
        "give a local file with --model.weights (--base in commands without a recipe), or start at random with "
        "--model.pretrained false."
    )
    hub_id = hub_id or name.partition(":")[2]
    if constants.HF_HUB_OFFLINE:
        return (
            f"The weights of '{name}' are not on this machine, and HF_HUB_OFFLINE forbids to fetch them.\n"
            f"Where there is a network: hf download {hub_id}, then copy the folder "
            f"models--{hub_id.replace('/', '--')} to {constants.HF_HUB_CACHE}.\n"
            f"Or fetch {constants.ENDPOINT}/{hub_id}/resolve/main/model.safetensors and {instead}"
        )
    first = str(error).strip().splitlines()[0]
    return (
        f"The weights of '{name}' could not be fetched: {first}\n"
        f"Check the connection (HF_ENDPOINT, proxies; HF_TOKEN for gated weights), {instead}"
    )


def _enable_checkpointing(model: Any, name: str) -> None:
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:  # how timm's families say no
        raise BackboneError(
            f"'{name}' has no gradient checkpointing in timm. Leave --model.grad_checkpointing out; "
            "a smaller --data.batch_size with --trainer.accumulate_grad_batches saves memory too."
        ) from error

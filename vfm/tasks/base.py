"""The base of all tasks: backbone and head, spec'd checkpoints, optimiser, and labels from the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, final

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from vfm.data import ImageData
from vfm.losses import Loss
from vfm.losses.base import sum_losses
from vfm.models import licenses
from vfm.models.adapt import LEARNING_RATES, Adapt, AdaptOptions
from vfm.models.adapt import adapt as adapt_backbone
from vfm.models.backbone import Backbone, ImageSize
from vfm.models.heads import Head
from vfm.preprocess import Fit, Preprocess
from vfm.spec import Component, Spec, build
from vfm.tasks.adapter_file import put_adapter
from vfm.tasks.checkpoint import (
    ADAPTER_SUFFIX,
    KEY,
    OTHER_DATA,
    CheckpointError,
    entry_of,
    read_any,
    require_same,
    require_same_labels,
)
from vfm.training import callbacks, compiling, feature_cache, lp_ft, saving, sharding
from vfm.training.nonfinite import require_finite
from vfm.training.optim import Optim, clip_gradients, configure
from vfm.training.option_checks import without_effect
from vfm.types import Batch, Features, Raw, Target


class BaseTask(Component, L.LightningModule, ABC):
    """A backbone and a head that learn together.

    Attributes:
        backbone: Gives features.
        head: Gives answers; its layers are made when the labels are known.
        criterion: The loss; the task's constructor sets it.
        preprocess: What images go through before the backbone.
        recipe: The resolved recipe of the command line, carried by the checkpoint; None from Python.
    """

    prediction_columns: tuple[str, ...] = ("path", "label", "score", "error")
    """Header of `predictions.csv`; the last column says why a file could not be read."""
    monitor: str = "val/loss"
    """Metric that chooses the best checkpoint."""
    monitor_mode: str = "min"
    kind: str = "classification"
    """What the model does, as the contract of a bundle names it."""
    criterion: Loss

    def __init__(
        self,
        backbone: str,
        head: Head,
        *,
        pretrained: bool,
        weights: Path | None,
        min_coverage: float,
        image_size: ImageSize | None,
        fit: Fit | None,
        drop_path: float,
        grad_checkpointing: bool,
        backbone_args: dict[str, Any] | None,
        optim: Optim,
        adapt: Adapt,
        adapt_options: AdaptOptions,
        probe_first: bool,
        cache_features: bool,
        channels_last: bool,
        compile: bool,
        patience: int | None,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(
            backbone,
            pretrained=pretrained,
            weights=str(weights) if weights is not None else None,
            min_coverage=min_coverage,
            image_size=image_size,
            fit=fit,
            drop_path=drop_path,
            grad_checkpointing=grad_checkpointing,
            arguments=backbone_args,
        )
        self._weights_report = self.backbone.report.to_dict() if self.backbone.report else None
        self._license = self.backbone.license
        if self.backbone.report is not None:
            rank_zero_info(f"Weights {self.backbone.report}")
            # A file that states none is the user's own affair; what timm fetches is not.
            stated = self._license is not None or self.backbone.report.fetched
            if stated and (notice := licenses.notice(backbone, self._license)):
                rank_zero_warn(notice)
        self.backbone.serve(head.reads)
        adapt_backbone(self.backbone, adapt, adapt_options)
        for sentence in without_effect(
            adapt, adapt_options, optim, drop_path, grad_checkpointing, probe_first
        ):
            rank_zero_warn(sentence)
        self.head = head
        self.preprocess = self.backbone.preprocess
        # After the head has been solved, a small step keeps the features that it was solved on (Kumar et al., 2022).
        usual = LEARNING_RATES[adapt] * (0.1 if probe_first else 1.0)
        self.optim = optim if optim.lr is not None else replace(optim, lr=usual)
        self._probe_first = probe_first
        self._cache_features = cache_features
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._compile = compile
        self._patience = patience
        self.recipe: dict[str, Any] | None = None
        self.source: Path | None = None
        self.skipped = callbacks.SkippedFiles()
        self._data: dict[str, Any] | None = None
        self._counted = 0.0

    @abstractmethod
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep what the figures of a validation are computed from."""

    def compute_losses(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Sums by name over a batch, so that unequal batches weigh each image, or object, alike; a task may add terms.

        Args:
            raw: Outputs of the head.
            batch: The images that they are of.
        """
        losses: dict[str, Tensor] = self.criterion(raw, batch)
        return losses

    @final
    def loss(self, raw: Raw, batch: Batch) -> Tensor:
        """Total of `compute_losses`."""
        return sum_losses(self.compute_losses(raw, batch))

    @classmethod
    def load(
        cls, path: str | Path, *, base: str | Path | None = None, trust: Collection[str] = ()
    ) -> Self:
        """Rebuild a task from nothing but its checkpoint, or from an adapter and the weights that it was learned on.

        Args:
            path: A checkpoint, made by the command line or by Python; or an `adapter.safetensors`.
            base: For an adapter, the file of the backbone's weights, where it is no longer at its old place.
            trust: Packages besides vfm whose code the checkpoint may name, such as that of your own head.

        Raises:
            CheckpointError: The file cannot be read.
            SpecError: It names code that is not trusted or not found.
        """
        path = Path(path)
        content = read_any(path)
        entry = content[KEY]
        spec = {**entry["model"], "init_args": {**entry["model"]["init_args"]}}
        if path.suffix != ADAPTER_SUFFIX:
            # The weights are in the file: nothing is fetched, and the file that training began with need not be here.
            spec["init_args"] |= {"pretrained": False, "weights": None}
        elif base is not None:
            spec["init_args"]["weights"] = str(base)
        task: Self = build(spec, base=cls, trust=trust)
        task.__dict__["_init_args"] |= {
            key: entry["model"]["init_args"][key] for key in ("pretrained", "weights")
        }
        task.on_load_checkpoint(content)
        if path.suffix == ADAPTER_SUFFIX:
            put_adapter(task, content["state_dict"], entry, path)
        else:
            task.load_state_dict(content["state_dict"])
        task.source = path
        return task.eval()

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the scores; empty before training."""
        return self.head.labels

    @property
    def multilabel(self) -> bool:
        """Whether several labels, or none, may apply to an image."""
        return self.kind == "multilabel"

    @property
    def license(self) -> str | None:
        """Licence of the pretrained weights that training started from, as timm states it."""
        return self._license

    def forward(self, pixels: Tensor) -> Raw:
        """Raw outputs of the head.

        Args:
            pixels: uint8 [N, H, W, 3], at the model's size.
        """
        raw: Raw = self.head(self.backbone(self.preprocess.normalise(pixels)))
        return raw

    def answer(self, pixels: Tensor, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Decoded answers, such as `scores` [N, C]; what the exported model computes.

        Args:
            pixels: uint8 [N, H, W, 3], at the model's size.
            geometry: float [N, 6], for heads whose answers are places in the original image.
        """
        raw = self(pixels)
        return self.head.decode(raw, geometry) if self.head.places else self.head.decode(raw)

    def raw(self, batch: Batch) -> Raw:
        """Raw outputs of the head for a batch, whose features may be there already."""
        if stored := batch.get("features"):
            found: Raw = self.head(Features.partial(stored))
        else:
            found = self(batch["image"])
        return found

    def setup(self, stage: str) -> None:
        """Take the labels from the data, and give it the preprocessing."""
        data = self._datamodule()
        data.preprocess = self.preprocess
        data.stored = {}
        if stage == "fit":
            self.take_labels(data)
            if self._cache_features:
                feature_cache.announce(self, data)
            if self._compile:
                compiling.compile_module(self.backbone)
            self._data = {
                "spec": self._kept_split(data),
                "fingerprint": data.fingerprint(),
                "splits": data.describe(),
            }

    def teardown(self, stage: str) -> None:
        """Give the data its images back."""
        self._datamodule().stored = {}

    def take_labels(self, data: ImageData) -> None:
        """Make the head's layers for the labels of the data, unless it has them already.

        Raises:
            CheckpointError: The head was made for other labels.
        """
        if not self.labels:
            # From the seed alone: what else has drawn random numbers differs with the number of processes.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch.initial_seed() + 1)
                self.head.prepare(self.backbone.info, data.labels)
        require_same_labels(data.labels, self.labels, "the data")

    def require_trained(self) -> None:
        """Refuse to answer before training.

        Raises:
            CheckpointError: No labels are known.
        """
        if not self.labels:
            raise CheckpointError(
                f"{type(self).__name__} has not been trained. Give a checkpoint (--ckpt_path best.ckpt), "
                f"or start from {type(self).__name__}.load('best.ckpt')."
            )

    def on_predict_start(self) -> None:
        """Refuse to answer before training."""
        self.require_trained()

    def configure_model(self) -> None:
        """Shard the weights over the ranks where the strategy is FSDP2."""
        sharding.shard(self)

    def on_fit_start(self) -> None:
        """Compute what a frozen backbone gives once and for all, and solve the head where that comes first."""
        saving.write_whole(self.trainer)
        feature_cache.store(self, self._datamodule())
        if self._probe_first and self.trainer.ckpt_path is None:
            lp_ft.solve_head(self, self._datamodule())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch; `on_before_optimizer_step` makes every image, or object, of a step count alike."""
        num_images = len(batch["image"])
        self._counted += batch["target"].loss_divisor
        if num_images:
            loss = self._summed_loss(batch, batch_idx)
        else:
            # Every file of the batch was unreadable; other ranks still wait for gradients of every weight.
            learning = (p for p in self.parameters() if p.requires_grad)
            loss = torch.stack([p.sum() * 0.0 for p in learning]).sum()
        require_finite(self, loss, batch)
        return loss / self._datamodule().batch_size

    def _summed_loss(self, batch: Batch, batch_idx: int) -> Tensor:
        """Total loss of a batch that is not empty; it and its parts are logged as means."""
        if "features" in batch:
            raw = self.raw(batch)
        else:
            images = self.preprocess.normalise(batch["image"])
            images, target = self.augment_batch(images, batch["target"], batch_idx)
            batch = {**batch, "target": target}
            raw = self.head(self.backbone(images.contiguous(memory_format=self._layout)))
        self.on_train_outputs(raw)
        losses = self.compute_losses(raw, batch)
        loss = sum_losses(losses)
        divisor, number = max(batch["target"].loss_divisor, 1), len(batch["image"])
        if len(losses) > 1:
            for name, value in losses.items():
                self.log(f"train/{name}", value.detach() / divisor, batch_size=number)
        mean = loss.detach() / divisor
        self.log("train/loss", mean, batch_size=number, prog_bar=True, on_epoch=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradient the mean over all that a step counts: a rank's or an accumulated batch may be smaller."""
        trainer = self.trainer
        whole = self._datamodule().batch_size * trainer.accumulate_grad_batches * trainer.world_size
        count, self._counted = self._counted, 0.0
        if trainer.world_size > 1:
            everywhere = torch.tensor(count, device=self.device)
            torch.distributed.all_reduce(everywhere)
            count = everywhere.item()
        if count != whole:
            gradients = [p.grad for p in self.parameters() if p.grad is not None]
            torch._foreach_mul_(gradients, whole / max(count, 1.0))

    def augment_batch(
        self, images: Tensor, target: Target, batch_idx: int
    ) -> tuple[Tensor, Target]:
        """Change a training batch after normalisation; a task may mix images and targets here, or scale them.

        Args:
            images: float [N, 3, H, W].
            target: As the data gives it.
            batch_idx: Number of the batch in its epoch, on this rank.
        """
        return images, target

    def on_train_outputs(self, raw: Raw) -> None:
        """Take what a task keeps of the outputs of every training batch.

        Args:
            raw: Outputs of the head, before the loss.
        """

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Answers of a batch."""
        if len(batch["image"]) == 0:  # every file was unreadable; not every backbone takes no image
            return {"scores": torch.zeros((0, len(self.labels)), device=self.device)}
        return self.answer(batch["image"], batch.get("geometry"))

    def prediction_rows(self, batch: Batch, answers: dict[str, Tensor]) -> list[tuple[str, ...]]:
        """What `predictions.csv` says of a batch.

        Args:
            batch: What was answered.
            answers: Of `predict_step`.
        """
        return callbacks.label_rows(self.labels, self.multilabel, batch["name"], answers["scores"])

    def configure_optimizers(self) -> Any:
        """AdamW, and a learning rate that changes with every step."""
        num_batches = len(self._datamodule().train_dataloader())
        return configure(self.trainer, self.backbone.model, self.head, self.optim, num_batches)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says, or else as `optim.clip` does."""
        value = self.optim.clip if gradient_clip_val is None else gradient_clip_val
        clip_gradients(self.trainer, optimizer, value, gradient_clip_algorithm)

    def configure_callbacks(self) -> list[Callback]:
        """What every run gets; a callback of the same kind that the user set up takes the place of ours."""
        return callbacks.usual(self.trainer, self, patience=self._patience, ema=self.optim.ema)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that is needed to rebuild the task, and where it comes from."""
        checkpoint[KEY] = {
            **entry_of(self),
            "data": self._data,
            "weights": self._weights_report,
            "license": self._license,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the head for the checkpoint's labels, and check that it fits this task."""
        if KEY not in checkpoint:
            raise CheckpointError(
                f"The checkpoint has no entry '{KEY}': it was not written by vfm."
            )
        entry = checkpoint[KEY]
        backbone, head = entry["model"]["init_args"]["backbone"], entry["head"]
        require_same("backbone", backbone, self.backbone.name, remedy=backbone)
        require_same("head", head, self.head.spec, remedy=head["class_path"])
        if not self.labels:
            self.head.prepare(self.backbone.info, entry["labels"])
        require_same_labels(tuple(entry["labels"]), self.labels, "the checkpoint")
        self.preprocess = Preprocess.from_dict(entry["preprocess"])
        self._license, self._weights_report = entry["license"], entry["weights"]
        if self._data is None:
            self._data = entry["data"]
        elif entry["data"] and self._data["fingerprint"] != entry["data"]["fingerprint"]:
            rank_zero_warn(OTHER_DATA)
        if self._trainer is not None and self._trainer.datamodule is not None:  # type: ignore[attr-defined]
            self._datamodule().preprocess = self.preprocess

    def _datamodule(self) -> ImageData:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageData):
            raise TypeError(
                f"{type(self).__name__} takes its labels from an ImageData, got {type(data).__name__}. "
                "Pass one, such as FolderData('images/'): trainer.fit(task, datamodule=data)."
            )
        return data

    def _kept_split(self, data: ImageData) -> Spec:
        folder = callbacks.output_dir(self.trainer)  # asks all ranks, so not only the first
        if self.trainer.fast_dev_run or not self.trainer.is_global_zero:  # type: ignore[attr-defined]
            return data.spec
        folder.mkdir(parents=True, exist_ok=True)
        return data.keep_split(folder)

"""The base of all tasks: backbone and head, spec'd checkpoints, optimiser, and labels from the data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import Any, Self

import lightning as L
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, TQDMProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from vfm.data import ImageData
from vfm.models.adapt import Adapt
from vfm.models.adapt import adapt as adapt_backbone
from vfm.models.backbone import Backbone
from vfm.models.heads import Head
from vfm.preprocess import Fit, Preprocess
from vfm.spec import Component, Spec, build
from vfm.tasks import callbacks, compiling
from vfm.tasks.averaging import WeightEMA
from vfm.tasks.checkpoint import FORMAT, KEY, CheckpointError, read_checkpoint, versions
from vfm.tasks.optim import Optim, learning_rate_factor, optimizer
from vfm.types import Batch, Raw


class BaseTask(Component, L.LightningModule, ABC):
    """A backbone and a head that learn together.

    Attributes:
        backbone: Gives features.
        head: Gives answers; its layers are made when the labels are known.
        preprocess: What images go through before the backbone.
        recipe: The resolved recipe of the command line, carried by the checkpoint; None from Python.
    """

    monitor: str = "val/loss"
    """Metric that chooses the best checkpoint."""
    monitor_mode: str = "min"
    multilabel: bool = False
    """Whether several labels, or none, may apply to an image."""

    def __init__(
        self,
        backbone: str,
        head: Head,
        *,
        pretrained: bool,
        weights: Path | None,
        image_size: int | None,
        fit: Fit | None,
        drop_path: float,
        backbone_args: dict[str, Any] | None,
        optim: Optim,
        adapt: Adapt,
        channels_last: bool,
        compile: bool,
        patience: int | None,
    ) -> None:
        super().__init__()
        self.backbone = Backbone(
            backbone,
            pretrained=pretrained,
            weights=str(weights) if weights is not None else None,
            image_size=image_size,
            fit=fit,
            drop_path=drop_path,
            arguments=backbone_args,
        )
        if self.backbone.report is not None:
            rank_zero_info(f"Weights {self.backbone.report}")
        adapt_backbone(self.backbone, adapt)
        self.head = head
        self.preprocess = self.backbone.preprocess
        self.optim = optim
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._compile = compile
        self._patience = patience
        self.recipe: dict[str, Any] | None = None
        self.source: Path | None = None
        self.skipped = callbacks.SkippedFiles()
        self._weights_report = self.backbone.report.to_dict() if self.backbone.report else None
        self._license = self.backbone.license
        self._data: dict[str, Any] | None = None

    @abstractmethod
    def loss(self, raw: Raw, target: Tensor) -> Tensor:
        """Sum of the losses of a batch, so that unequal batches weigh each image alike."""

    @classmethod
    def load(cls, path: str | Path, *, trust: Collection[str] = ()) -> Self:
        """Rebuild a task from nothing but its checkpoint.

        Args:
            path: A checkpoint, made by the command line or by Python.
            trust: Packages besides vfm whose code the checkpoint may name, such as that of your own head.

        Raises:
            CheckpointError: The file cannot be read.
            SpecError: It names code that is not trusted or not found.
        """
        content = read_checkpoint(path)
        entry = content[KEY]
        spec = {**entry["model"], "init_args": {**entry["model"]["init_args"]}}
        # The weights are in the file: nothing is fetched, and a file that stood beside the training need not be here.
        spec["init_args"] |= {"pretrained": False, "weights": None}
        task: Self = build(spec, base=cls, trust=trust)
        task.__dict__["_init_args"] |= {
            key: entry["model"]["init_args"][key] for key in ("pretrained", "weights")
        }
        task.on_load_checkpoint(content)
        task.load_state_dict(content["state_dict"])
        task.source = Path(path)
        return task.eval()

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the scores; empty before training."""
        return self.head.labels

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

    def answer(self, pixels: Tensor) -> dict[str, Tensor]:
        """Decoded answers, such as `scores` [N, C]; what the exported model computes."""
        return self.head.decode(self(pixels))

    def setup(self, stage: str) -> None:
        """Take the labels from the data, and give it the preprocessing."""
        data = self._datamodule()
        data.preprocess = self.preprocess
        if stage == "fit":
            self.take_labels(data)
            if self._compile:
                compiling.compile_module(self.backbone)
            self._data = {
                "spec": self._kept_split(data),
                "fingerprint": data.fingerprint(),
                "splits": data.describe(),
            }

    def take_labels(self, data: ImageData) -> None:
        """Make the head's layers for the labels of the data, unless it has them already.

        Raises:
            CheckpointError: The head was made for other labels.
        """
        if not self.labels:
            self.head.prepare(self.backbone.info, data.labels)
        self._require_same_labels(data.labels, "the data")

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

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch, weighed by its share of all ranks' images."""
        num_images = len(batch["image"])
        share = self._global_count(num_images)
        if num_images == 0:
            # Every file of the batch was unreadable; other ranks still wait for gradients of every weight.
            return sum(
                (p.sum() * 0.0 for p in self.parameters() if p.requires_grad), torch.zeros(())
            )
        images = self.preprocess.normalise(batch["image"])
        images, target = self.mix(images, batch["label"], batch_idx)
        images = images.contiguous(memory_format=self._layout)
        loss = self.loss(self.head(self.backbone(images)), target) / share
        self.log("train/loss", loss.detach(), batch_size=num_images, prog_bar=True, on_epoch=True)
        return loss

    def mix(self, images: Tensor, target: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Change a training batch after normalisation; a task may mix images and targets here.

        Args:
            images: float [N, 3, H, W].
            target: As the data gives it.
            batch_idx: Number of the batch in its epoch, on this rank.
        """
        return images, target

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Answers of a batch."""
        if (
            len(batch["image"]) == 0
        ):  # every file was unreadable, and not every backbone takes no image
            return {"scores": torch.zeros((0, len(self.labels)), device=self.device)}
        return self.answer(batch["image"])

    def configure_optimizers(self) -> Any:
        """AdamW, and a learning rate that changes with every step."""
        adamw = optimizer(self.backbone.model, self.head, self.optim)
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            adamw, lambda step: learning_rate_factor(step, num_steps, self.optim)
        )
        return {
            "optimizer": adamw,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says, or else as `optim.clip` does."""
        value = self.optim.clip if gradient_clip_val is None else gradient_clip_val
        self.clip_gradients(optimizer, value, gradient_clip_algorithm or "norm")

    def configure_callbacks(self) -> list[Callback]:
        """What every run gets; a ModelCheckpoint that the user set up takes the place of ours."""
        added: list[Callback] = [
            callbacks.Throughput(),
            self.skipped,
            callbacks.PredictionWriter(),
        ]
        if type(self.trainer.progress_bar_callback) is TQDMProgressBar:
            added.append(callbacks.ProgressBar())
        if self.trainer.state.fn == TrainerFn.FITTING:
            added += self._fit_callbacks()
        present = self.trainer.checkpoint_callbacks
        if present and all(callbacks.is_default_checkpoint(c) for c in present):
            monitor = self.monitor if self.trainer.limit_val_batches else None
            added += callbacks.checkpoints(monitor, self.monitor_mode)
        return added

    def _fit_callbacks(self) -> list[Callback]:
        added: list[Callback] = []
        if self.optim.ema is not None:
            added.append(WeightEMA(self.optim.ema))
        if self._patience is not None and self.trainer.limit_val_batches:
            stopper = EarlyStopping(self.monitor, patience=self._patience, mode=self.monitor_mode)
            added.append(stopper)
        return added

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that is needed to rebuild the task, and where it comes from."""
        checkpoint[KEY] = {
            "format": FORMAT,
            "model": self.spec,
            "head": self.head.spec,
            "labels": list(self.labels),
            "preprocess": self.preprocess.to_dict(),
            "recipe": self.recipe,
            "data": self._data,
            "weights": self._weights_report,
            "license": self._license,
            "versions": versions(),
            "seed": torch.initial_seed(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the head for the checkpoint's labels, and check that it fits this task."""
        if KEY not in checkpoint:
            raise CheckpointError(
                f"The checkpoint has no entry '{KEY}': it was not written by vfm."
            )
        entry = checkpoint[KEY]
        backbone, head = entry["model"]["init_args"]["backbone"], entry["head"]
        self._require_same("backbone", backbone, self.backbone.name, remedy=backbone)
        self._require_same("head", head, self.head.spec, remedy=head["class_path"])
        if not self.labels:
            self.head.prepare(self.backbone.info, entry["labels"])
        self._require_same_labels(tuple(entry["labels"]), "the checkpoint")
        self.preprocess = Preprocess.from_dict(entry["preprocess"])
        self._license, self._weights_report = entry["license"], entry["weights"]
        if self._data is None:
            self._data = entry["data"]
        elif entry["data"] and self._data["fingerprint"] != entry["data"]["fingerprint"]:
            rank_zero_warn(
                "The images, labels or splits are not those that the checkpoint was trained on: training goes on "
                "with the new ones, and its figures are not comparable with the earlier ones."
            )
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

    @staticmethod
    def _require_same(name: str, stored: Any, own: Any, *, remedy: str) -> None:
        if stored != own:
            raise CheckpointError(
                f"The checkpoint's {name} is {stored!r}, this task's is {own!r}. "
                f"Give --model.{name} {remedy} with its arguments, or another checkpoint."
            )

    def _require_same_labels(self, labels: tuple[str, ...], where: str) -> None:
        if labels == self.labels:
            return
        more, fewer = sorted(set(labels) - set(self.labels)), sorted(set(self.labels) - set(labels))
        raise CheckpointError(
            f"The labels of {where} are not those of the model: {len(labels)} against {len(self.labels)}; "
            f"only there: {more[:5]}, only in the model: {fewer[:5]}. "
            "Resume with the data it was trained on; to learn other labels, start a new task from these weights "
            "(--model.weights)."
        )

    def _global_count(self, num_images: int) -> float:
        """What to divide a rank's summed loss by, so that the mean over ranks is the mean over images."""
        if self.trainer.world_size == 1:
            return max(1, num_images)
        count = torch.tensor(float(num_images), device=self.device)
        torch.distributed.all_reduce(count)
        return max(1.0, count.item()) / self.trainer.world_size

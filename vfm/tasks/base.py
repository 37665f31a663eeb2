"""BaseTask, the base of all tasks: labels from the data, training, validation on whole splits, predictions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Unpack, final

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor
from vfm_runtime.errors import MismatchError, OptionError
from vfm_runtime.tasks.embedding import EmbeddingSpec

from vfm.data import ImageData
from vfm.data.records import Record
from vfm.losses import Loss
from vfm.losses.base import sum_losses
from vfm.models.adapt import resolve_adaptation
from vfm.models.backbone import Backbone, ImageSize
from vfm.models.heads import Head, LinearHead
from vfm.models.heads.embedding import EmbeddingHead
from vfm.preprocess import Fit
from vfm.tasks.export_hooks import ExportHooks
from vfm.tasks.label_rows import GroupedRows, list_label_rows
from vfm.tasks.labels import match_labels
from vfm.tasks.options import TASK_DEFAULTS, TaskOptions
from vfm.tasks.results import RESULTS_FILE, Collector, SplitPredictions
from vfm.training import callbacks, feature_cache, lp_ft, saving, sharding
from vfm.training.checkpoint import CheckpointedModel, CheckpointError, require_same_labels
from vfm.training.embeddings import build_embedding_head, describe_embedding
from vfm.training.fine_tuning import Case, Settings, describe_settings, resolve_settings
from vfm.training.lr_schedule import build_schedule
from vfm.training.nonfinite import require_finite
from vfm.training.num_steps import count_steps, extend_training
from vfm.training.optim import Auto, build_optimizer, clip_gradients, has_scaler
from vfm.training.option_checks import list_idle_options, require_compiler
from vfm.training.randomness import draw_by_key
from vfm.training.ranks import reduce_ranks
from vfm.types import Batch, Raw, StepKey, Target


class BaseTask(CheckpointedModel, ExportHooks):
    """A backbone and a head that learn together, and are validated and tested on a whole split at once."""

    prediction_columns: tuple[str, ...] = ("path", "label", "score", "error")
    """Header of `predictions.csv`; the last column says why a file could not be read."""
    monitor: str = "val/loss"
    """Metric that chooses the best checkpoint."""
    monitor_mode: str = "min"
    option_defaults: ClassVar[TaskOptions] = TASK_DEFAULTS
    """Defaults of the constructor's `**options`."""
    follows_data_size: ClassVar[bool] = False
    """Whether settings left to `auto` follow the number of training images; they are plain defaults otherwise."""
    enough_steps: ClassVar[int] = 400
    """Steps below which a training planned by minutes takes smaller batches."""
    columns: Tensor
    """For each label of the data its index among the model's, int64 [C]; known when a validation starts."""
    criterion: Loss
    """The loss; the task's constructor sets it."""
    grouped_rows: GroupedRows | None = None
    """Rules by group that rows of `predictions.csv` are written by; None for plain scores."""
    evaluated: SplitPredictions | None = None
    """Predictions of the split that was validated or tested last, on its own rather than in training."""

    def __init__(
        self,
        backbone: str,
        head: Head,
        *,
        image_size: ImageSize | None = None,
        fit: Fit | None = None,
        lp_ft: bool | Auto = False,
        cache_features: bool = False,
        **options: Unpack[TaskOptions],
    ) -> None:
        """Build the backbone; the head's layers follow when the labels are known."""
        options = {**self.option_defaults, **options}
        optim = options["optim"]
        weights = options["weights"]
        model = Backbone(
            backbone,
            pretrained=options["pretrained"],
            weights=str(weights) if weights is not None else None,
            min_coverage=options["min_coverage"],
            image_size=image_size,
            fit=fit,
            drop_path=options["drop_path"],
            grad_checkpointing=options["grad_checkpointing"],
            arguments=options["backbone_args"],
        )
        super().__init__(model, head)
        self.backbone.select_outputs(head.uses)
        self.adaptation = resolve_adaptation(options["adapt"], options["adapt_options"])
        self.backbone.adapt(self.adaptation)
        set_options = {
            "drop_path": options["drop_path"] > 0,
            "grad_checkpointing": options["grad_checkpointing"],
            "lp_ft": lp_ft is True,
            "optim.layer_decay": optim.layer_decay not in (None, "auto"),
        }
        for idle in list_idle_options(
            options["adapt"], options["adapt_options"], self.backbone.frozen, set_options
        ):
            rank_zero_warn(idle)
        if options["min_steps"] != "auto" and options["min_steps"] < 0:
            raise OptionError(f"min_steps is {options['min_steps']}. Give 0 or more, or auto.")
        if (freeze_at := options["freeze_at"]) != "auto" and freeze_at < 0:
            raise OptionError(
                f"freeze_at is {freeze_at}. Give 0 or more stages, or auto (--model.freeze_at)."
            )
        self.optim = optim
        self._asked = Settings(optim, options["min_steps"], lp_ft, options["norm_stats"], freeze_at)
        self._has_new_head = self._solves_head = False
        self._cache_features = cache_features
        channels_last = options["channels_last"]
        if channels_last == "auto":
            channels_last = self.backbone.suits_channels_last
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._compile = options["compile"]
        self.patience = options["patience"]
        self.skipped = callbacks.SkippedFiles()
        self._counted = 0.0
        self._collector = Collector()

    def keep_epochs(self) -> None:
        """Train for the Trainer's epochs, however few steps they are, unless the user gave `min_steps`."""
        if self._asked.min_steps == "auto":
            self._asked = replace(self._asked, min_steps=0)

    def compute_losses(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return sums by name over a batch, so that each image, or object, weighs alike; a task may add terms."""
        return dict(self.criterion(raw, batch))

    @final
    def compute_loss(self, raw: Raw, batch: Batch) -> Tensor:
        """Return the total of `compute_losses`."""
        return sum_losses(self.compute_losses(raw, batch))

    @abstractmethod
    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Return what to keep of a batch of N > 0 images: tensors [N, ...], and scalars that are summed, as a loss."""

    @abstractmethod
    def compute_metrics(self, split: str, predictions: SplitPredictions) -> dict[str, float]:
        """Return the few metrics that every validation logs, `loss` among them, from what `evaluate` gave."""

    def count_judged(self, data: ImageData) -> int:
        """Return how many samples of the val split the metric counts: images, unless a task counts others."""
        return len(data.records.get("val", []))

    @abstractmethod
    def write_results(
        self, folder: Path, split: str, predictions: SplitPredictions, more: dict[str, Any]
    ) -> None:
        """Write all metrics of a split, and `more`, to the `results.json` of a folder, and their page beside it."""

    def setup(self, stage: str) -> None:
        """Take the labels from the data, and give it the preprocessing."""
        data = self._require_data()
        preprocess = self.preprocess
        if stage == "fit" and data.tiling is not None:
            preprocess = replace(preprocess, tiles=None)  # a training may go on with other tiles
        data.preprocess = preprocess
        if stage == "fit" or self.source is None:
            self.preprocess = data.preprocess  # with the bit depth that the data says
        self._require_same_preprocess(data)
        data.stored = {}
        if stage == "fit":
            self.take_labels(data)
            if self._cache_features:
                feature_cache.replace_images(self, data)
            self._resolve_settings(data)
            if self._compile:
                require_compiler()
                self.backbone.compile()
            folder = callbacks.get_output_dir(self.trainer)  # asks all ranks, so not only the first
            keeps = self.trainer.is_global_zero and not self.trainer.fast_dev_run  # type: ignore[attr-defined]
            self.record_data(data, folder if keeps else None)

    def record_data(self, data: ImageData, folder: Path | None) -> None:
        """Remember what is trained on, for checkpoints; with a folder, keep there what it takes to read it again."""
        spec = data.spec
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            spec = data.keep_split(folder)
        self._data = {
            "spec": spec,
            "fingerprint": data.fingerprint(),
            "splits": data.describe(),
        }

    def _resolve_settings(self, data: ImageData) -> None:
        """Put values in the place of each `auto`, for this training and those that its checkpoints resume."""
        sharded = isinstance(self.trainer.strategy, ModelParallelStrategy)
        # Weights of a checkpoint that was loaded are no random start either.
        has_weights = self.backbone.report is not None or self.source is not None
        case = Case(
            num_images=len(data.records["train"]),
            is_pretrained=self.follows_data_size and has_weights,
            has_batch_norm=self.backbone.has_batch_norm,
            can_solve_head=isinstance(self.head, LinearHead)
            and not (sharded or self.backbone.frozen),
            num_fine_stages=self.backbone.count_fine_stages()
            if has_weights and self._asked.freeze_at == "auto"
            else 0,
            learning_rate=self.adaptation.learning_rate,
        )
        settings = resolve_settings(self._asked, case)
        self._solves_head = settings.lp_ft
        self.optim = settings.optim
        arguments = self.__dict__["_init_args"]
        arguments |= {name: value for name, value in vars(settings).items() if name in arguments}
        self.backbone.keeps_norm_stats = settings.norm_stats == "keep"
        self.backbone.freeze_stages(settings.freeze_at)
        if settings.freeze_at:
            rank_zero_info(
                f"Frozen: the first {settings.freeze_at} stages of the backbone (--model.freeze_at)."
            )
        num_batches = len(data.train_dataloader())
        extend_training(self.trainer, num_batches, settings.min_steps)
        if self.follows_data_size:
            num_steps = count_steps(self.trainer, num_batches)
            rank_zero_info(describe_settings(settings, case.num_images, data.batch_size, num_steps))

    def teardown(self, stage: str) -> None:
        """Give the data its images back."""
        self._require_data().stored = {}

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
            self._has_new_head = True
        require_same_labels(data.labels, self.labels, "the data")

    def require_trained(self) -> None:
        """Refuse with a CheckpointError to answer before training."""
        if not self.labels:
            raise CheckpointError(
                f"{type(self).__name__} has not been trained. Give a checkpoint (--ckpt_path best.ckpt), "
                f"or start from {type(self).__name__}.load('best.ckpt')."
            )

    def on_predict_start(self) -> None:
        """Refuse to answer before training."""
        self.require_trained()

    def build_embedding(self, source: str | None, *, normalize: bool) -> EmbeddingHead:
        """Return a head that embeds images by this task's backbone, which computes what it uses from now on.

        Args:
            source: Part of the features that vectors are made of; None for the usual one.
            normalize: Whether vectors are divided by their L2 norm.

        Raises:
            OptionError: This backbone has no such part.
        """
        head = build_embedding_head(self.backbone, source, normalize=normalize)
        self.backbone.select_outputs((*self.head.uses, *head.uses))
        return head

    def describe_embedding(self, source: str | None, *, normalize: bool) -> EmbeddingSpec | None:
        """Return what an exported graph shall embed by; None where no source was asked for."""
        if source is None:
            return None
        head = self.build_embedding(source, normalize=normalize)
        return describe_embedding(self.backbone, self.preprocess, head)

    def configure_model(self) -> None:
        """Shard the weights over the ranks where the strategy is FSDP2."""
        sharding.shard(self)

    def on_fit_start(self) -> None:
        """Compute what a frozen backbone gives once and for all, and solve the head where that comes first."""
        saving.write_whole(self.trainer)
        feature_cache.fill_features(self, self._require_data())
        if self._solves_head and self._has_new_head and self.trainer.ckpt_path is None:
            lp_ft.solve_head(self, self._require_data())
        self._has_new_head = False

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch; `on_before_optimizer_step` makes every image, or object, of a step count alike."""
        self._counted += batch["target"].loss_divisor
        key = (self._require_data().seed, self.current_epoch, batch_idx, self.global_rank)
        divisor, count = max(batch["target"].loss_divisor, 1), len(batch["image"])
        if count:
            losses = self.compute_train_losses(batch, key)
            loss = sum_losses(losses)
            if len(losses) > 1:
                for name, value in losses.items():
                    self.log(f"train/{name}", value.detach() / divisor, batch_size=count)
            self.log("train/loss", loss.detach() / divisor, True, on_epoch=True, batch_size=count)
        else:
            # Every file of the batch was unreadable; other ranks still wait for gradients of every weight.
            loss = torch.stack([p.sum() * 0.0 for p in self.parameters() if p.requires_grad]).sum()
        require_finite(self, loss, batch, key)
        return loss / self._require_data().batch_size

    @draw_by_key
    def compute_train_losses(self, batch: Batch, key: StepKey) -> dict[str, Tensor]:
        """Return sums by name over a batch that is not empty; all that is drawn for them hangs on the key."""
        if "features" in batch:
            raw = self.compute_raw(batch)
        else:
            images = self.preprocess.normalize(batch["image"])
            images, target = self.augment_batch(images, batch["target"], key)
            batch = {**batch, "target": target}
            raw = self.encode_images(images)
        self.on_train_outputs(raw)
        return self.compute_losses(raw, batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradient the mean over all that a step counts: a rank's or an accumulated batch may be smaller."""
        trainer = self.trainer
        whole = self._require_data().batch_size * trainer.accumulate_grad_batches
        whole *= trainer.world_size
        count, self._counted = reduce_ranks(self._counted, self.device), 0.0
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        if count != whole and gradients:
            torch._foreach_mul_(gradients, whole / max(count, 1.0))

    def augment_batch(self, images: Tensor, target: Target, key: StepKey) -> tuple[Tensor, Target]:
        """Change a training batch; a task may mix images and targets here, or scale them.

        Args:
            images: Normalized images, float [N, 3, H, W].
            target: Target of the batch, as the data gives it.
            key: What is drawn hangs on these numbers alone, so that a step can be done again.
        """
        return images, target

    def encode_images(self, images: Tensor) -> Raw:
        """Return the head's outputs for the images, float [N, 3, H, W], that `augment_batch` returned."""
        raw: Raw = self.head(self.backbone(images.contiguous(memory_format=self._layout)))
        return raw

    def on_train_outputs(self, raw: Raw) -> None:
        """Take what a task keeps of the head's outputs for every training batch, before the loss."""

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the predictions and losses of a batch."""
        if len(batch["image"]):
            self._collector.add(batch["index"], self.evaluate(batch))

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Keep the predictions and losses of a batch."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Match the data's labels to the model's."""
        self._match_labels()

    def on_test_epoch_start(self) -> None:
        """Match the data's labels to the model's."""
        self._match_labels()

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole split."""
        self._finish("val", write=self.trainer.state.fn == TrainerFn.VALIDATING)

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the whole split, and write them."""
        self._finish("test", write=True)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Return the predictions of a batch, none where every file of it was unreadable."""
        if len(batch["image"]) == 0:  # not every backbone takes no image
            return {}
        return self.answer(batch["image"], batch.get("geometry"))

    def list_predictions(self, batch: Batch, answers: dict[str, Tensor]) -> list[tuple[str, ...]]:
        """Return the rows of `predictions.csv` for a batch and what `predict_step` gave for it.

        Where several labels may apply, those with a score of 0.5 or more stand in one cell, joined by `|`.
        """
        names, scores = batch["name"], answers["scores"].cpu().numpy()
        if self.grouped_rows is not None:
            return list(self.grouped_rows.list_rows(names, scores))
        return list_label_rows(names, scores, self.labels, multilabel=self.multilabel)

    def batch_rows(
        self, records: Sequence[Record], rows: Mapping[str, Sequence[NDArray[Any]]]
    ) -> Iterator[tuple[Any, dict[str, Tensor]]]:
        """Yield names and predictions, as `list_predictions` takes them, from the rows that were collected of images.

        Args:
            records: Records of N images; a task joins those that are parts of one image.
            rows: For each name of a prediction the values of the N images.
        """
        answers = {name: torch.from_numpy(np.stack(values)) for name, values in rows.items()}
        yield {"name": [record.name for record in records]}, answers

    @property
    def trained_head(self) -> torch.nn.Module:
        """What learns beside the backbone, at the head's learning rate; a task may add parts of training alone."""
        return self.head

    def configure_optimizers(self) -> Any:
        """AdamW, and a learning rate that changes with every step."""
        num_steps = count_steps(self.trainer, len(self._require_data().train_dataloader()))
        # A GradScaler has to divide the gradients before they are clipped; a fused step would do it after.
        fused = not has_scaler(self.trainer)
        adamw = build_optimizer(self.backbone.model, self.trained_head, self.optim, fused=fused)
        scheduler = build_schedule(adamw, num_steps, self.optim)
        return {"optimizer": adamw, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer says, or else as `optim.max_grad_norm` does."""
        value = self.optim.max_grad_norm if gradient_clip_val is None else gradient_clip_val
        clip_gradients(self.trainer, optimizer, value, gradient_clip_algorithm)

    def configure_callbacks(self) -> list[Callback]:
        """Return what every run gets; a callback of the same kind that the user set up takes the place of ours."""
        return callbacks.list_callbacks(
            self.trainer, self, patience=self.patience, ema=self.optim.ema
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what the checkpoint says, and give the data the checkpoint's preprocessing."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is not None and self._trainer.datamodule is not None:  # type: ignore[attr-defined]
            data = self._require_data()
            data.preprocess = self.preprocess
            self._require_same_preprocess(data)

    def _require_data(self) -> ImageData:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageData):
            raise MismatchError(
                f"{type(self).__name__} takes its labels from an ImageData, got {type(data).__name__}. "
                "Pass one, such as FolderData('images/'): trainer.fit(task, datamodule=data)."
            )
        return data

    def _require_same_preprocess(self, data: ImageData) -> None:
        """Refuse data whose bit depth or tiles the model was not trained with."""
        if data.preprocess == self.preprocess or data.preprocess is None:
            return
        if data.preprocess.bit_depth != self.preprocess.bit_depth:
            raise MismatchError(
                f"bit_depth is {data.bit_depth}, and the model was trained without one: it knows such images with 16 "
                "bits. Leave --data.bit_depth out, or train anew with it."
            )
        raise MismatchError(
            f"Tiles of {data.tiling and data.tiling.side} pixels are asked for, and the model was trained without: it "
            "knows whole images, and its bundle sees no others. Leave --data.tile out, or train anew with it."
        )

    def _match_labels(self) -> None:
        self.require_trained()
        columns = match_labels(self._require_data(), self.labels, self.multilabel)
        self.columns = torch.tensor(columns, device=self.device)

    def _finish(self, split: str, *, write: bool) -> None:
        predictions = self._collector.gather()
        if self.trainer.sanity_checking or predictions is None:
            return
        # Each rank has gathered the whole split, but AP of thousands of images takes long and gigabytes.
        metrics = self.compute_metrics(split, predictions) if self.trainer.is_global_zero else {}
        for name, value in self.trainer.strategy.broadcast(metrics).items():
            self.log(f"{split}/{name}", value, prog_bar=name != "loss", rank_zero_only=False)
        if write:
            self.skipped.gather(self.trainer, split)
            folder = callbacks.get_output_dir(self.trainer)
            if not self.trainer.is_global_zero:
                return
            skipped = self.skipped.files[split]
            checkpoint = self.trainer.ckpt_path or self.source
            folder = Path(checkpoint).parent if checkpoint else folder
            self.evaluated = predictions
            more = {
                "checkpoint": str(checkpoint) if checkpoint else None,
                "num_skipped": len(skipped),
                "skipped": dict(skipped),
            }
            self.write_results(folder, split, predictions, more)
            rank_zero_info(f"Results: {folder / RESULTS_FILE}")

"""PretrainingTask, the base of the tasks whose product is a backbone: distillation, self-supervised, contrastive."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Unpack

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.embedding import OUTPUT

from vfm.data import ImageData
from vfm.models.backbone import ImageSize
from vfm.models.heads.embedding import EmbeddingSource
from vfm.preprocess import Fit
from vfm.tasks.embedding import EmbeddingTask
from vfm.tasks.options import TASK_DEFAULTS, TaskOptions
from vfm.tasks.pretraining.results import (
    list_alarms,
    measure_embeddings,
    write_pretraining_results,
)
from vfm.tasks.results import SplitPredictions
from vfm.types import Batch, Raw

PARTS = "training_parts."
"""Begins the names of the tensors of a checkpoint that only training needs."""


class PretrainingTask(EmbeddingTask):
    """Learns a backbone from images, with labels or without; its checkpoint is a model that embeds.

    A subclass makes what only training needs in `build_parts` (projector, predictor, text tower: they learn at the
    head's rate, lie in the checkpoint for a training that goes on, and are left out of what is exported), and the loss
    in `compute_losses`. Logs `train/loss`, `val/loss`, `val/rankme`, `val/uniformity`, and with labels `val/knn`.
    """

    option_defaults: ClassVar[TaskOptions] = {**TASK_DEFAULTS, "pretrained": False}
    card_metrics: Mapping[str, str] = MappingProxyType(
        {"knn": "num_labeled", "rankme": "num_samples"}
    )

    ignored_alarms: ClassVar[frozenset[str]] = frozenset()
    """Names of alarms that say nothing of this task."""

    def __init__(
        self,
        backbone: str,
        source: EmbeddingSource = "pooled",
        *,
        normalize: bool = True,
        image_size: ImageSize | None = None,
        fit: Fit | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        """Build the backbone, which starts at random unless weights are given; arguments are EmbeddingTask's."""
        super().__init__(
            backbone, source, normalize=normalize, image_size=image_size, fit=fit, **options
        )
        self.training_parts = nn.ModuleDict()
        self._alarms: set[str] = set()
        self._best_knn = 0.0
        self.train()

    @abstractmethod
    def build_parts(self, data: ImageData | None) -> dict[str, nn.Module]:
        """Make the modules that only training needs, by name; at least one.

        Args:
            data: Data that is trained on, which has read its records; None where one batch is computed anew, by a
                checkpoint.
        """

    @abstractmethod
    def compute_losses(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return sums by name over a batch.

        Args:
            raw: `embedding`, [N, D], not normalized; of the images that `augment_batch` returned in training.
            batch: Images with their target, which says nothing where the data has no labels.
        """

    @property
    def trained_head(self) -> nn.Module:
        """The parts of training; the embedding itself has no layers."""
        return self.training_parts

    def take_labels(self, data: ImageData) -> None:
        """Make the parts of training, once; labels only tell how good the embeddings are."""
        if not self.training_parts:
            # From the seed alone: what else has drawn random numbers differs with the number of processes.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(torch.initial_seed() + 1)
                self.training_parts.update(self.build_parts(data))

    def setup(self, stage: str) -> None:
        """Make the parts of training for validation and test too, whose loss needs them."""
        super().setup(stage)
        if stage in ("validate", "test"):
            self.take_labels(self._require_data())

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Set the weights; those of parts that only training needs are left out of a model that is not trained."""
        if not self.training_parts:
            state_dict = {k: v for k, v in state_dict.items() if not k.startswith(PARTS)}
        return super().load_state_dict(state_dict, *args, **kwargs)

    def restore_parts(self, tensors: Mapping[str, Tensor]) -> None:
        """Make what only training needs, with the weights of the checkpoint that the task was loaded from."""
        if not self.training_parts:
            self.training_parts.update(self.build_parts(None))
            self.load_state_dict(tensors)

    def configure_model(self) -> None:
        """Refuse to shard the weights: gradients of the parts of training would stay on each rank.

        Raises:
            OptionError: The strategy is `fsdp2`, or another that shards over the model.
        """
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise OptionError(
                f"{type(self).__name__} shards no parts that only training needs. Give --trainer.strategy ddp, with "
                "--model.grad_checkpointing true where memory is short."
            )

    def _match_labels(self) -> None:
        """Take any labels: the model has none."""

    def on_predict_start(self) -> None:
        """Refuse `vfm predict`, whose table has labels.

        Raises:
            OptionError: Always; it names the commands that use the model.
        """
        raise OptionError(
            f"{type(self).__name__} gives vectors, and predictions.csv has labels. Embed images by its checkpoint (vfm "
            "embed best.ckpt my_images), or fine-tune it first (--model ClassificationTask --model.weights best.ckpt)."
        )

    def compute_image_losses(self, raw: Raw, batch: Batch) -> Tensor:
        """Return the loss of each image, [N]; by default the mean of its batch, which compares images."""
        total = torch.stack([*self.compute_losses(raw, batch).values()]).sum()
        return (total / len(batch["image"])).expand(len(batch["image"]))

    def compute_eval_loss(self, batch: Batch) -> Tensor:
        """Return the sum of the losses of a batch, as a validation computes them."""
        return self.compute_image_losses(self.compute_raw(batch), batch).sum()

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the `embedding`, [N, D], and the `loss` of each image."""
        raw = self.compute_raw(batch)
        losses = self.compute_image_losses(raw, batch)
        return {OUTPUT: self.head.decode(raw)[OUTPUT], "loss": losses}

    def compute_metrics(self, split: str, predictions: SplitPredictions) -> dict[str, float]:
        """Return loss, RankMe, uniformity, with labels kNN; warn once of each thing that looks wrong."""
        data = self._require_data()
        records = [data.records[split][i] for i in predictions.position]
        metrics, chosen, _ = measure_embeddings(
            predictions.stack(OUTPUT), records, len(data.labels)
        )
        width = predictions.rows[OUTPUT][0].shape[-1]
        for name, text in list_alarms(metrics, width, self._best_knn, len(chosen)).items():
            if name not in self._alarms | self.ignored_alarms:
                rank_zero_warn(text)
                self._alarms.add(name)
        self._best_knn = max(self._best_knn, metrics.get("knn", 0.0))
        return {"loss": float(predictions.stack("loss").mean()), **metrics}

    def write_results(
        self, folder: Path, split: str, predictions: SplitPredictions, more: dict[str, Any]
    ) -> None:
        """Write all metrics of a split, by class and group where there are any, and their page."""
        more = {"alarms": sorted(self._alarms), **more}
        write_pretraining_results(folder, split, predictions, self._require_data(), more)

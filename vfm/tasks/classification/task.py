"""ClassificationTask: one label an image, or several."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack, cast

import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from vfm_runtime.errors import MismatchError, OptionError
from vfm_runtime.tasks.base import Arrays

from vfm.data import ImageData
from vfm.data.auto import open_labels
from vfm.data.detection.base import BoxData
from vfm.data.mixing import Mixing
from vfm.losses import BinaryCrossEntropy, ClassificationLoss, CrossEntropy, Loss
from vfm.losses.classification import encode_one_hot
from vfm.models.heads import ClassificationHead, LinearHead, NeighborsHead, VotingHead
from vfm.models.heads.voting import can_be_solved, list_members
from vfm.preprocess import Fit
from vfm.spec import Spec
from vfm.tasks.base import BaseTask
from vfm.tasks.classification.results import compute_label_metrics, write_label_results
from vfm.tasks.classification.validation import LabelValidation, OutOfFoldValidation
from vfm.tasks.labeled_images import LabeledImages, OpenedImages
from vfm.tasks.labels import ClassWeights, LabelError, compute_class_weights
from vfm.tasks.options import TaskOptions
from vfm.tasks.results import OUT_OF_FOLD, RESULTS_FILE, SCORES_FILE, SplitPredictions
from vfm.training.callbacks import list_callbacks
from vfm.training.optim import Auto
from vfm.training.solved_head import FOLDS, SolvedHead, solve_head
from vfm.types import Batch, Labels, MultiLabels, StepKey, Target, require_target


class ClassificationTask(BaseTask):
    """Adapts a backbone and a head to label images.

    Logs `train/loss`, `val/loss`, `val/accuracy` and `val/macro_f1`, or with `multilabel` `val/mAP` and
    `val/macro_f1`. Validating or testing a checkpoint writes `results.json` and a report beside it.
    """

    monitor = "val/accuracy"
    monitor_mode = "max"
    follows_data_size = True
    calibration_options = (
        *("min_precision", "batch_size"),
        *("group_column", "table", "equal", "rate", "positive"),
    )
    card_metrics = dict.fromkeys(
        ("accuracy", "mAP", "macro_f1", "top5_accuracy", "auroc"), "num_samples"
    )

    def __init__(
        self,
        backbone: str,
        head: ClassificationHead | None = None,
        *,
        image_size: int | None = None,
        fit: Fit | None = None,
        lp_ft: bool | Auto = "auto",
        cache_features: bool = True,
        multilabel: bool = False,
        loss: Loss | None = None,
        class_weights: ClassWeights = None,
        mixing: Mixing = Mixing(),
        **options: Unpack[TaskOptions],
    ) -> None:
        """Build the backbone; the head's layers follow when the labels are known.

        Args:
            backbone: A name of timm, with or without a tag of weights.
            head: Any ClassificationHead, also your own; a LinearHead by default.
            image_size: Side of the square input in pixels; the backbone's own by default.
            fit: How other aspect ratios are met: crop, squash or letterbox; the backbone's own way by default.
            lp_ft: Solve the head on the untouched features before the backbone learns (LP-FT; Kumar et al., 2022); auto
                does so for a LinearHead on few images, unless the backbone starts at random.
            cache_features: Keep the features of a frozen backbone on disk, so that epochs after the first cost next to
                nothing; needs --data.augment none and no mixing.
            multilabel: Whether several labels, or none, may apply to an image; their scores are then independent.
            loss: CrossEntropy by default, with multilabel BinaryCrossEntropy; or any other Loss.
            class_weights: How much each class counts in training: `balanced` makes rare ones count as much as
                common ones; or a number by class name, 1 for classes that are not named.
            mixing: Mixup and CutMix of training batches.
            **options: Options of every task.
        """
        super().__init__(
            backbone,
            head or LinearHead(),
            image_size=image_size,
            fit=fit,
            lp_ft=lp_ft,
            cache_features=cache_features and not (mixing.mixup or mixing.cutmix),
            **options,
        )
        self.kind = "multilabel" if multilabel else "classification"
        cast(ClassificationHead, self.head).multilabel = multilabel
        if multilabel:
            self.monitor = "val/mAP"
        self.criterion = loss or (BinaryCrossEntropy() if multilabel else CrossEntropy())
        self.mixing = mixing
        self._class_weights = class_weights
        self._solved: SolvedHead | None = None
        self._is_solved = False

    def configure_callbacks(self) -> list[Callback]:
        """Decide whether the head will be solved; its checkpoint is then chosen by cross-validation."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self._is_solved = self._can_be_solved()
        if self._is_solved:
            self.monitor = f"{OUT_OF_FOLD}/{'mAP' if self.multilabel else 'accuracy'}"
            return list_callbacks(self.trainer, self, patience=None, ema=None)
        return super().configure_callbacks()

    def _can_be_solved(self) -> bool:
        """Whether the head is a convex problem, on features that do not change; say what keeps it from being one."""
        kind, is_trainable = (
            type(self.head).__name__,
            not isinstance(self.head, NeighborsHead | VotingHead),
        )
        if not self.backbone.frozen and not is_trainable:
            raise OptionError(
                f"{kind} reads features that do not change, but the backbone learns. Give --model.adapt linear."
            )
        if not self.backbone.frozen or not can_be_solved(self.head):
            return False
        plain = type(self.criterion) in (CrossEntropy, BinaryCrossEntropy)
        data = self._require_data()
        obstacles = {
            "--model.mixing": bool(self.mixing.mixup or self.mixing.cutmix),
            "--model.cache_features false": not self._cache_features,
            "--model.head.dropout": any(
                isinstance(head, LinearHead) and head.dropout.p > 0
                for head in list_members(self.head)
            ),
            f"--model.loss {type(self.criterion).__name__}": not plain,
            "--model.loss.label_smoothing": getattr(self.criterion, "label_smoothing", 0) > 0,
            "sharding": isinstance(self.trainer.strategy, ModelParallelStrategy),
        }
        present = [name for name, is_there in obstacles.items() if is_there]
        if data.has_auto_augment:
            data.augment = data.default_augment if present else "none"
        if data.augment != "none":
            present.append(f"--data.augment {data.augment}")
        if present and not is_trainable:
            raise OptionError(
                f"{kind} is fitted on the features of the images once, which does not go with {present[0]}. Leave it "
                "out."
            )
        if present:
            rank_zero_info(
                f"The head is trained by steps, since {', '.join(present)} is set. Without, it is solved: C by "
                "cross-validation, on all images, in seconds."
            )
        return not present

    def count_judged(self, data: ImageData) -> int:
        """Return the number of images in the val split; none choose the checkpoint of a solved head."""
        return 0 if self._is_solved else super().count_judged(data)

    def setup(self, stage: str) -> None:
        """Take the labels from the data; a head that is solved has the drawn val images to learn from too."""
        if stage == "fit" and self._is_solved:
            self._require_data().give_val_back(FOLDS)
            if not self._require_data().records.get("val"):
                self.trainer.limit_val_batches = 0
        super().setup(stage)

    def _resolve_settings(self, data: ImageData) -> None:
        """Put values in the place of each `auto`; a head that is solved has no use for them."""
        if not self._is_solved:
            super()._resolve_settings(data)

    def take_labels(self, data: ImageData) -> None:
        """Make the head's layers, and weigh the classes."""
        if isinstance(data, BoxData):
            raise MismatchError(
                f"{type(self).__name__} labels whole images, but {type(data).__name__} has boxes. "
                "Give --model DetectionTask, or data with labels of images."
            )
        if data.multilabel != self.multilabel:
            kind = "several labels" if data.multilabel else "one label"
            raise LabelError(
                f"The data has {kind} an image, the task has multilabel {self.multilabel}. "
                f"Set --model.multilabel {str(data.multilabel).lower()}, or give other data."
            )
        super().take_labels(data)
        weights = compute_class_weights(self._class_weights, data)
        if isinstance(self.criterion, ClassificationLoss):
            self.criterion.class_weights = weights
        elif weights is not None:
            raise LabelError(
                f"{type(self.criterion).__name__} takes no class_weights, which are {self._class_weights}. Derive it "
                "from vfm.ClassificationLoss, or leave out --model.class_weights."
            )

    def on_fit_start(self) -> None:
        """Bring the class weights to where the model is, before anything learns."""
        criterion = self.criterion
        if isinstance(criterion, ClassificationLoss) and criterion.class_weights is not None:
            criterion.class_weights = criterion.class_weights.to(self.device)
        super().on_fit_start()
        if self._is_solved:
            data = self._require_data()
            self._solved = solve_head(self, data, data.stored["train"])
            # One pass: for the loss of training, the val split where the data states one, and the checkpoints.
            self.trainer.fit_loop.max_epochs = 1

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what the checkpoint says; a head that is solved is solved anew, whatever steps were behind it."""
        super().on_load_checkpoint(checkpoint)
        if self._is_solved and self.trainer.state.fn == TrainerFn.FITTING:
            checkpoint.pop("loops", None)
            checkpoint |= {"optimizer_states": [], "lr_schedulers": []}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch, from which a head that is solved learns nothing more."""
        loss = super().training_step(batch, batch_idx)
        return loss.detach().requires_grad_() if self._is_solved else loss

    def on_train_epoch_start(self) -> None:
        """Log the metrics of the cross-validation, which choose the checkpoint."""
        if self._solved is not None:
            self.log(self.monitor, self._solved.metric, rank_zero_only=False)
            self.log(f"{OUT_OF_FOLD}/loss", self._solved.loss, rank_zero_only=False)

    def configure_optimizers(self) -> Any:
        """AdamW and its schedule; nothing for a head that is solved."""
        return None if self._is_solved else super().configure_optimizers()

    def configure_gradient_clipping(self, *args: Any, **kwargs: Any) -> None:
        """Clip as every task does, where gradients are used."""
        if not self._is_solved:
            super().configure_gradient_clipping(*args, **kwargs)

    def on_fit_end(self) -> None:
        """Write the results of the cross-validation beside the checkpoint."""
        saved = self.trainer.checkpoint_callback
        if self._solved is None or not isinstance(saved, ModelCheckpoint):
            return
        if self.trainer.is_global_zero and saved.best_model_path:
            checkpoint = Path(saved.best_model_path)
            more = {"checkpoint": str(checkpoint), "head": self._solved.description}
            rows = {"scores": list(self._solved.scores), "target": list(self._solved.target)}
            predictions = SplitPredictions(self._solved.position, rows, {})
            data = self._require_data()
            data.records[OUT_OF_FOLD] = data.records["train"]
            self.write_results(checkpoint.parent, OUT_OF_FOLD, predictions, more)
            del data.records[OUT_OF_FOLD]
            np.savez(
                checkpoint.with_name(SCORES_FILE),
                fingerprint=data.fingerprint(),
                position=self._solved.position,
                scores=self._solved.scores.astype(np.float32),
                target=self._solved.target,
            )
            rank_zero_info(f"Results out of fold: {checkpoint.parent / RESULTS_FILE}")

    def augment_batch(self, images: Tensor, target: Target, key: StepKey) -> tuple[Tensor, Target]:
        """Blend the batch's images and labels, as `mixing` says."""
        if not (self.mixing.mixup or self.mixing.cutmix):
            return images, target
        assert isinstance(target, Labels)
        images, shares = self.mixing(images, encode_one_hot(target.label, len(self.labels)), key)
        return images, target._replace(label=shares)

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Return `scores` and `target`, [N, C] or [N], and the `loss` of each image."""
        target = require_target(batch, Labels, self)
        # The data's labels in the order of the model's.
        if isinstance(target, MultiLabels):
            label = torch.empty_like(target.label)
            label[:, self.columns] = target.label
        else:
            label = self.columns[target.label]
        batch = {**batch, "target": target._replace(label=label)}
        raw = self.compute_raw(batch)
        losses = self.criterion.per_image(raw, batch)
        return {"scores": self.head.decode(raw)["scores"], "target": label, "loss": losses}

    def compute_metrics(self, split: str, predictions: SplitPredictions) -> dict[str, float]:
        """Return loss, accuracy or mean average precision, macro F1."""
        metrics = compute_label_metrics(predictions.stack("scores"), predictions.stack("target"))
        return {"loss": float(predictions.stack("loss").mean()), **metrics}

    def write_results(
        self, folder: Path, split: str, predictions: SplitPredictions, more: dict[str, Any]
    ) -> None:
        """Write all metrics of a split, its page, pictures and list of mistakes."""
        write_label_results(folder, split, predictions, self.labels, self._require_data(), more)

    def open_data(self, path: Path, training: Spec) -> LabeledImages:
        """Read a folder or table of labelled images, by the columns of the training's where it has them."""
        data = open_labels(path, training=training, labels=self.labels, multilabel=self.multilabel)
        return LabeledImages.select_evaluation(data, path)

    def open_out_of_fold(self, arrays: Arrays) -> OutOfFoldValidation:
        """Return the scores of training images by heads that had not seen them."""
        return OutOfFoldValidation(
            self.labels, arrays["scores"], arrays["target"], multilabel=self.multilabel
        )

    def open_validation(self, images: OpenedImages) -> LabelValidation:
        """Return images that are judged by accuracy, or mean average precision."""
        return LabelValidation(self.labels, images, multilabel=self.multilabel)

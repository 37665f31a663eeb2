"""Tasks: a backbone and a head with a loss, an optimizer, metrics and checkpoints.

The way of `vfm fit`, from `vfm/cli/training.py`:
1. `data/`: an `ImageData` reads records once; `dataset.py` opens and augments them, `collate` makes a `Batch` with the
   task's `Target`.
2. `BaseTask.setup` takes the labels from the data and makes the head's layers; `training/feature_cache.py` and
   `training/lp_ft.py` go first where they are asked for.
3. `training_step`: `Preprocess.normalize`, `Backbone`, `Head`, and `criterion(raw, batch)`, sums by name.
4. `require_finite` stops a loss that is no number; `training/optim.py` clips gradients, `training/lr_schedule.py` sets
   the learning rate.
5. `evaluate`, `compute_metrics` and `write_results` judge a whole split at once.
6. `CheckpointedModel.on_save_checkpoint` adds all that rebuilds the task; `training/saving.py` writes it.
"""

from vfm.tasks.base import BaseTask
from vfm.tasks.classification.task import ClassificationTask
from vfm.tasks.contrastive.task import ContrastiveTask
from vfm.tasks.detection.task import DetectionTask
from vfm.tasks.distillation.task import DistillationTask
from vfm.tasks.embedding import EmbeddingTask
from vfm.tasks.pretraining.task import PretrainingTask
from vfm.tasks.self_supervised.task import SelfSupervisedTask
from vfm.training.optim import Optim

__all__ = [
    "BaseTask",
    "ClassificationTask",
    "ContrastiveTask",
    "DetectionTask",
    "DistillationTask",
    "EmbeddingTask",
    "Optim",
    "PretrainingTask",
    "SelfSupervisedTask",
]

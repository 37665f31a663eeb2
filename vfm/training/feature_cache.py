"""Feature cache: a frozen backbone gives the same features in every epoch, and is run once."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_info

from vfm.data import ImageData
from vfm.data.feature_dataset import StoredFeatures
from vfm.training.features import Ranks, features_of
from vfm.training.protocols import FeatureModel


def announce(task: FeatureModel, data: ImageData) -> None:
    """Let features take the place of the training and validation images, where that changes no result.

    Args:
        task: Before its loaders are made.
        data: Its `stored` is set; the features themselves come with `store`.
    """
    if not task.backbone.frozen or "maps" in task.head.uses:
        return
    if data.augment != "none":
        rank_zero_info(
            f"The backbone is frozen, but --data.augment {data.augment} shows it other images in every epoch. "
            "With --data.augment none its features are computed once, and later epochs cost next to nothing."
        )
        return
    splits = ["train", "val"] if task.trainer.limit_val_batches else ["train"]
    data.stored = {
        s: StoredFeatures(data.records[s], data.num_targets) for s in splits if data.records.get(s)
    }


def store(task: FeatureModel, data: ImageData) -> None:
    """Give the features that were announced.

    Args:
        task: At the start of training, with its final weights, on its device.
        data: After `announce`.
    """
    for split, waiting in data.stored.items():
        found = split_features(task, data, split)
        waiting.fill(found.arrays, found.skipped)


def split_features(task: FeatureModel, data: ImageData, split: str) -> StoredFeatures:
    """Features of a split that the task's head reads, in the trainer's precision."""
    trainer = task.trainer
    ranks = Ranks(
        trainer.global_rank,
        trainer.world_size,
        trainer.strategy.barrier,
        trainer.strategy.broadcast,
        trainer.precision_plugin.forward_context,
        str(trainer.precision),
    )
    return features_of(
        task.backbone,
        task.preprocess,
        data,
        split,
        task.head.uses,
        ranks=ranks,
        progress=rank_zero_info,
    )

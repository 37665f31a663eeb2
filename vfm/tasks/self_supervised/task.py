"""SelfSupervisedTask: pretraining on images alone, by a method that compares views of each image."""

from __future__ import annotations

import copy
from typing import Any, Unpack

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.embedding import OUTPUT

from vfm.data import ImageData
from vfm.data.multi_crop import MultiCrop
from vfm.models.backbone import ImageSize
from vfm.models.heads.embedding import EmbeddingSource
from vfm.preprocess import Fit
from vfm.tasks.options import TaskOptions
from vfm.tasks.pretraining.task import PretrainingTask
from vfm.tasks.self_supervised.methods import EmbeddedViews, SelfSupervisedMethod, VISReg
from vfm.training.randomness import draw_by, draw_by_key
from vfm.types import Batch, Raw, StepKey


class SelfSupervisedTask(PretrainingTask):
    """Learns a backbone from views of images that need no labels.

    `best.ckpt` is that of the lowest val/loss. With VISReg and LeJEPA it goes with the worth of the features; with
    SwAV, DINO and MAE it does not: take `last.ckpt`, or watch val/knn and val/rankme.
    """

    def __init__(
        self,
        backbone: str,
        source: EmbeddingSource = "pooled",
        *,
        method: SelfSupervisedMethod | None = None,
        views: MultiCrop = MultiCrop(),
        anchor: float = 0.0,
        normalize: bool = True,
        image_size: ImageSize | None = None,
        fit: Fit | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        """Build the backbone, which starts at random unless weights are given.

        Args:
            backbone: A name of timm, with or without a tag of weights.
            source: Part of the features that is compared, and that the vectors are made of.
            method: VISReg by default, or LeJEPA, SwAV, DINO, MAE, or any SelfSupervisedMethod.
            views: Crops of each image that are compared.
            anchor: Weight that holds features near those of the weights that training starts from, 1 less their cosine,
                so that what they know is not lost; 0 without.
            normalize: Divide each vector of the finished model by its L2 norm.
            image_size: Side of the square input in pixels; the backbone's own by default.
            fit: How other aspect ratios are met: crop, squash or letterbox; the backbone's own way by default.
            **options: Options of every task.

        Raises:
            OptionError: anchor lies outside its range, or there are no weights to hold on to.
        """
        super().__init__(
            backbone, source, normalize=normalize, image_size=image_size, fit=fit, **options
        )
        if not 0 <= anchor <= 100:
            raise OptionError(f"anchor is {anchor}. Give a number from 0 to 100 (--model.anchor).")
        self.anchor = anchor
        self.views = views
        # Not submodules: the method is a part of training, and the start is in no checkpoint.
        self.__dict__["method"] = method or VISReg()
        self.__dict__["start"] = None

    def setup(self, stage: str) -> None:
        """Leave the images as they are where augmentation is left to `auto`: the views are augmentation enough."""
        data = self._require_data()
        if data.has_auto_augment:
            data.augment = "none"
        super().setup(stage)

    def build_parts(self, data: ImageData | None) -> dict[str, nn.Module]:
        """Make the layers of the method, and keep the start where it is an anchor.

        Raises:
            OptionError: There are no weights to hold on to, or the backbone does not take the small views.
        """
        method: SelfSupervisedMethod = self.__dict__["method"]
        if self.anchor:
            # Of a checkpoint the backbone is no longer the one that training started from.
            origin = type(self)(**self.__dict__["_init_args"]) if self.source else self
            if origin.backbone.report is None:
                raise OptionError(
                    f"anchor is {self.anchor}, and the backbone starts at random, where nothing is known that could be "
                    "held. Give weights (--model.weights FILE or --model.pretrained true), or leave --model.anchor out."
                )
            self.__dict__["start"] = copy.deepcopy(origin.backbone).eval().requires_grad_(False)
        self._try_small_views()
        method.prepare(self.backbone)
        rank_zero_info(
            f"{type(method).__name__} on {self.views.num_global} large and {self.views.num_local} small views of each "
            "image."
        )
        return {"method": method}

    def _try_small_views(self) -> None:
        """Refuse small views of a size that the backbone does not take."""
        side = self.views.local_size
        if side is None or not self.views.num_local:
            return
        was_training = self.backbone.training
        try:
            with torch.no_grad():
                self.backbone.eval()(torch.zeros(1, 3, side, side))
        except (AssertionError, RuntimeError) as error:
            raise OptionError(
                f"'{self.backbone.name}' does not take small views of {side} pixels: {error} Leave "
                "--model.views.local_size out, or for a ViT give --model.backbone_args '{\"dynamic_img_size\": true}'."
            ) from error
        finally:
            self.backbone.train(was_training)

    @draw_by_key
    def compute_train_losses(self, batch: Batch, key: StepKey) -> dict[str, Tensor]:
        """Return the sums of the method's losses on views of this epoch, and of the distance to the start."""
        return self._compare_views(batch, key[:2])

    def compute_losses(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return the same sums on views that are the same every time."""
        with draw_by(batch["index"].tolist(), self.device):
            return self._compare_views(batch, (0,))

    def _embed(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=self._layout)
        vectors: Tensor = self.head(self.backbone(images))[OUTPUT]
        return vectors

    def _compare_views(self, batch: Batch, key: tuple[int, ...]) -> dict[str, Tensor]:
        """Return sums over a batch, on the views that a key and the indices of the images say."""
        images = self.preprocess.normalize(batch["image"])
        keys = [(*key, index) for index in batch["index"].tolist()]
        views = EmbeddedViews(self.views.cut(images, keys), keys, self._embed)
        method: SelfSupervisedMethod = self.__dict__["method"]
        losses = dict(method.compute(views, self.backbone))
        start = self.__dict__["start"]
        if start is not None:
            large = views.large.flatten(0, 1)
            with torch.no_grad():
                reference = self.head(start.to(large.device)(views.images.large))[OUTPUT]
            losses["anchor"] = self.anchor * (1 - F.cosine_similarity(large, reference)).mean()
        return {name: value * views.count for name, value in losses.items()}

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Let the method follow the step."""
        method: SelfSupervisedMethod = self.__dict__["method"]
        method.update(self.backbone)

"""Embedding task: a backbone without a trained head, whose answer for an image is a vector."""

from __future__ import annotations

from typing import Any, ClassVar, NoReturn, Unpack

from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.embedding import OUTPUT, EmbeddingSpec

from vfm.models.backbone import ImageSize
from vfm.models.heads.embedding import EmbeddingHead, EmbeddingSource
from vfm.preprocess import Fit
from vfm.tasks.base import BaseTask
from vfm.tasks.options import TASK_DEFAULTS, TaskOptions
from vfm.training.embeddings import describe_embedding


class EmbeddingTask(BaseTask):
    """Embeds images by a frozen backbone; it is exported and asked, and never trained."""

    kind = "embedding"
    pipeline_tag = "image-feature-extraction"
    reference_refusal = (
        "--reference is fitted on the images of a training, which a bare backbone has not had."
    )

    option_defaults: ClassVar[TaskOptions] = {**TASK_DEFAULTS, "adapt": "linear"}

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
        """Build the backbone.

        Args:
            backbone: A name of timm, with or without a tag of weights.
            source: Part of the features that the vector is made of: pooled, class_token, patches or layers.
            normalize: Divide each vector by its L2 norm.
            image_size: Side of the square input in pixels; the backbone's own by default.
            fit: How other aspect ratios are met: crop, squash or letterbox; the backbone's own way by default.
            **options: Options of every task.
        """
        head = EmbeddingHead(source, normalize=normalize)
        # The layers that pool stay, so that another source can be chosen later.
        head.uses = tuple(dict.fromkeys(("pooled", *head.uses)))
        super().__init__(backbone, head, image_size=image_size, fit=fit, **options)
        self.head.prepare(self.backbone.info, (OUTPUT,))
        self.eval()

    def build_embedding(self, source: str | None, *, normalize: bool) -> EmbeddingHead:
        """Choose another vector, which is then the task's own answer; None leaves the source as it is."""
        assert isinstance(self.head, EmbeddingHead)
        head = super().build_embedding(source or self.head.source, normalize=normalize)
        self.head.source, self.head.normalize = head.source, normalize
        self.head.uses = tuple(dict.fromkeys(("pooled", *head.uses)))
        return self.head

    def describe_embedding(self, source: str | None, *, normalize: bool) -> EmbeddingSpec:
        """Return what the task embeds by, another vector where one was asked for."""
        head = self.build_embedding(source, normalize=normalize)
        return describe_embedding(self.backbone, self.preprocess, head)

    def _refuse_training(self, *_: Any, **__: Any) -> NoReturn:
        raise OptionError(
            "EmbeddingTask gives the features of a backbone, and has nothing to train or to test. Take another task, "
            "such as --model ClassificationTask --model.adapt linear."
        )

    # Any, so that a task that derives from this one and does train may state their types.
    _refused: Any = _refuse_training
    take_labels = evaluate = compute_metrics = write_results = _refused

"""DistillationTask: knowledge distillation of any teacher, also an ONNX bundle, into any backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from vfm_runtime.errors import OptionError

from vfm.data import ImageData
from vfm.losses.distillation import DistillationLoss, FeatureDistillation
from vfm.models.backbone import ImageSize
from vfm.models.heads.embedding import EmbeddingHead, EmbeddingSource
from vfm.models.licenses import describe_license
from vfm.preprocess import Fit
from vfm.tasks.distillation.cache import TeacherCache
from vfm.tasks.distillation.teacher import Teacher, open_teacher
from vfm.tasks.options import TaskOptions
from vfm.tasks.pretraining.task import PretrainingTask
from vfm.training.checkpoint import KEY
from vfm.types import Batch, Raw


class DistillationTask(PretrainingTask):
    """Teaches a student backbone what a teacher makes of images, which need no labels.

    The teacher sees what the student sees, with the same augmentation. It is not in the checkpoint, which has its name,
    its checksum and its licences: what limits the teacher limits the student.
    """

    def __init__(
        self,
        backbone: str,
        source: EmbeddingSource = "pooled",
        *,
        teacher: str,
        teacher_weights: Path | None = None,
        teacher_size: ImageSize | None = None,
        loss: DistillationLoss | None = None,
        cache_views: int = 0,
        normalize: bool = True,
        image_size: ImageSize | None = None,
        fit: Fit | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        """Build the student, which starts at random unless weights are given.

        Args:
            backbone: The student, a name of timm, with or without a tag of weights.
            source: Part of the student's features that its vectors are made of.
            teacher: Name of a backbone in timm, a checkpoint of vfm, or the folder of an ONNX bundle.
            teacher_weights: File of weights of a teacher by name, in place of timm's.
            teacher_size: Side of the teacher's input in pixels, by name; its own by default. What the student sees is
                brought to this size.
            loss: FeatureDistillation by default; LogitDistillation for teachers with labels, RelationDistillation, or
                any DistillationLoss.
            cache_views: Views of each image, K: the augmentation of epoch e is that of epoch e modulo K, and the
                teacher's outputs are kept on disk, so that after K epochs it does not run any more. 0: a new view in
                every epoch, and nothing is kept.
            normalize: Divide each vector of the finished student by its L2 norm.
            image_size: Side of the student's square input in pixels; the backbone's own by default.
            fit: How other aspect ratios are met: crop, squash or letterbox; the backbone's own way by default.
            **options: Options of every task.

        Raises:
            OptionError: cache_views is below 0.
        """
        super().__init__(
            backbone, source, normalize=normalize, image_size=image_size, fit=fit, **options
        )
        if cache_views < 0:
            raise OptionError(
                f"cache_views is {cache_views}. Give the number of views of each image, or 0 to keep nothing "
                "(--model.cache_views)."
            )
        self.cache_views = cache_views
        # Not submodules: the layers of the loss are a part of training, and the teacher is in no checkpoint.
        self.__dict__["criterion"] = loss or FeatureDistillation()
        self.__dict__["teacher"] = None
        self._teacher_options: dict[str, Any] = {
            "name": teacher,
            "weights": teacher_weights,
            "image_size": teacher_size,
        }
        self._teacher_entry: dict[str, Any] | None = None
        self._caches: dict[str, TeacherCache] = {}
        assert isinstance(self.head, EmbeddingHead)
        self.head.gives_tokens = True

    def setup(self, stage: str) -> None:
        """Ask the data for as many views as are kept."""
        data = self._require_data()
        if self.cache_views and data.num_views is None:
            raise OptionError(
                f"cache_views is {self.cache_views}, and {type(data).__name__} augments images in a way that is new in "
                "every epoch. Set --model.cache_views 0."
            )
        if data.num_views is not None:
            data.num_views = self.cache_views
        super().setup(stage)

    def build_parts(self, data: ImageData | None) -> dict[str, nn.Module]:
        """Open the teacher, and make the layers between student and teacher."""
        teacher = open_teacher(**self._teacher_options)
        loss: DistillationLoss = self.__dict__["criterion"]
        teacher.require(loss.uses, type(loss).__name__)
        self.__dict__["teacher"] = teacher
        self._teacher_entry = {
            "name": teacher.name,
            "checksum": teacher.checksum,
            "licenses": teacher.licenses,
        }
        for part, license in teacher.licenses.items():
            if notice := describe_license(part, license):
                rank_zero_warn(f"{notice} It holds for the student too.")
        if teacher.size != self.preprocess.size:
            rank_zero_info(
                f"The student sees {self.preprocess.size[0]} x {self.preprocess.size[1]} pixels; the teacher is given "
                f"the same, brought to {teacher.size[0]} x {teacher.size[1]}."
            )
        loss.prepare(self.backbone.info, {n: shape[-1] for n, shape in teacher.shapes.items()})
        return {"loss": loss}

    def compute_losses(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return the sums of the loss by name, of a student's outputs against the teacher's for the same images."""
        loss: DistillationLoss = self.__dict__["criterion"]
        return dict(loss({**raw, **self._ask_teacher(batch)}, batch))

    def compute_image_losses(self, raw: Raw, batch: Batch) -> Tensor:
        """Return the loss of each image, [N]."""
        loss: DistillationLoss = self.__dict__["criterion"]
        return loss.per_image({**raw, **self._ask_teacher(batch)}, batch)

    def _ask_teacher(self, batch: Batch) -> Raw:
        """Return what the teacher gives for a batch, from the disk where it is there, by names for the loss."""
        teacher: Teacher = self.__dict__["teacher"]
        loss: DistillationLoss = self.__dict__["criterion"]
        pixels = batch["image"]
        if not self.cache_views or self._trainer is None:
            outputs = teacher.answer(pixels)
            return {f"teacher_{name}": outputs[name] for name in loss.uses}
        trainer = self.trainer
        split = "train" if trainer.training else "test" if trainer.testing else "val"
        view = self.current_epoch % self.cache_views if split == "train" else 0
        index = batch["index"].cpu().numpy()
        cache = self._open_cache(split)
        cached = cache.read(view, index)
        if cached is None:
            outputs = teacher.answer(pixels)
            cache.write(view, index, {name: outputs[name] for name in loss.uses})
            cached = cache.read(view, index)  # as all later epochs will see it
            assert cached is not None
        return {f"teacher_{name}": values.to(pixels.device) for name, values in cached.items()}

    def _open_cache(self, split: str) -> TeacherCache:
        """Return the outputs that are kept for a split."""
        if split not in self._caches:
            data, teacher = self._require_data(), self.__dict__["teacher"]
            is_train = split == "train"
            key = [
                teacher.checksum,
                teacher.size,
                data.hash_split(split),
                self.preprocess.to_dict(),
                sorted(self.__dict__["criterion"].uses),
                [repr(data.augment), data.seed, self.cache_views] if is_train else None,
            ]
            shapes = {name: teacher.shapes[name] for name in self.__dict__["criterion"].uses}
            views = self.cache_views if is_train else 1
            count = len(data.records[split])
            self._caches[split] = TeacherCache(key, shapes, views=views, count=count)
        return self._caches[split]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is known of the teacher."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[KEY]["teacher"] = self._teacher_entry

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take over what the checkpoint says of the teacher; warn where another one goes on.

        Raises:
            CheckpointError: The checkpoint does not fit the task.
        """
        super().on_load_checkpoint(checkpoint)
        stored = checkpoint[KEY].get("teacher")
        if self._teacher_entry is None:
            self._teacher_entry = stored
        elif stored and stored["checksum"] != self._teacher_entry["checksum"]:
            rank_zero_warn(
                f"The checkpoint was taught by {stored['name']} ({stored['checksum']}), and now "
                f"{self._teacher_entry['name']} ({self._teacher_entry['checksum']}) teaches: losses before and after "
                "cannot be compared."
            )
            self._teacher_entry["licenses"] |= stored["licenses"]

"""ContrastiveTask: an image tower and a text tower whose vectors meet, learned from images with texts or labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, Unpack

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor, nn
from vfm_runtime.errors import DataError, OptionError
from vfm_runtime.tasks.embedding import OUTPUT, EmbeddingSpec
from vfm_runtime.text import TEXT_OUTPUT
from vfm_runtime.zero_shot import TEMPLATES, fit_zero_shot, make_prompts

from vfm.data import ImageData
from vfm.data.dataset import sample_seed
from vfm.data.records import Record, list_labels
from vfm.losses import ContrastiveLoss, UniCLLoss
from vfm.losses.contrastive import TEXT_ID
from vfm.models.backbone import ImageSize
from vfm.models.heads.embedding import IMAGE_TOWER, EmbeddingHead, ProjectionHead
from vfm.models.text import ProjectedTextTower, SmallTextTower, TextTower
from vfm.preprocess import Fit
from vfm.tasks.base import BaseTask
from vfm.tasks.contrastive.results import judge_pairs, write_contrastive_results
from vfm.tasks.options import TASK_DEFAULTS, TaskOptions
from vfm.tasks.pretraining.task import PARTS, PretrainingTask
from vfm.tasks.results import SplitPredictions
from vfm.training.checkpoint import KEY, CheckpointError, read_model_file
from vfm.training.embeddings import describe_embedding
from vfm.types import Batch, Labels, Raw

Freeze = Literal["none", "image", "text"]
"""Tower that stays as it is; its projection learns all the same."""

_TEXT = "text"
_NUM_COUNTED = 10_000
_BATCH = 256


class ContrastiveTask(PretrainingTask):
    """Learns an image tower and a text tower from images with texts, with labels, or with both.

    A label becomes a text in one of the templates, another from epoch to epoch; a caption goes before it. The
    checkpoint answers words: `vfm classify --labels`, `vfm embed` and `vfm search --text`, and so does its bundle.

    Logs besides what every pretraining logs `val/accuracy`, zero-shot, where the data has labels, and where it has
    texts the recall of texts by images and of images by texts.
    """

    option_defaults: ClassVar[TaskOptions] = {**TASK_DEFAULTS, "pretrained": False}
    pipeline_tag = "zero-shot-image-classification"
    card_metrics: Mapping[str, str] = {"accuracy": "num_labeled", "knn": "num_labeled"}
    reference_refusal = (
        "--reference is of a model that labels, and this one compares images with any words."
    )

    # Images of one label are to have one vector, so that there are as many directions as labels.
    ignored_alarms = frozenset({"low rank"})
    _freeze: Freeze = "none"

    def __init__(
        self,
        backbone: str,
        text: TextTower | None = None,
        *,
        loss: ContrastiveLoss | None = None,
        dim: int = 256,
        freeze: Freeze = "none",
        templates: list[str] | Path | None = None,
        eval_templates: list[str] | None = None,
        image_size: ImageSize | None = None,
        fit: Fit | None = None,
        **options: Unpack[TaskOptions],
    ) -> None:
        """Build the image tower; the text tower follows when the texts are known.

        Args:
            backbone: A name of timm, with or without a tag of weights.
            text: Text tower: SmallTextTower by default, EncoderTextTower for a text encoder of a folder,
                OpenClipTextTower for one of open_clip, or any other TextTower.
            loss: UniCLLoss by default, CLIPLoss, SigLIPLoss, or any other ContrastiveLoss.
            dim: Numbers of the vectors that images and texts share.
            freeze: Tower that stays as it is: none; image, as LiT has it, whose features are then computed once where
                --data.augment is none; or text. The layers that project both still learn.
            templates: Texts that labels stand in, in place of {}, or a file with one a line; by default those that
                zero-shot asks by.
            eval_templates: Texts that the labels of the val split stand in; by default those of `vfm classify`.
            image_size: Side of the square input in pixels; the backbone's own by default.
            fit: How other aspect ratios are met: crop, squash or letterbox; the backbone's own way by default.
            **options: Options of every task.

        Raises:
            OptionError: An argument lies outside its range, or contradicts another.
        """
        if freeze not in ("none", "image", "text"):
            raise OptionError(f"freeze is '{freeze}'. Choices: none, image, text (--model.freeze).")
        if freeze == "image":
            if options.get("adapt", "full") not in ("full", "linear"):
                raise OptionError(
                    f"freeze is image, and adapt {options['adapt']} says which weights of the image tower learn. Leave "
                    "one of them out (--model.freeze, --model.adapt)."
                )
            options = {**options, "adapt": "linear"}
        if dim < 1:
            raise OptionError(f"dim is {dim}. Give 1 or more (--model.dim).")
        super().__init__(backbone, image_size=image_size, fit=fit, **options)
        self.head = ProjectionHead(dim)
        self.head.prepare(self.backbone.info, (OUTPUT,))
        self.criterion: ContrastiveLoss = loss or UniCLLoss()
        self.dim, self._freeze = dim, freeze
        self._cache_features = freeze == "image"
        # Not a submodule: it becomes one when its layers are there.
        self.__dict__["_tower"] = text or SmallTextTower()
        self._templates = templates
        self._eval_templates = eval_templates or list(TEMPLATES)
        self._texts_by_label: list[list[str]] = []
        self._prompts: dict[str, list[str]] = {}
        self._class_vectors: NDArray[np.float32] | None = None

    @property
    def text_tower(self) -> ProjectedTextTower:
        """The text tower, whose layers are there once a training has begun."""
        if _TEXT not in self.training_parts:
            self.require_trained()
            raise CheckpointError(
                f"{type(self).__name__} has no text tower before it is trained. Load a checkpoint of it."
            )
        tower = self.training_parts[_TEXT]
        assert isinstance(tower, ProjectedTextTower)
        return tower

    @property
    def text_model(self) -> Self:
        """The task itself, which embeds texts."""
        return self

    @property
    def scale(self) -> float:
        """What cosines of images and texts are multiplied by to be logits."""
        return float(self.criterion.log_scale.detach().exp())

    @property
    def bias(self) -> float | None:
        """What is then added, where each label has a probability of its own."""
        bias = self.criterion.bias
        return None if bias is None else float(bias.detach())

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, float32 [M, D], of norm 1."""
        parts = []
        for start in range(0, len(texts), _BATCH):
            tokens = self.text_tower.tower.tokenize(texts[start : start + _BATCH])
            parts.append(self.text_tower(tokens)[TEXT_OUTPUT].cpu().numpy())
        return np.concatenate(parts)

    def build_parts(self, data: ImageData | None) -> dict[str, nn.Module]:
        """Make the text tower, with a tokenizer of the texts of the training where it has none."""
        tower: TextTower = self.__dict__["_tower"]
        assert data is not None  # of a checkpoint the text tower is there
        prompts = (text for texts in self._texts_by_label for text in texts)
        asked = (text for texts in self._prompts.values() for text in texts)
        captions = (text for record in data.records["train"] for text in record.texts)
        start = self._find_start()
        if start is None:
            tower.build([*prompts, *asked, *captions])
            return {_TEXT: self._project(tower)}
        tower.restore(start[KEY][_TEXT])
        parts = nn.ModuleDict({_TEXT: self._project(tower)})
        for prefix, module in (
            (PARTS, parts),
            ("head.", self.head),
            ("criterion.", self.criterion),
        ):
            tensors = start["state_dict"]
            module.load_state_dict(
                {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            )
        rank_zero_info(
            "The text tower, projections and temperature go on from the same checkpoint."
        )
        return {_TEXT: parts[_TEXT]}

    def _find_start(self) -> dict[str, Any] | None:
        """Read the checkpoint that --model.weights names, where its text tower is of the same kind as this one."""
        path = self.__dict__["_init_args"]["weights"]
        if path is None or Path(path).suffix != ".ckpt":
            return None
        content = read_model_file(path)
        model = content[KEY]["model"]
        if _TEXT not in content[KEY]:
            return None
        current, names = self.spec["init_args"], ("text", "loss", "dim")
        if different := [n for n in names if model["init_args"].get(n) != current[n]]:
            rank_zero_warn(
                f"Of {path} the image tower is taken alone: {', '.join(different)} of its training differ from those "
                "of this one, so that its text tower does not fit. Give the same --model.text, --model.loss and "
                "--model.dim to go on with both."
            )
            return None
        return content

    def _project(self, tower: TextTower) -> ProjectedTextTower:
        projected = ProjectedTextTower(tower)
        projected.prepare(self.dim)
        if self._freeze == "text":
            tower.requires_grad_(False).eval()
        return projected

    @property
    def trained_head(self) -> nn.Module:
        """Both projections, the text tower, temperature and bias."""
        return nn.ModuleList([self.head, self.training_parts, self.criterion])

    def train(self, mode: bool = True) -> Self:
        """Switch to training mode; a frozen text tower drops nothing."""
        super().train(mode)
        if self._freeze == "text" and _TEXT in self.training_parts:
            self.text_tower.tower.eval()
        return self

    def take_labels(self, data: ImageData) -> None:
        """Make texts of the labels, refuse data that nothing can be contrasted in, and make the text tower."""
        self._write_prompts(data)
        records = data.records.get("train", [])
        if data.multilabel:
            raise DataError(
                f"{type(self).__name__} takes one label an image, and {type(data).__name__} gives several. Write the "
                "labels of an image into a text: --data PairData."
            )
        labels = {label for record in records for label in list_labels(record)}
        captions = {text for record in records for text in record.texts}
        if records and len(labels) + len(captions) < 2:
            only = next(iter(captions), None) or (data.labels[min(labels)] if labels else "none")
            raise DataError(
                f"All {len(records)} training images have one text, '{only}': there is nothing to contrast. Give "
                "images with different texts or labels."
            )
        if data.batch_size < 2:
            raise OptionError(
                f"The batch size is {data.batch_size}, and each image is compared with the others of its batch. Give 2 "
                "or more, better hundreds (--data.batch_size)."
            )
        is_new = not self.training_parts
        super().take_labels(data)
        data.count_tokens = self.count_tokens
        if is_new and captions:
            some = sorted(captions)[:: max(1, len(captions) // _NUM_COUNTED)]
            tower = self.text_tower.tower
            if count := tower.count_cut(some):
                rank_zero_warn(
                    f"{count} of {len(some)} texts are longer than the {tower.text_spec.length} tokens of the text "
                    "tower, and are cut. Raise --model.text.context to have them whole."
                )
            learning = sum(p.numel() for p in self.text_tower.parameters() if p.requires_grad)
            rank_zero_info(f"Text tower: {learning:,} weights learn.")

    def count_tokens(self, records: Sequence[Record]) -> NDArray[np.int64]:
        """Return how many tokens the longest text of each image takes, [N]: of its captions, or else of its label."""
        tower = self.text_tower.tower
        of_label = [int(tower.count_tokens(texts).max()) for texts in self._texts_by_label]
        of_text = iter(tower.count_tokens([text for record in records for text in record.texts]))
        return np.array(
            [
                max(islice(of_text, len(record.texts)), default=0)
                or of_label[list_labels(record)[0]]
                for record in records
            ]
        )

    def _write_prompts(self, data: ImageData) -> None:
        """Make the texts of each label, for training and for validation."""
        templates = self._templates if self._templates is not None else list(TEMPLATES)
        if isinstance(templates, str | Path):
            templates = read_templates(Path(templates))
            # The file need not be there when the checkpoint is asked.
            self._templates = self.__dict__["_init_args"]["templates"] = templates
        names = [label.replace("_", " ") for label in data.labels]
        self._texts_by_label, self._prompts = [], {}
        if len(names) > 1:
            self._texts_by_label = [*make_prompts(names, templates).values()]
            self._prompts = make_prompts(names, self._eval_templates)
        elif names:
            self._texts_by_label = [[template.replace("{}", names[0]) for template in templates]]

    def list_texts(self, batch: Batch) -> list[str]:
        """Return a text for each image of a batch: its caption, or else its label in a template."""
        captions = batch.get("texts") or [""] * len(batch["image"])
        target, texts = batch["target"], []
        assert isinstance(target, Labels)
        rows = zip(captions, target.label.tolist(), batch["index"].tolist(), strict=True)
        for caption, label, index in rows:
            if not caption:
                choices = self._texts_by_label[label]
                seed = self._require_data().seed
                drawn = sample_seed(seed, self.current_epoch, index) >> 32 if self.training else 0
                caption = choices[drawn % len(choices)]
            texts.append(caption)
        return texts

    def embed_pairs(self, raw: Raw, batch: Batch) -> Raw:
        """Return the vectors of the images of a batch, as `raw` has them, with those of their texts."""
        texts = self.list_texts(batch)
        # Equal texts, as templates give many, go through the text tower once.
        unique = {text: position for position, text in enumerate(dict.fromkeys(texts))}
        vectors = self.text_tower(self.text_tower.tower.tokenize([*unique]))[TEXT_OUTPUT]
        index = torch.tensor([unique[text] for text in texts], device=self.device)
        numbers = torch.tensor([number_text(text) for text in texts], device=self.device)
        return {OUTPUT: raw[OUTPUT], TEXT_OUTPUT: vectors[index], TEXT_ID: numbers}

    def compute_losses(self, raw: Raw, batch: Batch) -> dict[str, Tensor]:
        """Return the sums of the loss over the pairs of this rank."""
        losses: dict[str, Tensor] = self.criterion(self.embed_pairs(raw, batch), batch)
        return losses

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch; one without a readable image still takes part in that of the other ranks."""
        batch = {**batch, "texts": self.list_texts(batch)}
        if len(batch["image"]) or self.trainer.world_size == 1:
            return super().training_step(batch, batch_idx)
        nothing = super().training_step(batch, batch_idx)
        rows = nothing.expand(0, self.dim)
        numbers = torch.zeros(0, dtype=torch.int64, device=self.device)
        raw = {OUTPUT: rows, TEXT_OUTPUT: rows, TEXT_ID: numbers}
        return nothing + torch.stack([*self.criterion(raw, batch).values()]).sum()

    def on_validation_epoch_start(self) -> None:
        """Embed the labels of the data, on every rank: where weights are spread over ranks, all have to take part."""
        super().on_validation_epoch_start()
        self._embed_labels()

    def on_test_epoch_start(self) -> None:
        """Embed the labels of the data."""
        super().on_test_epoch_start()
        self._embed_labels()

    def _embed_labels(self) -> None:
        self._write_prompts(self._require_data())
        self._class_vectors = fit_zero_shot(self, self._prompts).vectors if self._prompts else None

    def evaluate(self, batch: Batch) -> dict[str, Tensor]:
        """Return the vectors of images and texts, [N, D], the number of each text, and the loss of each image."""
        raw = self.embed_pairs(self.compute_raw(batch), batch)
        total = torch.stack([*self.criterion(raw, batch).values()]).sum()
        captions = batch.get("texts") or [""] * len(batch["image"])
        return {
            OUTPUT: self.head.decode(raw)[OUTPUT],
            TEXT_OUTPUT: raw[TEXT_OUTPUT],
            TEXT_ID: raw[TEXT_ID],
            "captioned": torch.tensor([bool(caption) for caption in captions]),
            # Of a batch alone, whose size it depends on.
            "loss": (total / len(captions)).expand(len(captions)),
        }

    def compute_metrics(self, split: str, predictions: SplitPredictions) -> dict[str, float]:
        """Return loss, zero-shot accuracy, recall at 1, and what every pretraining measures."""
        metrics = super().compute_metrics(split, predictions)
        records = [self._require_data().records[split][i] for i in predictions.position]
        judged = judge_pairs(predictions, records, self._class_vectors)
        if len(judged.truth):
            metrics["accuracy"] = float((judged.answer == judged.truth).mean())
        for direction, recall in judged.recalls.items():
            metrics[f"{direction}_recall_at_1"] = recall.at[1]
        return metrics

    def write_results(
        self, folder: Path, split: str, predictions: SplitPredictions, more: dict[str, Any]
    ) -> None:
        """Write all metrics of a split, and their page."""
        more = {"alarms": sorted(self._alarms), "templates": self._eval_templates, **more}
        data = self._require_data()
        write_contrastive_results(folder, split, predictions, data, self._class_vectors, more)

    def build_embedding(self, source: str | None, *, normalize: bool) -> EmbeddingHead:
        """Return the image tower, whose vectors can be compared with words; or by a source features of the backbone."""
        if source in (None, IMAGE_TOWER) and normalize:
            assert isinstance(self.head, EmbeddingHead)
            return self.head
        return BaseTask.build_embedding(self, source, normalize=normalize)

    def describe_embedding(self, source: str | None, *, normalize: bool) -> EmbeddingSpec:
        """Return what the exported graph embeds by: the image tower.

        Raises:
            OptionError: Another vector was asked for.
        """
        if source not in (None, IMAGE_TOWER) or not normalize:
            raise OptionError(
                "The image tower gives one vector, of norm 1, which is compared with words. Leave --embedding and "
                "--normalize out; for other vectors take the backbone: vfm export NAME --base best.ckpt."
            )
        head = self.build_embedding(source, normalize=normalize)
        return describe_embedding(self.backbone, self.preprocess, head)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add tokenizer and sizes of the text tower to what rebuilds the task."""
        super().on_save_checkpoint(checkpoint)
        if self.training_parts:
            checkpoint[KEY][_TEXT] = self.text_tower.tower.describe()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the text tower of the checkpoint, whatever texts there are now."""
        super().on_load_checkpoint(checkpoint)
        entry = checkpoint[KEY].get(_TEXT)
        if entry is None or (self.training_parts and self.text_tower.tower.describe() == entry):
            return
        tower: TextTower = self.__dict__["_tower"]
        tower.restore(entry)
        self.training_parts[_TEXT] = self._project(tower)


def number_text(text: str) -> int:
    """Return a number of a text, int64, the same on every rank and machine."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def read_templates(path: Path) -> list[str]:
    """Read templates, one a line; empty lines and those that begin with # are passed over.

    Raises:
        DataError: There is no such file, or it holds none.
    """
    if not path.is_file():
        raise DataError(
            f"There is no file of templates {path}. Give a list, or a file with one a line, such as "
            "'a photo of a {}.' (--model.templates)."
        )
    lines = map(str.strip, path.read_text(encoding="utf-8").splitlines())
    if templates := [line for line in lines if line and not line.startswith("#")]:
        return templates
    raise DataError(f"{path} holds no template. Write one a line, such as 'a photo of a {{}}.'")

"""Pair of an image tower and a text tower (CLIP, SigLIP): the models of open_clip."""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.errors import DataError, MissingPackageError, OptionError, suggest
from vfm_runtime.media.image import ImageSource
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.embedding import OUTPUT, EmbeddingSpec, EmbeddingType
from vfm_runtime.text import TEXT_OUTPUT, TOKENS

from vfm.models.heads.embedding import IMAGE_TOWER
from vfm.models.tensors import compute_checksum
from vfm.preprocess import Fit, Preprocess
from vfm.tasks.predictor import run_torch

PREFIX = "open_clip:"
"""Begins the names of open_clip's models, such as `open_clip:ViT-B-32/laion2b_s34b_b79k`."""


class PairImageTower(nn.Module):
    """The image tower of a pair: pixels, uint8 [N, h, w, 3], to vectors of norm 1, as its bundle has it."""

    def __init__(self, visual: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.visual = visual
        self.preprocess = preprocess

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Return `embedding`, float32 [N, D]."""
        vectors = self.visual(self.preprocess.normalize(pixels))
        return {OUTPUT: nn.functional.normalize(vectors.float(), dim=-1)}


class PairTextTower(nn.Module):
    """The text tower of a pair: tokens, int64 [N, length], to vectors of norm 1, as its bundle has it."""

    def __init__(self, pair: Any) -> None:
        super().__init__()
        # The parts alone that texts go through: those of images would be counted, and exported, with them.
        self.pair = copy.copy(pair)
        self.pair._modules = {k: v for k, v in pair._modules.items() if k != "visual"}

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return `text_embedding`, float32 [N, D]."""
        vectors = self.pair.encode_text(tokens)
        return {TEXT_OUTPUT: nn.functional.normalize(vectors.float(), dim=-1)}


class OpenClipModel(Predictor):
    """A model of open_clip in evaluation mode, which embeds images as any predictor does, and texts."""

    scale: float

    def __init__(self, name: str, model: Any, tokenizer: Any, device: str) -> None:
        """Take both towers.

        Args:
            name: Name that it was opened by.
            model: Model of open_clip with a `visual`, which is moved to the device.
            tokenizer: Cuts texts into the tokens that the model takes, as tensors.
            device: Device that both towers run on, `cpu` or `cuda`.

        Raises:
            OptionError: The images of the model are made to fit in a way that bundles do not know.
        """
        super().__init__(EmbeddingType(("embedding",)))
        self.name = name
        self._preprocess = _read_preprocess(name, model.visual.preprocess_cfg)
        self.checksum = compute_checksum(model.state_dict())
        parts = self.checksum + json.dumps(self._preprocess.to_dict())
        fingerprint = hashlib.sha256(parts.encode()).hexdigest()[:32]
        self.embedding = EmbeddingSpec(OUTPUT, IMAGE_TOWER, True, fingerprint)
        self.tokenizer = tokenizer
        self.scale = float(model.logit_scale.detach().exp())
        bias = getattr(model, "logit_bias", None)
        self.bias = None if bias is None else float(bias.detach())
        model.to(device).eval()
        self.image_tower = PairImageTower(model.visual, self._preprocess)
        self.text_tower = PairTextTower(model)
        self._device = torch.device(device)

    def prepare(self, image: ImageSource) -> Arrays:
        """Open one image, and bring it to the size that the model takes: `pixels`, uint8 [1, h, w, 3]."""
        return {"pixels": self._preprocess.resize(self.open_pixels(image))[0][None]}

    def run(self, inputs: Arrays) -> Arrays:
        """Return the vectors, [N, D], of what `prepare` has made of one image or of several joined."""
        return run_torch(self.image_tower, inputs, self._device)

    def embed_text(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """Return the vector of one text, [D], or of each of a list, [M, D]; longer ones than the context are cut."""
        tokens = self.tokenizer([texts] if isinstance(texts, str) else list(texts))
        vectors = run_torch(self.text_tower, {TOKENS: tokens.numpy()}, self._device)[TEXT_OUTPUT]
        return vectors[0] if isinstance(texts, str) else vectors


def _read_preprocess(name: str, config: Mapping[str, Any]) -> Preprocess:
    """Return the preprocessing of an image tower, as open_clip describes it."""
    fits: dict[str, Fit] = {"shortest": "crop", "squash": "squash"}
    if config["resize_mode"] not in fits:
        raise OptionError(
            f"The images of {name} are resized by '{config['resize_mode']}', which pads them with a color. Choices: "
            f"{', '.join(fits)}. Take another model of open_clip."
        )
    size = config["size"]
    return Preprocess(
        size=(size, size) if isinstance(size, int) else tuple(size),
        fit=fits[config["resize_mode"]],
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def open_pair(name: str, *, base: Path | None = None, device: str = "auto") -> OpenClipModel:
    """Open a model of open_clip by its name, `open_clip:NAME/WEIGHTS`.

    Args:
        name: Name of the model, and of its weights after a slash: one of open_clip's tags.
        base: File of weights, in place of a tag.
        device: `cpu`, `cuda`, or `auto`.

    Raises:
        OptionError: The model is not known, or no weights were named.
        DataError: The weights cannot be loaded.
        MissingPackageError: open_clip is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise MissingPackageError(
            "Models with a text tower take open_clip, which is not installed: pip install 'vfm[clip]'."
        ) from error
    model_name, _, tag = name.removeprefix(PREFIX).partition("/")
    if model_name not in open_clip.list_models():
        hint = suggest(model_name, open_clip.list_models())
        raise OptionError(f"open_clip has no model '{model_name}'.{hint}")
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if base is None and tag not in tags:
        what = f"no weights '{tag}'" if tag else "no weights, and none were named"
        choices = ", ".join(tags) or "none but a file"
        raise OptionError(
            f"'{model_name}' has {what}. Choices: {choices}. Give {PREFIX}{model_name}/WEIGHTS, or --base FILE."
        )
    if base is not None and not base.is_file():
        raise OptionError(f"There is no file of weights {base}. Check its path.")
    weights = tag if base is None else str(base)
    try:
        model = open_clip.create_model(model_name, pretrained=weights)
    except (RuntimeError, ValueError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"The weights {weights} cannot be loaded into '{model_name}' ({reason}). Check that they are of this "
            "model, and for a tag that its host can be reached; --base takes a file."
        ) from error
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return OpenClipModel(name, model, open_clip.get_tokenizer(model_name), device)

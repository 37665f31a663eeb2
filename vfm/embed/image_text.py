"""Pair of an image tower and a text tower (CLIP, SigLIP): its Protocol, and the models of open_clip."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.errors import DataError, MissingPackageError, OptionError, suggest
from vfm_runtime.media.image import ImageSource
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.embedding import OUTPUT, EmbeddingSpec, EmbeddingType

from vfm.embed.passes import ImageTower
from vfm.models.tensors import compute_checksum

PREFIX = "open_clip:"
"""Begins the names of open_clip's models, such as `open_clip:ViT-B-32/laion2b_s34b_b79k`."""
IMAGE_TOWER = "image tower"
"""Source of the vectors of a pair, where a backbone's are pooled."""


@runtime_checkable
class ImageTextModel(ImageTower, Protocol):
    """An image tower and a text tower whose vectors, of norm 1, can be compared by cosine."""

    scale: float
    """What cosines are multiplied by to be logits."""
    bias: float | None
    """What is then added, where each label has a probability of its own (SigLIP); None where all share one (CLIP)."""

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, [M, D]."""


class OpenClipModel(Predictor):
    """A model of open_clip in evaluation mode, which embeds images as any predictor does, and texts."""

    def __init__(self, model: Any, transform: Any, tokenizer: Any, device: str) -> None:
        super().__init__(EmbeddingType(("embedding",)))
        preprocessing = json.dumps(model.visual.preprocess_cfg, sort_keys=True)
        parts = compute_checksum(model.state_dict()) + preprocessing
        fingerprint = hashlib.sha256(parts.encode()).hexdigest()[:32]
        self.embedding = EmbeddingSpec(OUTPUT, IMAGE_TOWER, True, fingerprint)
        self._model = model.to(device).eval()
        self._transform = transform
        self._tokenizer = tokenizer
        self._device = device
        self.scale = float(model.logit_scale.detach().exp())
        bias = getattr(model, "logit_bias", None)
        self.bias = None if bias is None else float(bias.detach())

    def prepare(self, image: ImageSource) -> Arrays:
        """Open one image, and bring it to the size and range that the model takes: `pixels`, float32 [1, 3, h, w]."""
        return {"pixels": self._transform(Image.fromarray(self.open_pixels(image))).numpy()[None]}

    @torch.inference_mode()
    def run(self, inputs: Arrays) -> Arrays:
        """Return the vectors, [N, D], of what `prepare` has made of one image or of several joined."""
        images = torch.from_numpy(inputs["pixels"]).to(self._device)
        return {OUTPUT: self._normalize(self._model.encode_image(images))}

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, [M, D]; what is longer than the model's context is cut."""
        return self._normalize(
            self._model.encode_text(self._tokenizer(list(texts)).to(self._device))
        )

    def _normalize(self, vectors: torch.Tensor) -> NDArray[np.float32]:
        unit = torch.nn.functional.normalize(vectors.float(), dim=-1)
        return np.asarray(unit.cpu().numpy(), np.float32)


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
        model, _, transform = open_clip.create_model_and_transforms(model_name, pretrained=weights)
    except (RuntimeError, ValueError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"The weights {weights} cannot be loaded into '{model_name}' ({reason}). Check that they are of this "
            "model, and for a tag that its host can be reached; --base takes a file."
        ) from error
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return OpenClipModel(model, transform, open_clip.get_tokenizer(model_name), device)

"""ConSE: images among words without a pair of towers, by a classifier's class names and a text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import ImageNetInfo, create_transform, infer_imagenet_subset, resolve_data_config
from torch import Tensor, nn
from vfm_runtime.errors import DataError, MissingPackageError, OptionError, suggest
from vfm_runtime.media.image import ImageSource, open_image
from vfm_runtime.tasks.base import Arrays
from vfm_runtime.tasks.embedding import EmbeddingSpec

from vfm.models.weights import load_weights

PREFIX = "conse:"
"""Begins the names of classifiers of timm that are read so, such as `conse:tf_efficientnet_lite0`."""
_MOST_CLASSES = 10
"""Most likely classes whose names are averaged."""
_SCALE = 20.0
_BATCH = 64


class ConseModel:
    """Convex combination of semantic embeddings (Norouzi et al., 2014).

    The vector of an image is the mean of those of the names of its most likely ImageNet classes, weighted by their
    probabilities. So an image is known only as far as these names tell of it, and the scale of scores is a guess.
    """

    def __init__(self, classifier: nn.Module, encode: TextEncoder, device: str) -> None:
        """Embed the names of the classes.

        Args:
            classifier: Classifier of timm, of classes of ImageNet.
            encode: Text encoder, which also reads the names of the classes.
            device: Where the classifier runs: `cpu` or `cuda`.

        Raises:
            OptionError: The classes are not those of ImageNet.
        """
        subset = infer_imagenet_subset(classifier)
        if subset is None:
            raise OptionError(
                f"The model has {getattr(classifier, 'num_classes', 0)} classes, whose names are not known. Give a "
                "classifier of ImageNet."
            )
        info = ImageNetInfo(subset)
        self.embedding: EmbeddingSpec | None = EmbeddingSpec(source="ConSE", normalize=True)
        self.scale = _SCALE
        self.bias: float | None = None
        self._device = device
        self._classifier = classifier.to(device).eval()
        config = resolve_data_config({}, model=classifier)
        self._transform = create_transform(**config)
        self._encode = encode
        names = [info.index_to_description(index) for index in range(info.num_classes())]
        self._names = encode(names)

    def prepare(self, image: ImageSource) -> Arrays:
        """Open one image and bring it to the classifier's size and range."""
        values = self._transform(Image.fromarray(open_image(image)))
        return {"image": values.numpy()[None]}

    @torch.inference_mode()
    def embed_prepared(self, inputs: Arrays) -> NDArray[np.float32]:
        """Return the vectors, [N, D], of what `prepare` has made of one image or of several joined."""
        images = torch.from_numpy(inputs["image"]).to(self._device)
        scores, classes = self._classifier(images).float().softmax(-1).topk(_MOST_CLASSES, -1)
        weights = scores.cpu().numpy()[..., None]
        return _normalize((weights * self._names[classes.cpu().numpy()]).sum(axis=1))

    def embed_text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, [M, D]."""
        return self._encode(texts)


class TextEncoder:
    """A sentence encoder of transformers in a folder: the mean of its last tokens, of norm 1."""

    def __init__(self, folder: Path) -> None:
        """Load it; nothing is fetched.

        Raises:
            MissingPackageError: transformers is not installed.
            DataError: The folder holds no such encoder.
        """
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise MissingPackageError(
                "A text encoder takes transformers, which is not installed: pip install 'vfm[text]'."
            ) from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise DataError(
                f"{folder} holds no text encoder ({reason}). Give a folder with config.json, tokenizer.json and "
                "model.safetensors, such as all-MiniLM-L6-v2."
            ) from error

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors of texts, [M, D]; what is longer than the encoder's context is cut."""
        parts = []
        for start in range(0, len(texts), _BATCH):
            some = list(texts[start : start + _BATCH])
            tokens = self._tokenizer(some, padding=True, truncation=True, return_tensors="pt")
            last: Tensor = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None]
            parts.append(((last * mask).sum(1) / mask.sum(1)).numpy())
        return _normalize(np.concatenate(parts))


def open_conse(name: str, *, base: Path | None, text: Path | None, device: str) -> ConseModel:
    """Open `conse:NAME`, a classifier of timm, with a text encoder.

    Args:
        name: Name of the classifier after `conse:`.
        base: File of its weights, with those of its classes; timm's own by default.
        text: Folder of the text encoder.
        device: `cpu`, `cuda`, or `auto`.

    Raises:
        OptionError: There is no text encoder, or no such classifier.
        DataError: The folder holds no text encoder, or the weights no classes.
    """
    if text is None:
        raise OptionError(
            f"'{name}' classifies images and reads no words. Give --text FOLDER with a text encoder, such as "
            "all-MiniLM-L6-v2."
        )
    backbone = name.removeprefix(PREFIX)
    if not timm.is_model(backbone.partition(".")[0]):
        raise OptionError(f"timm has no model '{backbone}'.{suggest(backbone, timm.list_models())}")
    encode = TextEncoder(text)
    classifier = timm.create_model(backbone, pretrained=base is None)
    if base is not None and (missing := load_weights(classifier, base).missing):
        raise DataError(
            f"{base} lacks {len(missing)} tensors of the classifier '{backbone}', such as {missing[0]}. Give weights "
            "that hold its classes of ImageNet too."
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return ConseModel(classifier, encode, device)


def _normalize(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, 1e-12), np.float32)

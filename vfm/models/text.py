"""Text towers: a small transformer with a tokenizer of its own, or a text encoder of a folder such as MiniLM."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from vfm_runtime.errors import DataError, MissingPackageError, OptionError
from vfm_runtime.text import TEXT_OUTPUT, TextSpec, clean_text, open_tokenizer, tokenize
from vfm_runtime.zero_shot import TextModel

from vfm.spec import Component

_MOST_TEXTS = 1_000_000
"""Texts that a tokenizer is made of; of more, the first."""
_AT_ONCE = 4096
"""Texts that are counted at once, which bounds the memory of their tokens."""
_PADDINGS = ("[PAD]", "<pad>", "<|pad|>")


class TextTower(Component, nn.Module, ABC):
    """Makes a vector of each text. Layers and tokenizer are made by `build`, or by `restore` from a checkpoint.

    Attributes:
        tokenizer: Tokenizer of the package tokenizers, which cuts and fills up texts to one length; None before.
        text_spec: How texts are cleaned before, and what is refused.
    """

    width: int
    """Numbers of a vector."""
    tokenizer: Any = None
    text_spec: TextSpec

    @abstractmethod
    def build(self, texts: Iterable[str]) -> None:
        """Make tokenizer and layers for a training.

        Args:
            texts: Texts of the training.
        """

    @abstractmethod
    def restore(self, entry: Mapping[str, Any]) -> None:
        """Make tokenizer and layers as they were, from what `describe` gave."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return plain values for the checkpoint, from which `restore` makes an equal tower but for its weights."""

    @abstractmethod
    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors, float [N, width], of tokens, int64 [N, length]."""

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, int64 [N, length], on the device of the weights."""
        tokens = torch.from_numpy(tokenize(self.tokenizer, self.text_spec, texts))
        return tokens.to(next(self.parameters()).device)

    def count_tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return how many tokens each text takes in a batch of texts no longer, [M]: here all of the context."""
        return np.full(len(texts), self.text_spec.length)

    def count_cut(self, texts: Iterable[str]) -> int:
        """Return how many texts are longer than the tower's context, and so are cut."""
        return sum(
            bool(self.tokenizer.encode(clean_text(text, self.text_spec.clean)).overflowing)
            for text in texts
        )


class MaskedTextTower(TextTower):
    """A text tower of a transformer that looks at all tokens of a text but not at those that fill it up."""

    def __init__(self, context: int) -> None:
        """Set the length.

        Args:
            context: Number of tokens that a text is cut to.

        Raises:
            OptionError: It lies outside its range.
        """
        super().__init__()
        if not 2 <= context <= 8192:
            raise OptionError(
                f"context is {context}. Give a number from 2 to 8192 (--model.text.context)."
            )
        self.context = context
        self.pad = 0

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, as long as the longest of these: what fills up changes nothing."""
        tokens = super().tokenize(texts)
        return tokens[:, : max(1, int((tokens != self.pad).sum(dim=1).max()))]

    def count_tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Return the number of tokens of each text, [M], which is what it is filled up to among texts no longer."""
        parts = [
            (tokenize(self.tokenizer, self.text_spec, texts[start : start + _AT_ONCE]) != self.pad)
            for start in range(0, len(texts), _AT_ONCE)
        ]
        return np.concatenate([part.sum(axis=1) for part in parts] or [np.zeros(0, np.int64)])

    def find_words(self, tokens: Tensor) -> Tensor:
        """Return which tokens are those of a text, bool [N, length]; an empty text keeps the first that fills it up."""
        is_word = tokens != self.pad
        return torch.cat([torch.ones_like(is_word[:, :1]), is_word[:, 1:]], dim=1)

    def take_tokenizer(self, tokenizer: Any, marks: Sequence[str] = ()) -> None:
        """Take a tokenizer that fills up texts; it cuts them to the context from now on.

        Args:
            tokenizer: Tokenizer of the package tokenizers, whose `padding` is set.
            marks: Texts that stand for tokens of their own.
        """
        self.pad = int(tokenizer.padding["pad_id"])
        tokenizer.enable_truncation(self.context)
        tokenizer.enable_padding(
            length=self.context, pad_id=self.pad, pad_token=tokenizer.padding["pad_token"]
        )
        self.tokenizer = tokenizer
        self.text_spec = TextSpec(clean="lower", length=self.context, scale=1.0, marks=tuple(marks))

    def describe(self) -> dict[str, Any]:
        """Return the tokenizer as JSON, and its marks."""
        return {"tokenizer": self.tokenizer.to_str(), "marks": list(self.text_spec.marks)}

    def restore(self, entry: Mapping[str, Any]) -> None:
        """Take the tokenizer of a checkpoint."""
        self.take_tokenizer(
            _import_tokenizers().Tokenizer.from_str(entry["tokenizer"]), entry["marks"]
        )


class SmallTextTower(MaskedTextTower):
    """A transformer that starts at random, whose vector of a text is the mean of its last tokens.

    By default its tokenizer is made of the texts of the training: pairs of bytes are joined as often as the vocabulary
    allows (BPE), so that every text of any script has tokens.
    """

    def __init__(
        self,
        width: int = 256,
        depth: int = 4,
        num_heads: int = 4,
        *,
        context: int = 32,
        vocab_size: int = 8192,
        tokenizer: Path | None = None,
    ) -> None:
        """Choose the size; layers follow when the texts are known.

        Args:
            width: Numbers of a token, a multiple of num_heads.
            depth: Number of blocks of attention and layers.
            num_heads: Attention heads of each block.
            context: Number of tokens that a text is cut to.
            vocab_size: Most tokens of a tokenizer that is made of the texts, 256 or more.
            tokenizer: A tokenizer.json in place of that, as the package tokenizers writes it.

        Raises:
            OptionError: An argument lies outside its range.
        """
        super().__init__(context)
        if min(width, depth, num_heads) < 1 or width % num_heads:
            raise OptionError(
                f"width is {width}, depth {depth} and num_heads {num_heads}. Give 1 or more, and a width that is a "
                "multiple of num_heads (--model.text.width)."
            )
        if vocab_size < 256:
            raise OptionError(
                f"vocab_size is {vocab_size}. Give 256 or more, one token for each byte (--model.text.vocab_size)."
            )
        self.width, self.depth, self.num_heads = width, depth, num_heads
        self.vocab_size, self.tokenizer_path = vocab_size, tokenizer

    def build(self, texts: Iterable[str]) -> None:
        """Make the tokenizer of the texts, or read it, and the layers."""
        if self.tokenizer_path is None:
            self.take_tokenizer(train_tokenizer(texts, self.vocab_size))
        else:
            self.take_tokenizer(*read_tokenizer(self.tokenizer_path))
        self._build_layers()

    def restore(self, entry: Mapping[str, Any]) -> None:
        """Take the tokenizer of a checkpoint, and make the layers."""
        super().restore(entry)
        self._build_layers()

    def _build_layers(self) -> None:
        size = max(self.tokenizer.get_vocab_size(), self.pad + 2)
        self.tokens = nn.Embedding(size, self.width)
        self.positions = nn.Parameter(torch.empty(self.context, self.width))
        for table in (self.tokens.weight, self.positions):
            nn.init.normal_(table, std=0.02)
        self.blocks = nn.ModuleList(
            Block(self.width, self.num_heads, qkv_bias=True) for _ in range(self.depth)
        )
        self.norm = nn.LayerNorm(self.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the means of the last tokens, float [N, width]."""
        mask = self.find_words(tokens)
        x = self.tokens(tokens) + self.positions[: tokens.shape[1]]
        bias = torch.zeros_like(mask, dtype=x.dtype).masked_fill(~mask, torch.finfo(x.dtype).min)
        for block in self.blocks:
            x = block(x, attn_mask=bias[:, None, None, :])
        return _average(self.norm(x), mask)


class EncoderTextTower(MaskedTextTower):
    """A text encoder of a folder, such as all-MiniLM-L6-v2: the mean of its last tokens, as sentence encoders do."""

    def __init__(self, folder: Path, *, context: int = 64) -> None:
        """Name the encoder.

        Args:
            folder: Folder with config.json, tokenizer.json and model.safetensors.
            context: Number of tokens that a text is cut to, at most as many as the encoder knows.
        """
        super().__init__(context)
        self.folder = Path(folder)
        self._config: dict[str, Any] = {}

    def build(self, texts: Iterable[str]) -> None:
        """Read the encoder; the texts of the training are not asked."""
        transformers = _import_transformers()
        try:
            model = transformers.AutoModel.from_pretrained(
                self.folder, local_files_only=True, trust_remote_code=False, add_pooling_layer=False
            )
        except (OSError, ValueError, TypeError) as error:
            raise DataError(
                f"{self.folder} holds no text encoder ({str(error).strip().splitlines()[0]}). Give a folder with "
                "config.json, tokenizer.json and model.safetensors, such as all-MiniLM-L6-v2 (--model.text.folder)."
            ) from error
        self.take_tokenizer(*read_tokenizer(self.folder / "tokenizer.json"))
        self._take_model(model)

    def restore(self, entry: Mapping[str, Any]) -> None:
        """Take the tokenizer of a checkpoint, and make the layers."""
        super().restore(entry)
        transformers = _import_transformers()
        values = dict(entry["config"])
        config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
        self._take_model(transformers.AutoModel.from_config(config, add_pooling_layer=False))

    def describe(self) -> dict[str, Any]:
        """Return tokenizer and configuration."""
        return super().describe() | {"config": self._config}

    def _take_model(self, model: Any) -> None:
        limit = getattr(model.config, "max_position_embeddings", self.context)
        if self.context > limit:
            raise OptionError(
                f"context is {self.context}, and the text encoder knows {limit} tokens. Give at most {limit} "
                "(--model.text.context)."
            )
        self._config = json.loads(model.config.to_json_string(use_diff=True))
        self.width = int(model.config.hidden_size)
        self.model = model.float()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the means of the last tokens, float [N, width]."""
        mask = self.find_words(tokens)
        last = self.model(input_ids=tokens, attention_mask=mask.long()).last_hidden_state
        return _average(last, mask)


class ProjectedTextTower(nn.Module):
    """A text tower with the layer that brings its vectors into the space that they share with images."""

    def __init__(self, tower: TextTower) -> None:
        super().__init__()
        self.tower = tower

    def prepare(self, dim: int) -> None:
        """Make the projection to `dim` numbers, once the tower is built."""
        self.projection = nn.Linear(self.tower.width, dim, bias=False)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return `text_embedding`, float32 [N, dim] of norm 1, as a bundle has it."""
        vectors = self.projection(self.tower(tokens)).float()
        return {TEXT_OUTPUT: F.normalize(vectors, dim=-1)}


class TowerModel(TextModel, Protocol):
    """A model of images and texts whose text tower can be exported."""

    @property
    def text_tower(self) -> ProjectedTextTower:
        """The text tower."""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Any:
    """Return a tokenizer of pairs of bytes (BPE) made of texts; two more tokens end a text and fill it up.

    No text can stand for these two: they are no words of the vocabulary.

    Args:
        texts: Texts of the training, of which the first million counts.
        vocab_size: Most tokens, 256 or more.
    """
    package = _import_tokenizers()
    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=True)
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=sorted(package.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    unique = dict.fromkeys(clean_text(text, "lower") for text in islice(texts, _MOST_TEXTS))
    tokenizer.train_from_iterator(unique, trainer)
    size = tokenizer.get_vocab_size()
    tokenizer.post_processor = package.processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", size + 1)]
    )
    tokenizer.enable_padding(pad_id=size, pad_token="<pad>")
    return tokenizer


def read_tokenizer(path: Path) -> tuple[Any, list[str]]:
    """Read a tokenizer.json that can fill up texts, with the texts that stand for tokens of their own.

    Raises:
        DataError: There is no such file, or nothing says by which token texts are filled up.
        BundleError: The file is no tokenizer.
    """
    if not path.is_file():
        raise DataError(
            f"There is no tokenizer {path}. Give a tokenizer.json, or leave --model.text.tokenizer out to have one "
            "made of the texts."
        )
    tokenizer = open_tokenizer(path)
    if tokenizer.padding is None:
        pad = next((t for t in _PADDINGS if tokenizer.token_to_id(t) is not None), None)
        if pad is None:
            raise DataError(
                f"{path} has no token that fills up texts (looked for {', '.join(_PADDINGS)}). Set its padding, or "
                "leave --model.text.tokenizer out to have one made of the texts."
            )
        tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    added = tokenizer.get_added_tokens_decoder().values()
    return tokenizer, sorted(token.content for token in added if token.special)


def _average(tokens: Tensor, mask: Tensor) -> Tensor:
    weights = mask[..., None].to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1)


def _import_tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise MissingPackageError(
            "Texts take the package tokenizers, which is not installed. Run: pip install 'vfm[text]'."
        ) from error
    return tokenizers


def _import_transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError(
            "A text encoder takes transformers, which is not installed. Run: pip install 'vfm[text]'."
        ) from error
    return transformers

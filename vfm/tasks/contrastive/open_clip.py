"""Text tower of open_clip, by name, for a contrastive training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vfm_runtime.errors import MissingPackageError
from vfm_runtime.text import TextSpec

from vfm.models.text import TextTower
from vfm.tasks.image_text import PREFIX, PairTextTower, open_pair


class OpenClipTextTower(TextTower):
    """The text tower of a pair of open_clip, such as that of CLIP or SigLIP, with its tokenizer and its projection."""

    def __init__(self, name: str, *, base: Path | None = None) -> None:
        """Name the pair.

        Args:
            name: Name of the pair and of its weights, NAME/WEIGHTS, such as ViT-B-32/laion2b_s34b_b79k.
            base: File of weights of the whole pair, in place of one of open_clip's tags.
        """
        super().__init__()
        self.name = name.removeprefix(PREFIX)
        self.base = base

    def build(self, texts: Iterable[str]) -> None:
        """Open the pair, and keep its text tower; the texts of the training are not asked."""
        pair = open_pair(f"{PREFIX}{self.name}", base=self.base, device="cpu")
        self._take_tower(pair.text_tower, pair.tokenizer)

    def restore(self, entry: Mapping[str, Any]) -> None:
        """Make the layers, without weights, and the tokenizer."""
        try:
            import open_clip
        except ImportError as error:
            raise MissingPackageError(
                "The checkpoint has a text tower of open_clip, which is not installed: pip install 'vfm[clip]'."
            ) from error
        model = open_clip.create_model(entry["model"], pretrained=None)
        self._take_tower(PairTextTower(model), open_clip.get_tokenizer(entry["model"]))

    def describe(self) -> dict[str, Any]:
        """Return the name of the model."""
        return {"model": self.name.partition("/")[0]}

    def _take_tower(self, tower: PairTextTower, tokenizer: Any) -> None:
        self.pair, self.tokenizer = tower.pair, tokenizer
        # Scale and bias are those of the loss.
        self.text_spec = TextSpec(clean="lower", length=tokenizer.context_length, scale=1.0)
        for name in ("logit_scale", "logit_bias"):
            # The loss has a temperature of its own.
            if (parameter := getattr(self.pair, name, None)) is not None:
                parameter.requires_grad_(False)
        with torch.no_grad():
            self.width = int(self(self.tokenize([""])).shape[-1])

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return the tokens of texts, int64 [N, length]."""
        tokens: Tensor = self.tokenizer(list(texts))
        return tokens.to(next(self.parameters()).device)

    def count_cut(self, texts: Iterable[str]) -> int:
        """Return how many texts fill the tower's context, and may be cut."""
        tokens = self.tokenizer(["", *texts])
        return int((tokens[1:, -1] != tokens[0, -1]).sum())

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the vectors, float [N, width]."""
        vectors: Tensor = self.pair.encode_text(tokens)
        return vectors

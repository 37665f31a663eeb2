"""Embedding head: one vector an image, pooled, of the class token, of the patches or of several layers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from torch import Tensor, nn
from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.embedding import OUTPUT

from vfm.models.heads.head import Head
from vfm.types import FeatureInfo, Features, Raw

EmbeddingSource = Literal["pooled", "class_token", "patches", "layers"]
"""Part of the features that a vector is made of."""

SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "pooled": "pooled",
        "class_token": "class_token",
        "patches": "tokens",
        "layers": "map_means",
    }
)
"""The field of `Features` that each source reads."""


IMAGE_TOWER = "image tower"
"""Source of the vectors of a pair of towers, where a backbone's are pooled."""


class EmbeddingHead(Head):
    """Gives features themselves, without a layer of its own: it has nothing to learn.

    Attributes:
        gives_tokens: Whether the raw outputs hold the `tokens` of the patches too, for a loss that compares them.
    """

    gives_tokens = False

    def __init__(self, source: EmbeddingSource = "pooled", *, normalize: bool = True) -> None:
        """Choose the vector.

        Args:
            source: pooled, as the backbone was trained to pool; class_token of a transformer; patches, the mean of the
                last tokens; layers, the means of several maps joined, early layers among them.
            normalize: Divide each vector by its L2 norm, so that products are cosines.

        Raises:
            OptionError: There is no such source.
        """
        super().__init__()
        if source not in SOURCES:
            raise OptionError(f"The embedding is '{source}'. Choices: {', '.join(SOURCES)}.")
        self.source: str = source
        self.normalize = normalize
        self.uses = (SOURCES[source],)

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make nothing: there is no layer."""

    def forward(self, features: Features) -> Raw:
        """Return the `embedding`, [N, D], and the `tokens`, [N, T, D'], where they are asked for."""
        values: Tensor = getattr(features, SOURCES[self.source])
        if self.source == "patches":
            values = values.mean(1)
        return {OUTPUT: values} | ({"tokens": features.tokens} if self.gives_tokens else {})

    def decode(self, raw: Raw, geometry: Tensor | None = None) -> dict[str, Tensor]:
        """Return the `embedding` in float32, of norm 1 where asked for."""
        vectors = raw[OUTPUT].float()
        return {OUTPUT: nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors}


class ProjectionHead(EmbeddingHead):
    """The image tower of a pair: a linear map of the pooled vector into the space that it shares with texts."""

    def __init__(self, dim: int = 256) -> None:
        """Choose the space.

        Args:
            dim: Numbers of a vector.
        """
        super().__init__("pooled")
        self.dim = dim
        self.source = IMAGE_TOWER

    def build(self, info: FeatureInfo, num_labels: int) -> None:
        """Make the map."""
        self.projection = nn.Linear(info.width, self.dim, bias=False)

    def forward(self, features: Features) -> Raw:
        """Return the `embedding`, [N, dim]."""
        return {OUTPUT: self.projection(features.pooled)}

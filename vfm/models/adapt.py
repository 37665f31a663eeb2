"""Converters: which weights of a built backbone learn. They act from outside; no model knows of them."""

from __future__ import annotations

from typing import Literal

from vfm.models.backbone import Backbone

Adapt = Literal["full", "linear"]


def adapt(backbone: Backbone, how: Adapt) -> None:
    """Choose the weights that learn.

    Args:
        backbone: Changed in place.
        how: `full`: all; `linear`: none, so that only the head learns, on features that stay as
            they were trained (batch norms keep their statistics, dropout is off).
    """
    if how == "linear":
        backbone.requires_grad_(False)
        backbone.frozen = True
        backbone.eval()

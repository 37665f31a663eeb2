"""Towers of zero-shot by name: a pair of open_clip, or a classifier and a text encoder (ConSE)."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import vfm_runtime
from vfm_runtime.errors import OptionError

from vfm.embed.models import open_embedder
from vfm.embed.passes import ImageTextModel
from vfm.incontext import conse
from vfm.tasks.image_text import PREFIX, open_pair


def open_image_text_model(
    name: str,
    *,
    base: Path | None = None,
    text: Path | None = None,
    device: str = "auto",
    trust: Collection[str] = (),
) -> ImageTextModel:
    """Open a model by name: `open_clip:NAME/WEIGHTS`, with one of open_clip's tags of weights, or a file of them.

    Or a checkpoint of a ContrastiveTask, or the folder of a bundle of such a pair; or `conse:NAME`, a classifier of
    timm whose class names a text encoder reads.

    Args:
        name: Name of the model, and of its weights after a slash.
        base: File of weights, in place of a tag.
        text: Folder of a text encoder, for `conse:NAME`.
        device: `cpu`, `cuda`, or `auto`.
        trust: Packages besides vfm whose code a checkpoint may name.

    Raises:
        OptionError: The model has no text tower, is not known, or no weights were named.
        DataError: The weights, or the text encoder, cannot be loaded.
        MissingPackageError: open_clip is not installed.
    """
    if name.startswith(conse.PREFIX):
        return conse.open_conse(name, base=base, text=text, device=device)
    if text is not None:
        raise OptionError(f"--text goes with {conse.PREFIX}NAME, not with '{name}'. Leave it out.")
    if Path(name).is_dir():
        bundle = vfm_runtime.load(name, device=device, precision="fp32")
        if bundle.scale is not None:
            return bundle
    if Path(name).is_file():
        predictor, _ = open_embedder(name, base=base, device=device, trust=trust)
        if predictor.scale is not None:
            return predictor
    if not name.startswith(PREFIX):
        raise OptionError(
            f"'{name}' has no text tower, so that words cannot be compared with images. Give --model "
            f"{PREFIX}ViT-B-32/laion2b_s34b_b79k or another pair of open_clip, a checkpoint of a ContrastiveTask, "
            f"{conse.PREFIX}NAME with --text, or --examples in place of words."
        )
    return open_pair(name, base=base, device=device)

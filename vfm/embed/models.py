"""Models that embed, opened by what a user calls them: a bundle, a checkpoint, or the name of a backbone or a pair."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
import vfm_runtime
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.errors import OptionError
from vfm_runtime.tasks.embedding import EmbeddingSpec

from vfm.models.heads.embedding import IMAGE_TOWER
from vfm.preprocess import check_bit_depth
from vfm.tasks.checkpoint import Checkpoint
from vfm.tasks.image_text import PREFIX, open_pair
from vfm.tasks.predictor import TorchPredictor


def open_embedder(
    model: str,
    *,
    source: str | None = None,
    normalize: bool = True,
    bit_depth: int | None = None,
    base: Path | None = None,
    device: str = "auto",
    trust: Collection[str] = (),
) -> tuple[Predictor, EmbeddingSpec]:
    """Open a model that embeds, in 32 bits, and say what its vectors are made of.

    Args:
        model: Folder of a bundle, checkpoint, name of a backbone, or of a pair, `open_clip:NAME/WEIGHTS`.
        source: Part of the features; None for the usual one, or that of the bundle.
        normalize: Whether vectors are divided by their L2 norm; a bundle has decided that.
        bit_depth: Bits that the values of images of 16 or 32 bits use; None for what the model was trained with. It is
            part of the fingerprint.
        base: File of the backbone's weights, for an adapter or a name.
        device: `cpu`, `cuda`, or `auto`.
        trust: Packages besides vfm whose code a checkpoint may name.

    Raises:
        OptionError: The model embeds by another source, gives no embeddings, or looks at crops alone.
        CheckpointError: There is no such checkpoint.
    """
    predictor: Predictor
    scheme, mark, name = model.partition(":")
    if mark and scheme == "conse":
        raise OptionError(
            f"{model} gives no embeddings of images: vfm classify --labels reads it. Name the backbone alone: {name}."
        )
    if bit_depth is not None and (model.startswith(PREFIX) or Path(model).is_dir()):
        raise OptionError(
            f"--bit-depth is {bit_depth}, and {model} reads images by rules of its own. Leave it out, or name a "
            "backbone or a checkpoint."
        )
    if model.startswith(PREFIX):
        if source not in (None, IMAGE_TOWER) or not normalize:
            raise OptionError(
                f"The image tower of {model} gives one vector, of norm 1, which is compared with words. Leave "
                "--embedding and --normalize out, or name a backbone."
            )
        pair = open_pair(model, base=base, device=device)
        assert pair.embedding is not None
        return pair, pair.embedding
    if Path(model).is_dir():
        predictor = vfm_runtime.load(model, device=device, precision="fp32")
        spec = predictor.embedding
        if spec is None or not spec.fingerprint:
            raise OptionError(
                f"{model} gives no embeddings that say their fingerprint. Export it again with --embedding pooled."
            )
        if source not in (None, spec.source):
            raise OptionError(
                f"{model} embeds by {spec.source}, not by {source}. Leave --embedding out, or export it again."
            )
    else:
        task = Checkpoint.open(model, base=base, trust=trust).task
        check_bit_depth(bit_depth)
        task.preprocess = task.preprocess.add_bit_depth(bit_depth)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        predictor = TorchPredictor(task.to(device))
        spec = predictor.select_embedding(source, normalize=normalize)
    if predictor.task_type.uses_crops:
        raise OptionError(
            f"{model} {predictor.task_type.summary} and looks at crops of an image, not at the whole. Take a backbone, "
            "or a model of another task."
        )
    return predictor, spec

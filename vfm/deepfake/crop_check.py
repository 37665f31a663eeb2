"""Crop check: images must be cut out as those that a deepfake model was trained on."""

from __future__ import annotations

from dataclasses import fields

from vfm_runtime.deepfake.faces.crop import CropSpec

from vfm.training.checkpoint import CheckpointError


def require_same_crop(found: CropSpec, own: CropSpec) -> None:
    """Refuse images that were cut out otherwise than those of the training: the crop is a part of the model.

    Args:
        found: Of the data.
        own: Of the model.

    Raises:
        CheckpointError: They differ.
    """
    names = [field.name for field in fields(own) if field.name != "tiles"]
    differing = [name for name in names if getattr(found, name) != getattr(own, name)]
    if not differing:
        return
    listed = ", ".join(
        f"{name} {getattr(found, name)!r} (the model's: {getattr(own, name)!r})"
        for name in differing
    )
    raise CheckpointError(
        f"The images are not cropped as those that the model was trained on: {listed}. Its answers would mean "
        f"nothing. {_REMEDIES[own.source].format(own=own)}"
    )


_REMEDIES = {
    "faces": "Cut the faces out anew: vfm faces ROOT -o CROPS --size {own.size} --margin {own.margin:g} "
    "--policy {own.policy}, then --data.root CROPS.",
    "cropped": "Give crops made as for the training and say so with --data.cropped true, or train on crops "
    "of `vfm faces`, which say how they were made.",
    "native": "Give whole images, and say so with --data.native true.",
}

"""Crop check: images must be cut out as those that a deepfake model was trained on."""

from __future__ import annotations

from dataclasses import fields

from vfm_runtime.deepfake.faces.crop import CropSpec

from vfm.training.checkpoint import CheckpointError


def require_same_crop(crop: CropSpec, trained: CropSpec) -> None:
    """Refuse images that were cut out otherwise than those of the training: the crop is a part of the model.

    Raises:
        CheckpointError: The two differ.
    """
    listed = ", ".join(
        f"{name} {getattr(crop, name)!r} (the model's: {getattr(trained, name)!r})"
        for name in (field.name for field in fields(trained))
        if name != "tiles" and getattr(crop, name) != getattr(trained, name)
    )
    if listed:
        raise CheckpointError(
            f"The images are not cropped as those that the model was trained on: {listed}. Its answers would mean "
            f"nothing. {_REMEDIES[trained.source].format(trained)}"
        )


_REMEDIES = {
    "faces": "Cut the faces out anew: vfm faces ROOT -o CROPS --size {0.size} --margin {0.margin:g} "
    "--policy {0.policy}, then --data.root CROPS.",
    "cropped": "Give crops made as for the training and say so with --data.cropped true, or train on crops "
    "of `vfm faces`, which say how they were made.",
    "native": "Give whole images, and say so with --data.native true.",
}

"""Deepfake export hooks: labelled data by path, the check of crops, and what card and Triton say of verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from vfm_runtime.deepfake.faces.crop import CropSpec

from vfm.deepfake.data.base import CROP_FILE
from vfm.deepfake.data.data import DeepfakeData

Split = Literal["val", "test"]
"""A split that is scored."""
UNSHARED = "tells real from fake, and looks at crops of faces where the others look at whole images"
NO_REFERENCE = (
    "--reference is for models that look at whole images; one that tells real from fake has distances of its own, and "
    "vfm calibrate sets their limit. Leave it out."
)
NO_CALIBRATION = "A model that tells real from fake is calibrated before it is exported: vfm calibrate CHECKPOINT DATA."
SERVING_COMMENT = """# One crop a request: uint8 RGB, cut as `rules.crop` in vfm.json of the bundle says.
# Left to the client: finding the faces of an image or a video and cutting them out; the mean of the `logits` over
# the frames, divided by the temperature; and the threshold and limits of `rules.decision`, which make it a verdict.
"""
SERVING_WARNING = (
    "takes crops: finding faces, the mean over frames and the verdict are left to the client, as its config.pbtxt "
    "says."
)


def open_plain_data(path: Path, **options: Any) -> DeepfakeData:
    """Images of a folder as for DeepfakeData, or of a manifest, without what training changes about them."""
    folder, manifest = (path.parent, path) if path.is_file() else (path, None)
    return DeepfakeData(
        folder, manifest=manifest, mode="plain", edits=False, benign_share=0.0, **options
    )


def open_deepfakes(
    path: Path, crop: CropSpec | None, splits: Sequence[Split] = ("val",), **options: Any
) -> tuple[DeepfakeData, Split]:
    """Read real and fake images by path: the first of some splits that the data states, or else all of them.

    Args:
        path: A folder, or a manifest.
        crop: How the model's training images were cut out; images of which nothing is said are taken for such.
        splits: Splits that are looked for; the first is what all images are, where the data states none of them.
        **options: Options of DeepfakeData that go first.

    Returns:
        The data, and the name of the split.
    """
    folder = path if path.is_dir() else path.parent
    # What crop.json says goes first; without it the images are taken for what the model was trained on.
    source = crop.source if crop is not None and not (folder / CROP_FILE).is_file() else ""
    options = {
        "cropped": source == "cropped",
        "native": source == "native",
        "crop_size": crop.size if crop is not None else 256,
        "val_fraction": 0.0,
        "test_fraction": 0.0,
        **options,
    }
    data = open_plain_data(path, **options)
    stated = data.find()
    split = next((name for name in splits if stated.get(name)), None)
    if split is None:
        # All of it is one split: images of a train split that are no crops show only one square of each.
        split = splits[0]
        data = open_plain_data(path, **options, force_split=split)
    data.setup({"val": "validate", "test": "test"}[split])
    return data, split


def describe_verdict_rules(rules: Mapping[str, Any], by_group: Sequence[str]) -> list[str]:
    """Lines of the card on how faces are cut out, verdicts reached, and what a score is not.

    Args:
        rules: `crop` and `decision` of the contract.
        by_group: Sentences on thresholds by group; none where there are none.
    """
    crop, decision = rules["crop"], rules["decision"]
    faces = f", face: {crop['policy']}, detector: {crop['detector']}"
    threshold = "none is calibrated: 0.5 is assumed, and nothing is known of false alarms"
    if decision["threshold"] is not None:
        threshold = (
            f"{decision['threshold']:.4f} on the mean logit over {decision['temperature']:.4f}"
        )
        if decision["fpr"] is not None:
            threshold += f", fitted on {decision['num_reals']} real videos for {decision['fpr']:.1%} false alarms"
    limits = ("min_face", "min_frames", "min_sharpness", "max_distance", "max_spread", "real_below")
    stated = [f"{name} {decision[name]:g}" for name in limits if decision[name] is not None]
    return [
        "## How it judges",
        "",
        f"- Crop: {crop['source']}, {crop['size']} pixels, margin {crop['margin']:g}"
        f"{faces if crop['source'] == 'faces' else ''}",
        f"- Of a video {decision['num_frames']} frames; its score is that of their mean logit",
        f"- Threshold: {threshold}",
        *(f"- {line}" for line in by_group),
        f"- Undecided outside of: {', '.join(stated)}",
        "- A score is no proof. The model knows the kinds of forgery that it was trained on: one for faces says "
        "nothing of images or videos that are generated whole, nor the other way round.",
        "",
    ]

"""A few images in a bundle with the answers of the export, for `vfm-runtime check` to replay anywhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from vfm_runtime.bundle.contract import GOLDEN_DIR, GOLDEN_FILE
from vfm_runtime.bundle.golden import TOLERANCE
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.media.image import Pixels, open_image

from vfm.bundle.parity import Parity

_SIDE = 256
_NUMBER = 3


def write_golden(
    folder: Path, model: Predictor, parity: Parity, others: Mapping[str, Predictor]
) -> None:
    """Keep images spread over those compared, shrunk; of a model that cuts faces out the crops, which are small.

    Args:
        folder: Of the bundle.
        model: Torch's side of it, whose answers are kept.
        parity: Of the bundle, which has passed.
        others: The bundle itself in each further precision, whose own answers are kept beside.
    """
    (folder / GOLDEN_DIR).mkdir()
    names = []
    for number, pixels in enumerate(itertools.islice(_images(model, parity), _NUMBER)):
        names.append(f"{number:03d}.png")
        Image.fromarray(pixels).save(folder / GOLDEN_DIR / names[-1])
    values = {"tolerance": parity.tolerance, "images": _rows(folder, model, names)}
    if others:
        values["precisions"] = {
            precision: {"tolerance": TOLERANCE[precision], "images": _rows(folder, other, names)}
            for precision, other in others.items()
        }
    text = json.dumps(values, indent=2) + "\n"
    (folder / GOLDEN_FILE).write_text(text, encoding="utf-8")


def _rows(folder: Path, model: Predictor, names: list[str]) -> list[dict[str, Any]]:
    cropped = model.task_type.uses_crops
    # One by one: that is how they are most likely asked elsewhere, and int8 answers depend on the batch.
    paths = [folder / GOLDEN_DIR / name for name in names]
    return [
        {"file": path.name, **model.predict(path, cropped=cropped).to_golden()} for path in paths
    ]


def _images(model: Predictor, parity: Parity) -> Iterator[Pixels]:
    step = max(1, len(parity.images) // _NUMBER)
    # Those between stand in where one shows no face.
    for image in (image for start in range(step) for image in parity.images[start::step]):
        if not model.task_type.uses_crops:
            picture = Image.fromarray(open_image(Path(image.name)))
            picture.thumbnail((_SIDE, _SIDE))
            yield np.array(picture)
        else:
            yield from (
                open_image(crop) for crop in model.task_type.open(Path(image.name)).images[:1]
            )

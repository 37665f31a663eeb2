"""Golden images: a few in a bundle with the predictions of the export, for `vfm-runtime check` to replay anywhere."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from vfm_runtime.bundle.contract import GOLDEN_DIR, GOLDEN_FILE
from vfm_runtime.bundle.golden import TOLERANCE
from vfm_runtime.bundle.predictor import Predictor
from vfm_runtime.media.image import Pixels, open_image

from vfm.bundle.parity import Parity

_NUMBER, _SIDE = 3, 256


def write_golden(
    folder: Path, model: Predictor, parity: Parity, others: Mapping[str, Predictor]
) -> None:
    """Keep small images spread over those compared, as the model takes them, with their predictions.

    Args:
        folder: Folder of the unfinished bundle.
        model: Torch's side of the bundle, whose predictions are kept.
        parity: The comparison of the bundle with the model, which has passed.
        others: The bundle itself in each further precision, whose own predictions are kept beside.
    """
    (folder / GOLDEN_DIR).mkdir()
    names = []
    step = max(1, len(parity.images) // _NUMBER)
    # Those between stand in where the task makes nothing of one.
    order = (image for start in range(step) for image in parity.images[start::step])
    images = _make_images(model, (Path(image.name) for image in order))
    for number, pixels in enumerate(itertools.islice(images, _NUMBER)):
        names.append(f"{number:03d}.png")
        Image.fromarray(pixels).save(folder / GOLDEN_DIR / names[-1])
    values = {"tolerance": parity.tolerance, "images": _predict_each(folder, model, names)}
    if others:
        values["precisions"] = {
            precision: {
                "tolerance": TOLERANCE[precision],
                "images": _predict_each(folder, other, names),
            }
            for precision, other in others.items()
        }
    text = json.dumps(values, indent=2) + "\n"
    (folder / GOLDEN_FILE).write_text(text, encoding="utf-8")


def _make_images(model: Predictor, paths: Iterable[Path]) -> Iterator[Pixels]:
    """Each image shrunk; of a task that cuts crops out, the first crop of each; of one with tiles, a part of each."""
    for path in paths:
        if model.task_type.uses_crops:
            yield from map(open_image, model.task_type.open(model.open_source(path)).images[:1])
        elif (tiling := model.task_type.tiling) is not None:
            # As large as it takes to have two tiles, of the photo's own pixels.
            pixels = model.open_pixels(path)
            yield np.ascontiguousarray(pixels[: tiling.side, : int(1.75 * tiling.side)])
        else:
            picture = Image.fromarray(model.open_pixels(path))
            picture.thumbnail((_SIDE, _SIDE))
            yield np.array(picture)


def _predict_each(folder: Path, model: Predictor, names: list[str]) -> list[dict[str, Any]]:
    # One by one: that is how they are most likely asked elsewhere, and int8 answers depend on the batch.
    cropped = model.task_type.uses_crops
    paths = [folder / GOLDEN_DIR / name for name in names]
    return [
        {"file": path.name, **model.predict(path, cropped=cropped).to_golden()} for path in paths
    ]

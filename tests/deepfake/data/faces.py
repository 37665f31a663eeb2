"""Drawn faces and fakes of them as files, for `DeepfakeData`."""

from pathlib import Path

import numpy as np
from PIL import Image
from vfm_runtime.deepfake.faces.crop import CropSpec

from vfm.deepfake.data.base import write_crop
from vfm.deepfake.data.layouts import MANIFEST
from vfm.deepfake.data.manifest import write_manifest
from vfm.deepfake.data.record import Item
from vfm.deepfake.data.synthetic import draw_faces


def write_faces(
    folder: str | Path,
    num_identities: int = 16,
    num_frames: int = 4,
    size: int = 256,
    seed: int = 0,
) -> list[Item]:
    """Write PNG files with masks, landmarks, `manifest.csv` and `crop.json`; no item has a split."""
    root = Path(folder).absolute()
    items = []
    for record in draw_faces(num_identities, num_frames, size, seed):
        path = root / "crops" / f"{record.name}.png"
        mask = root / "masks" / f"{record.name}.png"
        points = root / "landmarks" / f"{record.name}.npy"
        for written, pixels in ((path, record.source), (mask, record.mask)):
            if pixels is not None:
                written.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(written)
        points.parent.mkdir(parents=True, exist_ok=True)
        np.save(points, record.landmarks)
        items.append(
            record.item._replace(
                path=path.as_posix(),
                mask=mask.as_posix() if record.mask is not None else "",
                landmarks=points.as_posix(),
            )
        )
    write_manifest(root / MANIFEST, items)
    write_crop(root, CropSpec(source="cropped", size=size))
    return items
